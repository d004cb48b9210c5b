#include "ops/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "rounding_bound.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Permutation {
  OwnedTensor count_E, offset_Ep, slot_row_TK;
  std::int64_t n_routed;

  Permutation(const Tensor& expert_TK, std::int64_t n_experts, Context& ctx)
      : count_E({n_experts}, DType::i32),
        offset_Ep({n_experts + 1}, DType::i32),
        slot_row_TK(expert_TK.shape(), DType::i32) {
    ops::moe_permutation(count_E, offset_Ep, slot_row_TK, expert_TK, ctx);
    n_routed = static_cast<std::int64_t>(offset_Ep[n_experts]);
  }
};

OwnedTensor experts(std::int64_t tokens, std::int64_t slots, const std::vector<double>& values) {
  OwnedTensor expert({tokens, slots}, DType::i32);
  fill(expert, values);
  return expert;
}

TEST(MoePermutation, FourTokensByHand) {
  PoisonedContext ctx;
  // Experts 1 and 3 are empty, slots (1, 0) and (3, 1) free.
  const Permutation p(experts(4, 2, {2, 0, -1, 2, 0, 2, 2, -1}), 4, ctx);
  EXPECT_EQ(values(p.count_E), (std::vector<double>{2, 0, 4, 0}));
  EXPECT_EQ(values(p.offset_Ep), (std::vector<double>{0, 2, 2, 6, 6}));
  EXPECT_EQ(values(p.slot_row_TK), (std::vector<double>{2, 0, -1, 3, 1, 4, 5, -1}));
}

TEST(MoePermutation, AllToOneExpert) {
  PoisonedContext ctx;
  const Permutation p(experts(3, 1, {1, 1, 1}), 3, ctx);
  EXPECT_EQ(values(p.count_E), (std::vector<double>{0, 3, 0}));
  EXPECT_EQ(values(p.offset_Ep), (std::vector<double>{0, 0, 3, 3}));
  EXPECT_EQ(values(p.slot_row_TK), (std::vector<double>{0, 1, 2}));
}

TEST(MoePermutation, NoTokenAnywhere) {
  PoisonedContext ctx;
  const Permutation free(experts(2, 2, {-1, -1, -1, -1}), 3, ctx);
  EXPECT_EQ(values(free.count_E), (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(values(free.offset_Ep), (std::vector<double>{0, 0, 0, 0}));
  EXPECT_EQ(values(free.slot_row_TK), (std::vector<double>{-1, -1, -1, -1}));
  const Permutation none(experts(0, 2, {}), 2, ctx);
  EXPECT_EQ(values(none.count_E), (std::vector<double>{0, 0}));
  EXPECT_EQ(values(none.offset_Ep), (std::vector<double>{0, 0, 0}));
}

struct Sizes {
  std::int64_t tokens, slots, n_experts, width;
};
const Sizes kSizes[] = {{1, 1, 1, 1},   {1, 3, 5, 3},   {3, 2, 4, 17},    {17, 4, 6, 33},
                        {65, 2, 40, 5}, {129, 3, 8, 2}, {257, 4, 16, 129}};

std::string describe(const Sizes& s) {
  return std::to_string(s.tokens) + " tokens, " + std::to_string(s.slots);
}

// About one slot in n_experts + 1 is free; a token may name an expert twice.
OwnedTensor random_experts(const Sizes& s) {
  OwnedTensor expert({s.tokens, s.slots}, DType::i32);
  fill_int(expert, "expert", -1, s.n_experts);
  return expert;
}

TEST(MoePermutation, SortsTheSlotsStably) {
  for (const Sizes& s : kSizes) {
    PoisonedContext ctx;
    const OwnedTensor expert = random_experts(s);
    const Permutation p(expert, s.n_experts, ctx);
    // Walking the slots in order meets each expert's rows in order, from its offset on: this fixes every row.
    std::vector<double> next_row = values(p.offset_Ep);
    std::int64_t taken = 0;
    for (std::int64_t slot = 0; slot < expert.numel(); ++slot) {
      if (expert[slot] < 0) {
        ASSERT_EQ(p.slot_row_TK[slot], -1);
      } else {
        ASSERT_EQ(p.slot_row_TK[slot], next_row[static_cast<std::size_t>(expert[slot])]++) << "slot " << slot;
        ++taken;
      }
    }
    double sum = 0;
    for (std::int64_t e = 0; e < s.n_experts; ++e) {
      EXPECT_EQ(p.offset_Ep[e], sum);
      sum += p.count_E[e];
      EXPECT_EQ(next_row[static_cast<std::size_t>(e)], sum);
    }
    EXPECT_EQ(sum, static_cast<double>(taken));
    EXPECT_EQ(p.n_routed, taken);
  }
}

TEST(MoePermutation, RefusesAnExpertThatIsNotThere) {
  PoisonedContext ctx;
  EXPECT_THROW(Permutation(experts(1, 2, {0, 3}), 3, ctx), std::logic_error);
  const OwnedTensor expert = experts(1, 2, {0, 1}), count({3}, DType::i32), slot_row({1, 2}, DType::i32);
  EXPECT_THROW(ops::moe_permutation(count, count, slot_row, expert, ctx), std::logic_error);
  // A column of a wider matrix: its elements do not follow one another.
  const OwnedTensor wide = experts(2, 2, {0, 1, 1, 0}), offset({4}, DType::i32), column({2, 1}, DType::i32);
  EXPECT_THROW(ops::moe_permutation(count, offset, column, wide.view().columns(0, 1), ctx), std::logic_error);
}

TEST(MoeDispatchCombine, TwoTokensByHand) {
  PoisonedContext ctx;
  // Rows: expert 0 has slots (0, 1) and (1, 0), expert 1 has slot (0, 0); slot (1, 1) is free, row 3 spare.
  const Permutation p(experts(2, 2, {1, 0, 0, -1}), 2, ctx);
  OwnedTensor x({2, 2}, DType::f64), weight({2, 2}, DType::f64), out({2, 2}, DType::f64);
  const OwnedTensor row({4, 2}, DType::f64), row_weight({4}, DType::f64), drow({4, 2}, DType::f64);
  fill(x, {1, 2, 3, 4});
  fill(weight, {2, 3, 4, kNan});
  ops::moe_dispatch_forward(row, row_weight, x, weight, p.slot_row_TK, ctx);
  EXPECT_EQ(values(row.view().slice(0, 3)), (std::vector<double>{1, 2, 3, 4, 1, 2}));
  EXPECT_EQ(values(row_weight.view().slice(0, 3)), (std::vector<double>{3, 4, 2}));
  fill(row.view().slice(0, 3), {1, 2, 10, 20, 5, 6});
  fill(out, {100, 0, 0, 100});
  ops::moe_combine_forward(out, out, row, p.slot_row_TK, ctx);
  EXPECT_EQ(values(out), (std::vector<double>{106, 8, 10, 120}));

  OwnedTensor dout({2, 2}, DType::f64), dx({2, 2}, DType::f64), drow_weight({4}, DType::f64);
  const OwnedTensor dweight({2, 2}, DType::f64);
  fill(dout, {1, -1, 2, 0});
  ops::moe_combine_backward(drow, dout, p.slot_row_TK, ctx);
  EXPECT_EQ(values(drow.view().slice(0, 3)), (std::vector<double>{1, -1, 2, 0, 1, -1}));
  fill(drow.view().slice(0, 3), {3, -3, 8, 0, 2, -2});
  fill(drow_weight, {7, 8, 9, kNan});
  fill(dx, {0, 0, 0, 1000});
  ops::moe_dispatch_backward(dx, dweight, drow, drow_weight, p.slot_row_TK, ctx);
  EXPECT_EQ(values(dx), (std::vector<double>{5, -5, 8, 1000}));
  EXPECT_EQ(values(dweight), (std::vector<double>{9, 7, 8, 0}));
  for (std::int64_t spare : {6, 7}) EXPECT_TRUE(std::isnan(row[spare]) && std::isnan(drow[spare]));
  EXPECT_TRUE(std::isnan(row_weight[3]));
}

TEST(MoeDispatchCombine, GiveBackTheTokenOnceASlot) {
  for (std::int64_t slots : {1, 2, 4, 8}) {
    PoisonedContext ctx;
    OwnedTensor expert({65, slots}, DType::i32);
    fill_int(expert, "expert", 0, 10);
    const Permutation p(expert, 10, ctx);
    const OwnedTensor x = normal_strided(65, 17, DType::f32, "x"), out({65, 17}, DType::f32);
    const OwnedTensor row({65 * slots, 17}, DType::f32), weight = normal({65, slots}, DType::f32, "weight");
    const OwnedTensor row_weight({65 * slots}, DType::f32), returned({65, slots}, DType::f32);
    fill(out, std::vector<double>(static_cast<std::size_t>(out.numel()), 0.0));
    ops::moe_dispatch_forward(row, row_weight, x, weight, p.slot_row_TK, ctx);
    ops::moe_combine_forward(out, out, row, p.slot_row_TK, ctx);
    std::vector<double> expected = values(x);
    for (double& value : expected) value *= static_cast<double>(slots);
    // Each partial sum is rounded.
    const double relative = slots <= 2 ? 0 : static_cast<double>(slots) * kFloatUnit;
    EXPECT_TRUE(all_near(values(out), expected, relative, 0)) << slots << " slots";

    fill(out, std::vector<double>(static_cast<std::size_t>(out.numel()), 0.0));
    ops::moe_dispatch_backward(out, returned, row, row_weight, p.slot_row_TK, ctx);
    EXPECT_TRUE(all_near(values(out), expected, relative, 0)) << slots << " slots";
    EXPECT_TRUE(same_bits(returned, weight)) << slots << " slots";
  }
}

// Tensors of one layer whose rows beyond R, and whose weights of free slots, are NaN.
struct Layer {
  Sizes s;
  PoisonedContext ctx;
  OwnedTensor expert;
  Permutation p;
  OwnedTensor x, row, weight, row_weight, dout;

  Layer(const Sizes& sizes, DType dtype)
      : s(sizes),
        expert(random_experts(s)),
        p(expert, s.n_experts, ctx),
        x(normal_strided(s.tokens, s.width, dtype, "x")),
        row(normal_strided(s.tokens * s.slots, s.width, dtype, "row", 1.0, 2)),
        weight(normal({s.tokens, s.slots}, dtype, "weight")),
        row_weight(normal({s.tokens * s.slots}, dtype, "row_weight")),
        dout(normal_strided(s.tokens, s.width, dtype, "dout", 1.0, 3)) {
    poison(spare(row));
    poison(spare(row_weight));
    for (std::int64_t slot = 0; slot < expert.numel(); ++slot)
      if (expert[slot] < 0) set(weight, slot, kNan);
  }
  std::int64_t n_rows() const { return s.tokens * s.slots; }
  Tensor routed(const Tensor& rows) const { return rows.slice(0, p.n_routed); }
  Tensor spare(const Tensor& rows) const { return rows.slice(p.n_routed, n_rows() - p.n_routed); }
  bool spare_is_nan(const Tensor& rows) const {
    return std::ranges::all_of(values(spare(rows)), [](double value) { return std::isnan(value); });
  }
};

TEST(MoeDispatchCombine, GradientsMatchFiniteDifferences) {
  for (const Sizes& s : kSizes) {
    Layer layer(s, DType::f64);
    const Tensor slot_row = layer.p.slot_row_TK;
    const GradientTolerance tolerance{.max_elements = 50};

    // Dispatch: the loss weighs the routed rows and their weights.
    const OwnedTensor drow = normal_strided(layer.n_rows(), s.width, DType::f64, "drow"),
                      drow_weight = normal({layer.n_rows()}, DType::f64, "drow_weight");
    poison(layer.spare(drow));  // never read
    poison(layer.spare(drow_weight));
    const OwnedTensor rows = OwnedTensor::strided(layer.n_rows(), s.width, DType::f64, 1),
                      row_weights({layer.n_rows()}, DType::f64);
    const auto dispatch_loss = [&] {
      ops::moe_dispatch_forward(rows, row_weights, layer.x, layer.weight, slot_row, layer.ctx);
      return dot(layer.routed(drow), layer.routed(rows)) +
             dot(layer.routed(drow_weight), layer.routed(row_weights));
    };
    const OwnedTensor dx = normal_strided(s.tokens, s.width, DType::f64, "dx");
    const OwnedTensor dweight({s.tokens, s.slots}, DType::f64);
    const std::vector<double> dx_before = values(dx);
    ops::moe_dispatch_backward(dx, dweight, drow, drow_weight, slot_row, layer.ctx);
    EXPECT_TRUE(gradient_matches(layer.x, difference(values(dx), dx_before), dispatch_loss, tolerance))
        << describe(s);
    for (std::int64_t slot = 0; slot < dweight.numel(); ++slot)
      EXPECT_TRUE(layer.expert[slot] >= 0 || dweight[slot] == 0) << describe(s) << ", slot " << slot;
    // A free slot's weight is NaN here; with a number there its differences are zero as well.
    for (std::int64_t slot = 0; slot < dweight.numel(); ++slot)
      if (layer.expert[slot] < 0) set(layer.weight, slot, 1);
    EXPECT_TRUE(gradient_matches(layer.weight, dweight, dispatch_loss, tolerance)) << describe(s);
    EXPECT_TRUE(layer.spare_is_nan(rows) && layer.spare_is_nan(row_weights)) << describe(s);
    EXPECT_TRUE(rows.margins_untouched() && dx.margins_untouched()) << describe(s);

    // Combine.
    const OwnedTensor out = OwnedTensor::strided(s.tokens, s.width, DType::f64, 2);
    const auto combine_loss = [&] {
      ops::moe_combine_forward(out, layer.x, layer.row, slot_row, layer.ctx);
      return dot(layer.dout, out);
    };
    const OwnedTensor drow_set = OwnedTensor::strided(layer.n_rows(), s.width, DType::f64, 1);
    ops::moe_combine_backward(drow_set, layer.dout, slot_row, layer.ctx);
    if (layer.p.n_routed > 0) {
      EXPECT_TRUE(gradient_matches(layer.routed(layer.row), layer.routed(drow_set), combine_loss, tolerance));
    }
    EXPECT_TRUE(layer.spare_is_nan(drow_set) && drow_set.margins_untouched() && out.margins_untouched());

    // To what the tensor itself holds.
    ops::moe_combine_forward(out, layer.x, layer.row, slot_row, layer.ctx);
    ops::moe_combine_forward(layer.x, layer.x, layer.row, slot_row, layer.ctx);
    EXPECT_TRUE(same_bits(layer.x, out)) << describe(s);
  }
}

TEST(MoeDispatchCombine, FloatFollowsDouble) {
  for (const Sizes& s : kSizes) {
    const auto run = [&](DType dtype, bool magnitudes) {
      Layer layer(s, dtype);
      if (magnitudes) layer.row = absolute(layer.row);
      const Tensor slot_row = layer.p.slot_row_TK;
      const OwnedTensor out({s.tokens, s.width}, dtype), dx({s.tokens, s.width}, dtype),
          dweight({s.tokens, s.slots}, dtype);
      fill(out, std::vector<double>(static_cast<std::size_t>(out.numel()), 0.0));
      fill(dx, values(out));
      ops::moe_combine_forward(out, out, layer.row, slot_row, layer.ctx);
      ops::moe_dispatch_backward(dx, dweight, layer.row, layer.row_weight, slot_row, layer.ctx);
      return std::vector{values(out), values(dx)};
    };
    const auto actual = run(DType::f32, false), exact = run(DType::f64, false),
               magnitude = run(DType::f64, true);
    EXPECT_TRUE(within_rounding(actual[0], exact[0], magnitude[0], s.slots)) << describe(s);
    EXPECT_TRUE(within_rounding(actual[1], exact[1], magnitude[1], s.slots)) << describe(s);
  }
}

TEST(MoeDispatchCombine, SameBitsOnAnyThreadCount) {
  Layer layer({257, 4, 16, 129}, DType::f32);
  const Sizes& s = layer.s;
  const Tensor slot_row = layer.p.slot_row_TK;
  // Rows beyond R keep the NaN that every OwnedTensor starts with.
  const auto dispatch = [&] {
    OwnedTensor row({layer.n_rows(), s.width}, DType::f32), row_weight({layer.n_rows()}, DType::f32);
    ops::moe_dispatch_forward(row, row_weight, layer.x, layer.weight, slot_row, layer.ctx);
    return row;
  };
  const auto dispatch_backward = [&] {
    OwnedTensor dx = normal({s.tokens, s.width}, DType::f32, "dx"), dweight({s.tokens, s.slots}, DType::f32);
    ops::moe_dispatch_backward(dx, dweight, layer.row, layer.row_weight, slot_row, layer.ctx);
    return dx;
  };
  const auto combine = [&] {
    OwnedTensor out = normal({s.tokens, s.width}, DType::f32, "out");
    ops::moe_combine_forward(out, out, layer.row, slot_row, layer.ctx);
    return out;
  };
  const auto combine_backward = [&] {
    OwnedTensor drow({layer.n_rows(), s.width}, DType::f32);
    ops::moe_combine_backward(drow, layer.dout, slot_row, layer.ctx);
    return drow;
  };
  expect_same_bits_on_any_thread_count(dispatch);
  expect_same_bits_on_any_thread_count(dispatch_backward);
  expect_same_bits_on_any_thread_count(combine);
  expect_same_bits_on_any_thread_count(combine_backward);
}

TEST(MoeDispatchCombine, AllSlotsFree) {
  PoisonedContext ctx;
  const Permutation p(experts(2, 2, {-1, -1, -1, -1}), 3, ctx);
  const OwnedTensor x({2, 3}, DType::f32), row({4, 3}, DType::f32), weight({2, 2}, DType::f32),
      row_weight({4}, DType::f32);  // all NaN
  const OwnedTensor drow({4, 3}, DType::f32), dweight({2, 2}, DType::f32);
  const OwnedTensor out = normal({2, 3}, DType::f32, "out"), before = normal({2, 3}, DType::f32, "out");
  ops::moe_dispatch_forward(row, row_weight, x, weight, p.slot_row_TK, ctx);
  ops::moe_combine_forward(out, out, row, p.slot_row_TK, ctx);
  ops::moe_combine_backward(drow, x, p.slot_row_TK, ctx);
  ops::moe_dispatch_backward(out, dweight, drow, row_weight, p.slot_row_TK, ctx);
  EXPECT_TRUE(same_bits(out, before));
  EXPECT_EQ(values(dweight), (std::vector<double>{0, 0, 0, 0}));
  for (const OwnedTensor* tensor : {&row, &row_weight, &drow})
    for (double value : values(*tensor)) EXPECT_TRUE(std::isnan(value));
}

TEST(MoeKeepExperts, NumbersThoseThatAreHereAndFreesTheOthers) {
  PoisonedContext ctx;
  const OwnedTensor expert = experts(3, 3, {0, 1, 2, 3, 4, 5, -1, 2, 4});
  ops::keep_experts(expert, 2, 2, ctx);
  EXPECT_EQ(values(expert), (std::vector<double>{-1, -1, 0, 1, -1, -1, -1, 0, -1}));
  ops::keep_experts(expert, 0, 0, ctx);
  EXPECT_EQ(values(expert), std::vector<double>(9, -1));
}

TEST(MoeLimitRows, ClipsAtTheRoomAndKeepsTheLargestNeed) {
  PoisonedContext ctx;
  const std::vector<double> slots = {2, 0, -1, 2, 0, 2, 2, -1}, offsets = {0, 2, 2, 6, 6};
  const OwnedTensor need = ints({5});
  struct Case {
    std::int64_t room;
    std::vector<double> offset, slot_row;
    double need;
  };
  for (const Case& c :
       {Case{9, offsets, {2, 0, -1, 3, 1, 4, 5, -1}, 6}, Case{6, offsets, {2, 0, -1, 3, 1, 4, 5, -1}, 6},
        Case{4, {0, 2, 2, 4, 4}, {2, 0, -1, 3, 1, -1, -1, -1}, 6},
        Case{1, {0, 1, 1, 1, 1}, {-1, 0, -1, -1, -1, -1, -1, -1}, 6},
        Case{0, {0, 0, 0, 0, 0}, std::vector<double>(8, -1), 6}}) {
    SCOPED_TRACE(c.room);
    const Permutation p(experts(4, 2, slots), 4, ctx);
    ops::limit_rows(p.offset_Ep, p.slot_row_TK, need, c.room, ctx);
    EXPECT_EQ(values(p.offset_Ep), c.offset);
    EXPECT_EQ(values(p.slot_row_TK), c.slot_row);
    EXPECT_EQ(need[0], c.need);
  }
  const Permutation fewer(experts(1, 2, {1, -1}), 4, ctx);
  ops::limit_rows(fewer.offset_Ep, fewer.slot_row_TK, need, 1, ctx);
  EXPECT_EQ(need[0], 6);
}

// More rows than slots, as where a rank has room for what may come: those behind are not touched.
TEST(MoeDispatchCombine, RoomForMoreRowsThanSlotsChangesNothing) {
  PoisonedContext ctx;
  const Permutation p(experts(3, 2, {0, 1, -1, 0, 1, -1}), 2, ctx);
  const OwnedTensor x = normal({3, 5}, DType::f64, "x"), weight = normal({3, 2}, DType::f64, "weight");
  const OwnedTensor row({6, 5}, DType::f64), more({9, 5}, DType::f64), row_weight({6}, DType::f64),
      more_weight({9}, DType::f64), out({3, 5}, DType::f64), out_of_more({3, 5}, DType::f64);
  ops::moe_dispatch_forward(row, row_weight, x, weight, p.slot_row_TK, ctx);
  ops::moe_dispatch_forward(more, more_weight, x, weight, p.slot_row_TK, ctx);
  ops::moe_combine_forward(out, x, row, p.slot_row_TK, ctx);
  ops::moe_combine_forward(out_of_more, x, more, p.slot_row_TK, ctx);
  EXPECT_TRUE(same_bits(row.view().slice(0, 4), more.view().slice(0, 4)));
  EXPECT_TRUE(same_bits(row_weight.view().slice(0, 4), more_weight.view().slice(0, 4)));
  EXPECT_TRUE(same_bits(out, out_of_more));
  for (const double value : values(more.view().slice(4, 5))) EXPECT_TRUE(std::isnan(value));
}

TEST(MoeDispatchCombine, RefusesOtherShapes) {
  PoisonedContext ctx;
  const Permutation p(experts(2, 2, {0, 1, 1, 0}), 2, ctx);
  const OwnedTensor x({2, 3}, DType::f32), row({4, 3}, DType::f32), short_row({3, 3}, DType::f32);
  const OwnedTensor weight({2, 2}, DType::f32), wide({2, 5}, DType::f32), x3({3, 3}, DType::f32);
  const OwnedTensor row_weight({4}, DType::f32), short_weight({3}, DType::f32);
  const Tensor slot_row = p.slot_row_TK;
  EXPECT_THROW(ops::moe_dispatch_forward(short_row, row_weight, x, weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_forward(row, row_weight, x3, weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_forward(row, short_weight, x, weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_forward(row, row_weight, x, wide, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_backward(wide, weight, row, row_weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_backward(x, wide, row, row_weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_backward(x, weight, row, short_weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_combine_forward(wide, wide, row, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_combine_forward(x, wide, row, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_combine_backward(short_row, x, slot_row, ctx), std::logic_error);
}

TEST(MoePermutation, RefusesOtherDtypes) {
  PoisonedContext ctx;
  const OwnedTensor count({2}, DType::i32), offset({3}, DType::i32), slot_row({2, 2}, DType::i32);
  const OwnedTensor float2({2}, DType::f32), float3({3}, DType::f32), float22({2, 2}, DType::f32);
  const OwnedTensor expert = experts(2, 2, {0, 1, 1, 0});
  EXPECT_THROW(ops::moe_permutation(float2, offset, slot_row, expert, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_permutation(count, float3, slot_row, expert, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_permutation(count, offset, float22, expert, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_permutation(count, offset, slot_row, float22, ctx), std::logic_error);
}

TEST(MoeDispatchCombine, RefusesOtherDtypes) {
  PoisonedContext ctx;
  const Permutation p(experts(2, 2, {0, 1, 1, 0}), 2, ctx);
  const OwnedTensor x({2, 3}, DType::f32), row({4, 3}, DType::f32), weight({2, 2}, DType::f32),
      row_weight({4}, DType::f32);
  const OwnedTensor x64({2, 3}, DType::f64), row64({4, 3}, DType::f64), weight64({2, 2}, DType::f64),
      row_weight64({4}, DType::f64);
  const Tensor slot_row = p.slot_row_TK;
  EXPECT_THROW(ops::moe_dispatch_forward(row64, row_weight, x, weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_forward(row, row_weight64, x, weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_forward(row, row_weight, x, weight64, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_forward(row, row_weight, x, weight, weight, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_backward(x, weight, row64, row_weight, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_dispatch_backward(x, weight64, row, row_weight64, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_combine_forward(x64, x64, row, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_combine_forward(x, x64, row, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_combine_forward(x, x, row, weight, ctx), std::logic_error);
  EXPECT_THROW(ops::moe_combine_backward(row64, x, slot_row, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
