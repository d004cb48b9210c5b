#include "ops/slots.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

// The experts of a token differ. A slot of padding is free, others seldom are.
OwnedTensor experts(const Tensor& token_T, std::int64_t slots, std::int64_t n_experts) {
  OwnedTensor expert({token_T.rows(), slots}, DType::i32), start({token_T.rows()}, DType::i32);
  fill_int(start, "expert", 0, n_experts);
  for (std::int64_t i = 0; i < expert.numel(); ++i) {
    const std::int64_t t = i / slots, k = i % slots;
    const bool is_free = get(token_T, t) < 0 || i % 11 == 5;
    set(expert, i,
        is_free ? -1.0 : std::fmod(start[t] + static_cast<double>(k), static_cast<double>(n_experts)));
  }
  return expert;
}

// A choice is exact: the CPU's of the same float32 weights.
void expect_slots_of_cpu(const Tensor& expert_TK, const Tensor& weight_TK, const Tensor& token_T,
                         std::int64_t n_experts, double factor, std::int64_t margin = 0) {
  SCOPED_TRACE(::testing::Message() << token_T.rows() << " tokens, " << n_experts << " experts, factor "
                                    << factor);
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor kept(expert_TK.shape(), DType::i32), kept_weight(expert_TK.shape(), DType::f32);
  const OwnedTensor dropped({1}, DType::i32);
  ops::limit_capacity(kept, kept_weight, dropped, expert_TK, weight_TK, token_T, n_experts, factor, host_ctx);

  const auto output = [&](DType dtype) {
    return margin > 0 ? DeviceTensor::strided(expert_TK.rows(), expert_TK.dim(1), dtype, ctx, margin)
                      : DeviceTensor(expert_TK.shape(), dtype, ctx);
  };
  const auto expert = DeviceTensor::of(expert_TK, ctx), token = DeviceTensor::of(token_T, ctx);
  const auto weight = DeviceTensor::of(weight_TK, DType::f32, ctx, margin);
  const auto run = [&] {
    const DeviceTensor device_kept = output(DType::i32), device_weight = output(DType::f32);
    const DeviceTensor device_dropped({1}, DType::i32, ctx);
    ops::cuda::limit_capacity(device_kept, device_weight, device_dropped, expert, weight, token, n_experts,
                              factor, ctx);
    EXPECT_EQ(device_dropped.values(), values(dropped));
    EXPECT_EQ(device_kept.values(), values(kept));
    const std::vector<double> actual = device_weight.values(), expected = values(kept_weight);
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_TRUE(actual[i] == expected[i] || (std::isnan(actual[i]) && std::isnan(expected[i]))) << i;
    EXPECT_TRUE(margin == 0 || (device_kept.margins_untouched() && device_weight.margins_untouched()));
  };
  run();
#ifdef SWITCHYARD_SIMT
  simt::set_block_order(simt::BlockOrder::descending);
  run();
  simt::set_block_order(simt::BlockOrder::ascending);
#endif
}

OwnedTensor some_padding(std::int64_t n_tokens) {
  OwnedTensor token({n_tokens}, DType::i32);
  fill_int(token, "token", -1, 6);
  return token;
}

// Room for less than the even share and for more; an expert with more slots than a block has threads; no
// tokens.
TEST(CudaCapacity, EqualsTheCpu) {
  struct {
    std::int64_t tokens, slots, n_experts, margin;
  } const sizes[] = {{1, 1, 1, 0},    {60, 3, 7, 5},  {30, 4, 40, 0},
                     {1500, 1, 1, 0}, {900, 2, 2, 3}, {0, 2, 3, 0}};
  for (const auto& s : sizes) {
    const OwnedTensor token = some_padding(s.tokens);
    const OwnedTensor expert = experts(token, s.slots, s.n_experts);
    for (const double factor : {0.3, 1.1, 50.0})
      expect_slots_of_cpu(expert, normal({s.tokens, s.slots}, DType::f32, "weight"), token, s.n_experts, factor,
                          s.margin);
  }
}

TEST(CudaCapacity, OfEqualWeightsTheFirstStay) {
  const OwnedTensor token = some_padding(1400);
  const OwnedTensor expert = experts(token, 2, 2), weight({1400, 2}, DType::f32);
  for (const int kinds : {1, 3}) {
    fill_int(weight, "few values", -1, kinds - 1);
    for (const double factor : {0.2, 0.9}) expect_slots_of_cpu(expert, weight, token, 2, factor);
  }
}

// Zeros of both signs are equal, and a NaN is as light as minus infinity.
TEST(CudaCapacity, SpecialValues) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(),
                   kInf = std::numeric_limits<double>::infinity();
  const OwnedTensor expert({8, 1}, DType::i32), weight({8, 1}, DType::f32),
      token = ints({0, 0, 0, 0, 0, 0, 0, 0});
  fill(expert, std::vector<double>(8, 0.0));
  fill(weight, {-0.0, 0.0, kNan, -kInf, 0.0, kNan, kInf, -1.0});
  for (const double factor : {0.25, 0.375, 0.5, 0.75, 0.875})
    expect_slots_of_cpu(expert, weight, token, 1, factor);
}

// No token counts: there is room for none.
TEST(CudaCapacity, NoRoom) {
  const OwnedTensor expert({3, 2}, DType::i32);
  fill(expert, {0, 1, 1, 0, -1, 0});
  expect_slots_of_cpu(expert, normal({3, 2}, DType::f32, "weight"), ints({-1, -1, -1}), 2, 2.0);
}

}  // namespace
}  // namespace switchyard::test
