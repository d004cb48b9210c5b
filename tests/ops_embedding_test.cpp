#include "ops/embedding.h"

#include <gtest/gtest.h>

#include "gradient_check.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

TEST(Embedding, CopiesRowsAndPadsWithZeros) {
  Context ctx;
  OwnedTensor weight({3, 2}, DType::f32);
  fill(weight, {1, 2, 3, 4, 5, 6});
  const OwnedTensor token = ints({2, -1, 0, 2});
  const OwnedTensor out = OwnedTensor::strided(4, 2, DType::f32);
  ops::embedding_forward(out, token, weight, ctx);
  EXPECT_EQ(values(out), (std::vector<double>{5, 6, 0, 0, 1, 2, 5, 6}));
  EXPECT_TRUE(out.margins_untouched());
}

TEST(Embedding, BackwardAddsEachTokensRowAndSkipsPadding) {
  Context ctx;
  const OwnedTensor token = ints({2, -1, 0, 2});
  OwnedTensor dout({4, 2}, DType::f32), dweight({3, 2}, DType::f32);
  fill(dout, {1, 2, 100, 200, 3, 4, 5, 6});
  fill(dweight, {10, 20, 30, 40, 50, 60});
  ops::embedding_backward(dweight, dout, token, ctx);
  EXPECT_EQ(values(dweight), (std::vector<double>{13, 24, 30, 40, 56, 68}));
}

TEST(Embedding, GradientMatchesFiniteDifferences) {
  Context ctx;
  for (std::int64_t width : {1, 3, 17}) {
    const OwnedTensor weight = normal({5, width}, DType::f64, "weight"),
                      dout = normal({9, width}, DType::f64, "dout");
    const OwnedTensor token = ints({4, 0, 4, -1, 1, 4, 0, -1, 2});
    const OwnedTensor dweight = normal({5, width}, DType::f64, "start");
    const auto before = values(dweight);
    ops::embedding_backward(dweight, dout, token, ctx);
    const auto loss = [&] {
      const OwnedTensor out({9, width}, DType::f64);
      ops::embedding_forward(out, token, weight, ctx);
      return dot(dout, out);
    };
    EXPECT_TRUE(gradient_matches(weight, difference(values(dweight), before), loss)) << "width " << width;
  }
}

TEST(Embedding, FloatFollowsDouble) {
  Context ctx;
  OwnedTensor token({200}, DType::i32);
  fill_int(token, "token", -1, 7);
  std::vector<std::vector<double>> results;
  for (DType dtype : {DType::f32, DType::f64}) {
    const OwnedTensor dout = normal_strided(200, 33, dtype, "dout"), dweight = normal({7, 33}, dtype, "start");
    ops::embedding_backward(dweight, dout, token, ctx);
    results.push_back(values(dweight));
  }
  // About 30 sums of size ~5, each rounded to 6e-8 of it; twice that for the worst of 231 random walks.
  EXPECT_TRUE(all_near(results[0], results[1], 0, 6e-6));
}

TEST(Embedding, SameBitsOnAnyThreadCount) {
  Context ctx;
  OwnedTensor token({129}, DType::i32);
  fill_int(token, "token", -1, 5);  // many tokens of one kind
  const OwnedTensor dout = normal({129, 257}, DType::f32, "dout"),
                    weight = normal({5, 257}, DType::f32, "weight");
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dweight = normal({5, 257}, DType::f32, "start");
    ops::embedding_backward(dweight, dout, token, ctx);
    return dweight;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor out({129, 257}, DType::f32);
    ops::embedding_forward(out, token, weight, ctx);
    return out;
  });
}

TEST(Embedding, RefusesOtherShapesAndDtypes) {
  Context ctx;
  const OwnedTensor weight({5, 4}, DType::f32), out({3, 4}, DType::f32), wide({3, 5}, DType::f32);
  const OwnedTensor out64({3, 4}, DType::f64), token({3}, DType::i32), two({2}, DType::i32),
      real({3}, DType::f32);
  EXPECT_THROW(ops::embedding_forward(wide, token, weight, ctx), std::logic_error);
  EXPECT_THROW(ops::embedding_forward(out, two, weight, ctx), std::logic_error);
  EXPECT_THROW(ops::embedding_forward(out, real, weight, ctx), std::logic_error);
  EXPECT_THROW(ops::embedding_backward(weight, out64, token, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
