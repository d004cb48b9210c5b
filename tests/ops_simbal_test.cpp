#include "ops/simbal.h"

#include <gtest/gtest.h>

#include "poisoned_context.h"
#include "tensors.h"

namespace switchyard::test {
namespace {

using Numbers = std::vector<double>;
constexpr DType kTypes[] = {DType::f32, DType::f64};

// |G - I| = 1/2, 1/4, 1/4, 1: 2 in all; five tokens, padding not among them.
TEST(SimBal, SumsTheDistancesFromTheIdentityByTheTokens) {
  for (const DType dtype : kTypes) {
    PoisonedContext ctx;
    const OwnedTensor gram({2, 2}, dtype), tokens = ints({2, 0, 3}), loss = doubles({7});
    fill(gram, {1.5, -0.25, -0.25, 0});
    ops::add_simbal_loss(loss, gram, tokens, 0.5, ctx);
    EXPECT_EQ(values(loss), Numbers{7 + 0.5 * 5 * 2});
    ops::simbal_slope(gram, gram, tokens, 0.5, ctx);
    EXPECT_EQ(values(gram), (Numbers{5, -5, -5, -5}));
  }
}

TEST(SimBal, WhereTheRowsAreOrthonormalThereIsNoGradient) {
  PoisonedContext ctx;
  const OwnedTensor gram({2, 2}, DType::f32), slope({2, 2}, DType::f32), tokens = ints({4}),
                                                                         loss = doubles({0});
  fill(gram, {1, 0, 0, 1});
  ops::add_simbal_loss(loss, gram, tokens, 0.5, ctx);
  ops::simbal_slope(slope, gram, tokens, 0.5, ctx);
  EXPECT_EQ(values(loss), Numbers{0});
  EXPECT_EQ(values(slope), (Numbers{0, 0, 0, 0}));
}

TEST(SimBal, RefusesOtherShapesAndTypes) {
  Context ctx;
  const OwnedTensor gram({2, 3}, DType::f32), square({2, 2}, DType::f32), tokens = ints({4}),
                                                                          loss = doubles({0});
  EXPECT_THROW(ops::add_simbal_loss(loss, gram, tokens, 1, ctx), std::logic_error);
  EXPECT_THROW(ops::add_simbal_loss(loss, square, doubles({4}), 1, ctx), std::logic_error);
  EXPECT_THROW(ops::simbal_slope(gram, square, tokens, 1, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
