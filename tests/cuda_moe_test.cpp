#include "ops/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, slots, n_experts, width,
      margin;  // margin > 0: strided; 8 keeps rows at multiples of 16 bytes
};

// About one slot in n_experts + 1 is free.
OwnedTensor random_experts(const Sizes& s) {
  OwnedTensor expert({s.tokens, s.slots}, DType::i32);
  fill_int(expert, "expert", -1, s.n_experts);
  return expert;
}

struct Permutation {
  DeviceTensor count_E, offset_Ep, slot_row_TK;
  Permutation(const Tensor& expert_TK, std::int64_t n_experts, DeviceContext& ctx)
      : count_E({n_experts}, DType::i32, ctx),
        offset_Ep({n_experts + 1}, DType::i32, ctx),
        slot_row_TK(expert_TK.shape(), DType::i32, ctx) {
    ops::cuda::moe_permutation(count_E, offset_Ep, slot_row_TK, DeviceTensor::of(expert_TK, ctx), ctx);
  }
};

// All are whole numbers: exact.
void expect_equal_to_cpu(const Tensor& expert_TK, std::int64_t n_experts) {
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor count({n_experts}, DType::i32), offset({n_experts + 1}, DType::i32),
      slot_row(expert_TK.shape(), DType::i32);
  ops::moe_permutation(count, offset, slot_row, expert_TK, host_ctx);
  const Permutation p(expert_TK, n_experts, ctx);
  EXPECT_EQ(p.count_E.values(), values(count));
  EXPECT_EQ(p.offset_Ep.values(), values(offset));
  EXPECT_EQ(p.slot_row_TK.values(), values(slot_row));
}

// A slot, a warp's slots and less, several warps, several blocks, more experts than slots and than a warp has
// lanes, experts that come to no slot, no tokens.
TEST(CudaMoePermutation, EqualsTheCpu) {
  const Sizes sizes[] = {{1, 1, 1, 0, 0},   {17, 4, 6, 0, 0},   {65, 2, 40, 0, 0},   {300, 8, 128, 0, 0},
                         {700, 8, 3, 0, 0}, {75, 6, 512, 0, 0}, {2500, 2, 64, 0, 0}, {0, 2, 5, 0, 0}};
  for (const Sizes& s : sizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, " << s.slots << " slots, " << s.n_experts);
    expect_equal_to_cpu(random_experts(s), s.n_experts);
  }
}

TEST(CudaMoePermutation, AllToOneExpertAndNoneToAny) {
  OwnedTensor expert({600, 4}, DType::i32);
  for (const double to : {6.0, -1.0}) {
    fill(expert, std::vector<double>(2400, to));
    expect_equal_to_cpu(expert, 9);
  }
}

#ifdef SWITCHYARD_SIMT
TEST(CudaMoePermutation, DoesNotDependOnTheOrderOfBlocks) {
  DeviceContext ctx;
  const OwnedTensor expert = random_experts({700, 8, 12, 0, 0});
  const Permutation ascending(expert, 12, ctx);
  simt::set_block_order(simt::BlockOrder::descending);
  const Permutation descending(expert, 12, ctx);
  simt::set_block_order(simt::BlockOrder::ascending);
  EXPECT_EQ(ascending.slot_row_TK.values(), descending.slot_row_TK.values());
}
#endif

// Whole numbers: exact. No slot, some, more than a block has threads; rooms of nothing, of some rows, of all.
TEST(CudaMoeOfOneRank, KeptExpertsAndLimitedRowsAreTheCpus) {
  for (const Sizes& s : {Sizes{0, 2, 4, 0, 0}, Sizes{17, 4, 6, 0, 0}, Sizes{300, 3, 400, 0, 0}}) {
    for (const std::int64_t room : {std::int64_t{0}, s.tokens, s.tokens * s.slots}) {
      SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, room for " << room);
      DeviceContext ctx;
      Context host_ctx;
      const OwnedTensor expert = random_experts(s);
      const DeviceTensor device_expert = DeviceTensor::of(expert, ctx);
      const std::int64_t first = s.n_experts / 3, n = s.n_experts / 2;
      ops::cuda::keep_experts(device_expert, first, n, ctx);
      ops::keep_experts(expert, first, n, host_ctx);
      EXPECT_EQ(device_expert.values(), values(expert));

      const Permutation p(expert, n, ctx);
      const OwnedTensor offset({n + 1}, DType::i32), slot_row(expert.view().shape(), DType::i32);
      fill(offset, p.offset_Ep.values());
      fill(slot_row, p.slot_row_TK.values());
      for (const double before : {0.0, 1e6}) {
        const OwnedTensor need = ints({before});
        const DeviceTensor device_need = DeviceTensor::of(need, ctx);
        ops::cuda::limit_rows(p.offset_Ep, p.slot_row_TK, device_need, room, ctx);
        ops::limit_rows(offset, slot_row, need, room, host_ctx);
        EXPECT_EQ(p.offset_Ep.values(), values(offset));
        EXPECT_EQ(p.slot_row_TK.values(), values(slot_row));
        EXPECT_EQ(device_need.values(), values(need));
      }
    }
  }
}

// Odd widths, whole packs, widths of several packs a lane, more slots than are loaded at once, rows that are
// strided.
const Sizes kSizes[] = {{1, 1, 1, 1, 0},   {7, 3, 4, 17, 5},   {9, 2, 3, 24, 0},   {12, 5, 40, 33, 3},
                        {5, 9, 16, 64, 8}, {21, 2, 6, 264, 8}, {3, 4, 5, 1032, 0}, {0, 2, 4, 8, 0}};

class CudaMoeRows : public ::testing::TestWithParam<DType> {
 protected:
  // f32: sums of up to ten terms, each rounding 6e-8; bf16: one more rounding of what is stored, to 8 bits.
  double relative() const { return GetParam() == DType::bf16 ? 0x1p-8 : 1e-6; }
};

TEST_P(CudaMoeRows, EqualTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, " << s.slots << " slots, width " << s.width);
    DeviceContext ctx;
    Context host_ctx;
    const DType dtype = GetParam();
    const Permutation p(random_experts(s), s.n_experts, ctx);
    const OwnedTensor slot_row({s.tokens, s.slots}, DType::i32);
    fill(slot_row, p.slot_row_TK.values());
    const auto routed = static_cast<std::int64_t>(p.offset_Ep.values().back());
    const Shape tokens{s.tokens, s.width}, rows{s.tokens * s.slots, s.width}, slots{s.tokens, s.slots};
    const auto input = [&](Shape shape, const char* name, DType type) {
      return DeviceTensor::of(normal(shape, DType::f64, name), type, ctx, s.margin);
    };
    const auto output = [&](Shape shape, DType type) {
      return s.margin > 0 ? DeviceTensor::strided(shape[0], shape[1], type, ctx, s.margin)
                          : DeviceTensor(shape, type, ctx);
    };
    const auto vector = [&](const char* name) {
      return DeviceTensor::of(normal({rows[0]}, DType::f64, name), DType::f32, ctx);
    };
    const DeviceTensor x = input(tokens, "x", dtype), row = input(rows, "row", dtype),
                       weight = input(slots, "weight", DType::f32), drow_weight = vector("drow_weight"),
                       out = input(tokens, "out", dtype), dx = input(tokens, "dx", dtype),
                       sum = output(tokens, dtype);
    const DeviceTensor sent = output(rows, dtype), drow = output(rows, dtype),
                       dweight = output(slots, DType::f32), row_weight({rows[0]}, DType::f32, ctx);

    const OwnedTensor x64 = x.as_f64(), row64 = row.as_f64(), weight64 = weight.as_f64(),
                      drow_weight64 = drow_weight.as_f64(), out64 = out.as_f64(), dx64 = dx.as_f64(),
                      sent64(rows, DType::f64), drow64(rows, DType::f64), dweight64(slots, DType::f64),
                      row_weight64({rows[0]}, DType::f64);
    ops::moe_dispatch_forward(sent64, row_weight64, x64, weight64, slot_row, host_ctx);
    ops::moe_dispatch_backward(dx64, dweight64, row64, drow_weight64, slot_row, host_ctx);
    ops::moe_combine_forward(out64, out64, row64, slot_row, host_ctx);
    ops::moe_combine_backward(drow64, x64, slot_row, host_ctx);

    ops::cuda::moe_dispatch_forward(sent, row_weight, x, weight, p.slot_row_TK, ctx);
    ops::cuda::moe_dispatch_backward(dx, dweight, row, drow_weight, p.slot_row_TK, ctx);
    ops::cuda::moe_combine_forward(sum, out, row, p.slot_row_TK, ctx);
    ops::cuda::moe_combine_forward(out, out, row, p.slot_row_TK, ctx);
    ops::cuda::moe_combine_backward(drow, x, p.slot_row_TK, ctx);

    // Of the rows only the first `routed` are set, and the others not touched.
    const auto first = [&](std::vector<double> values, std::int64_t width) {
      const auto end = values.begin() + static_cast<std::ptrdiff_t>(routed * width);
      EXPECT_TRUE(std::all_of(end, values.end(), [](double value) { return std::isnan(value); }));
      values.erase(end, values.end());
      return values;
    };
    EXPECT_EQ(first(sent.values(), s.width), first(values(sent64), s.width));
    EXPECT_EQ(first(drow.values(), s.width), first(values(drow64), s.width));
    EXPECT_EQ(first(row_weight.values(), 1), first(values(row_weight64), 1));
    EXPECT_EQ(dweight.values(), values(dweight64));
    // Sums of terms of both signs: their rounding is relative to the terms, not to what is left.
    const double absolute = dtype == DType::bf16 ? 1e-5 : 2e-6;
    EXPECT_TRUE(all_near(dx.values(), values(dx64), relative(), absolute));
    EXPECT_TRUE(all_near(out.values(), values(out64), relative(), absolute));
    EXPECT_EQ(sum.values(), out.values());
    for (const DeviceTensor* tensor : {&sent, &drow, &dx, &out, &sum, &dweight})
      EXPECT_TRUE(tensor->margins_untouched());
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaMoeRows, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return name_of(instance.param); });

}  // namespace
}  // namespace switchyard::test
