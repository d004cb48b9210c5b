// What operators tell a profile (ops/profile.h), by a clock of the test's own.
#include "ops/profile.h"

#include <gtest/gtest.h>

#include "ops/linear.h"
#include "tensors.h"

namespace switchyard::ops {
namespace {

double now = 0;
double test_clock() { return now; }

void skip_warm_up(Profile& profile) {
  for (std::int64_t i = 0; i < Profile::kWarmUp; ++i) {
    profile.begin_step();
    profile.begin("warm");
    profile.end();
    profile.end_step();
  }
}

TEST(Profile, AnOperatorIsWithoutThoseThatItCalls) {
  Context ctx;
  Profile profile(ctx, test_clock);
  skip_warm_up(profile);
  profile.begin_step();
  now += 1;
  profile.begin("void space::outer(int)");
  now += 2;
  profile.add_bytes(100), profile.add_flops(50);
  profile.begin("void space::inner(int)");
  now += 4;
  profile.add_bytes(60), profile.add_flops(50);
  profile.end();
  now += 8;
  profile.end();
  profile.end_step();
  EXPECT_EQ(profile.steps(), 1);
  EXPECT_EQ(profile.seconds(), 15);
  const auto rows = profile.rows();
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].name, "outer");
  EXPECT_EQ(rows[0].seconds, 10);
  EXPECT_EQ(rows[0].bytes, 40);
  EXPECT_EQ(rows[0].all_flops(), 0);
  EXPECT_EQ(rows[1].name, "inner");
  EXPECT_EQ(rows[1].seconds, 4);
  EXPECT_EQ(rows[1].bytes, 60);
  EXPECT_EQ(rows[1].all_flops(), 50);
  EXPECT_EQ(rows[2].name, "outside operators");
  EXPECT_EQ(rows[2].seconds, 1);
}

TEST(Profile, AProductSaysItsBytesAndFlops) {
  Context ctx;
  Profile profile(ctx);
  ctx.profile = &profile;
  const test::OwnedTensor in_TK({2, 3}, DType::f32), weight_NK({5, 3}, DType::f32), out_TN({2, 5}, DType::f32);
  skip_warm_up(profile);
  linear_forward(out_TN, in_TK, weight_NK, Write::set, ctx);  // in no step
  profile.begin_step();
  linear_forward(out_TN, in_TK, weight_NK, Write::set, ctx);
  linear_forward(out_TN, in_TK, weight_NK, Write::add, ctx);
  profile.end_step();
  const auto rows = profile.rows();
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].name, "linear_forward");
  EXPECT_EQ(rows[0].calls, 2);
  EXPECT_EQ(rows[0].all_flops(), 2 * 2 * 2 * 3 * 5);
  // The second one reads what it adds to.
  EXPECT_EQ(rows[0].bytes, 4 * (2 * (6 + 15 + 10) + 10));
}

// Three experts of 2 x 3 weights: the first has two rows, the second none, the last one; one row is nobody's.
TEST(Profile, AnExpertWithoutRowsMovesNothing) {
  Context ctx;
  Profile profile(ctx, steady_seconds, 0);
  ctx.profile = &profile;
  const test::OwnedTensor in_RK({4, 3}, DType::f32), weight_ENK({3, 2, 3}, DType::f32),
      out_RN({4, 2}, DType::f32);
  const test::OwnedTensor offset_Ep({4}, DType::i32);
  test::fill(offset_Ep, {0, 2, 2, 3});
  profile.begin_step();
  grouped_linear_forward(out_RN, in_RK, weight_ENK, offset_Ep, ctx);
  grouped_linear_backward_input(in_RK, out_RN, weight_ENK, offset_Ep, ctx);
  profile.end_step();
  for (const Profile::Row& row : profile.rows()) {
    if (row.name == "outside operators") continue;
    EXPECT_EQ(row.calls, 1) << row.name;
    EXPECT_EQ(row.all_flops(), 2 * 3 * 6) << row.name;
    EXPECT_EQ(row.bytes, 4 * (3 * 3 + 2 * 6 + 3 * 2 + 4)) << row.name;
  }
  const test::OwnedTensor dweight_ENK({3, 2, 3}, DType::f32);
  Profile again(ctx, steady_seconds, 0);
  ctx.profile = &again;
  again.begin_step();
  grouped_linear_backward_weight(dweight_ENK, out_RN, in_RK, offset_Ep, ctx);
  again.end_step();
  double bytes = 0;
  for (const Profile::Row& row : again.rows()) bytes += row.bytes;
  EXPECT_EQ(bytes, 4 * (3 * 2 + 3 * 3 + 2 * 2 * 6 + 4));  // gradients are read and written
}

}  // namespace
}  // namespace switchyard::ops
