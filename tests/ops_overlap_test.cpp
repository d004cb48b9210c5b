#include "ops/overlap.h"

#include <gtest/gtest.h>

#include <vector>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

// Tokens whose slots have rows from `row` on in turn; every fifth slot is free.
OwnedTensor slots_of(std::int64_t tokens, std::int64_t slots) {
  OwnedTensor slot_row({tokens, slots}, DType::i32);
  double row = 0;
  for (std::int64_t i = 0; i < slot_row.numel(); ++i) set(slot_row, i, i % 5 == 3 ? -1 : row++);
  return slot_row;
}

double overlap(const Tensor& row_RD, const Tensor& slot_row_TK, Context& ctx) {
  const OwnedTensor sum({1}, DType::f64);
  ops::expert_overlap_forward(sum, row_RD, slot_row_TK, ctx);
  return sum[0];
}

TEST(ExpertOverlap, ByHand) {
  PoisonedContext ctx;
  OwnedTensor row({6, 2}, DType::f32), slot_row({4, 3}, DType::i32);
  // At right angles; opposite; 45 degrees from each of two that are at right angles; one, which has no other.
  fill(row, {3, 0, 0, 0.5, -2, 0, 1, 1, 7, 7, 0, 0});
  fill(slot_row, {0, 1, -1, 2, 0, -1, 0, 1, 3, -1, 4, -1});
  // 0, 1, (0 + 1/2 + 1/2) / 3, 0. A dozen roundings.
  EXPECT_NEAR(overlap(row, slot_row, ctx), 1 + 1.0 / 3, 1e-6);
  fill(slot_row, {5, 0, 1, 5, -1, -1, -1, -1, -1, -1, -1, -1});  // an output that is 0 is like none
  EXPECT_EQ(overlap(row, slot_row, ctx), 0);
}

TEST(ExpertOverlap, AFactorOfAnOutputChangesNothing) {
  PoisonedContext ctx;
  const OwnedTensor slot_row = slots_of(7, 4), row = normal({28, 5}, DType::f64, "row");
  const double before = overlap(row, slot_row, ctx);
  for (std::int64_t i = 0; i < row.numel(); ++i)
    set(row, i, row[i] * (i / 5 % 2 == 0 ? 1e-4 : -30));  // by rows
  EXPECT_GT(before, 0.1);
  EXPECT_NEAR(overlap(row, slot_row, ctx), before, 1e-9);  // 1e-20 beside squared lengths of 1e-8
}

TEST(ExpertOverlap, GradientMatchesFiniteDifferences) {
  for (const auto& [tokens, slots, width] :
       {std::tuple{1, 1, 3}, std::tuple{1, 2, 1}, std::tuple{6, 3, 4}, std::tuple{3, 8, 17}}) {
    PoisonedContext ctx;
    const OwnedTensor slot_row = slots_of(tokens, slots);
    const OwnedTensor row = normal_strided(tokens * slots, width, DType::f64, "row");
    const OwnedTensor drow = normal_strided(tokens * slots, width, DType::f64, "drow");
    const std::vector<double> before = values(drow);
    ops::expert_overlap_backward(drow, row, slot_row, 0.7, ctx);
    const auto loss = [&] { return 0.7 * overlap(row, slot_row, ctx); };
    EXPECT_TRUE(gradient_matches(row, difference(values(drow), before), loss, GradientTolerance{}));
    EXPECT_TRUE(drow.margins_untouched());
  }
}

TEST(ExpertOverlap, OutputsThatAreZeroHaveNumbers) {
  PoisonedContext ctx;
  const OwnedTensor slot_row = slots_of(1, 3), row({3, 2}, DType::f32), drow({3, 2}, DType::f32);
  fill(row, {0, 0, 1, 2, 0, 0});
  fill(drow, {1, 2, 3, 4, 5, 6});
  ops::expert_overlap_backward(drow, row, slot_row, 1, ctx);
  EXPECT_EQ(values(drow), (std::vector<double>{1, 2, 3, 4, 5, 6}));
}

TEST(ExpertOverlap, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  const OwnedTensor slot_row = slots_of(257, 4), row = normal({257 * 4, 129}, DType::f32, "row");
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor sum({1}, DType::f64);
    ops::expert_overlap_forward(sum, row, slot_row, ctx);
    return sum;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor drow = normal({257 * 4, 129}, DType::f32, "drow");
    ops::expert_overlap_backward(drow, row, slot_row, 0.3, ctx);
    return drow;
  });
}

TEST(ExpertOverlap, RefusesOtherShapesAndTypes) {
  PoisonedContext ctx;
  const OwnedTensor row({4, 3}, DType::f32), other({5, 3}, DType::f32), slot_row = slots_of(2, 2);
  const OwnedTensor sum({1}, DType::f64), sum32({1}, DType::f32), row64({4, 3}, DType::f64);
  EXPECT_THROW(ops::expert_overlap_forward(sum32, row, slot_row, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_overlap_forward(sum, row, row, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_overlap_backward(other, row, slot_row, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::expert_overlap_backward(row64, row, slot_row, 1, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
