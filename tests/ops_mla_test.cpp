#include "ops/mla.h"

#include <gtest/gtest.h>

#include <array>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

TEST(MlaSplit, OneTokenOfTwoHeadsByHand) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    PoisonedContext ctx;
    const ops::MlaWidths widths{.heads = 2, .nope = 2, .rope = 1, .value = 3};
    OwnedTensor kv({1, 10}, dtype), k_rope({1, 1}, dtype), k({1, 6}, dtype), v({1, 6}, dtype);
    fill(kv, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10});  // of each head two of the key, then three of the value
    fill(k_rope, {-1});
    ops::mla_split_forward(k, v, kv, k_rope, widths, ctx);
    EXPECT_EQ(values(k), (std::vector<double>{1, 2, -1, 6, 7, -1}));
    EXPECT_EQ(values(v), (std::vector<double>{3, 4, 5, 8, 9, 10}));

    OwnedTensor dk({1, 6}, dtype), dv({1, 6}, dtype), dkv({1, 10}, dtype), dk_rope({1, 1}, dtype);
    fill(dk, {1, 2, 30, 4, 5, 600});
    fill(dv, {7, 8, 9, 10, 11, 12});
    ops::mla_split_backward(dkv, dk_rope, dk, dv, widths, ctx);
    EXPECT_EQ(values(dkv), (std::vector<double>{1, 2, 7, 8, 9, 4, 5, 10, 11, 12}));
    EXPECT_EQ(values(dk_rope), (std::vector<double>{630}));  // both heads have it
  }
}

struct Case {
  std::int64_t tokens;
  ops::MlaWidths widths;
};
const Case kCases[] = {{1, {1, 1, 2, 1}}, {3, {4, 5, 4, 7}}, {17, {3, 16, 8, 9}}, {257, {2, 9, 16, 4}}};

// The shared part of the key is a column range of the latent matrix.
TEST(MlaSplit, GradientMatchesFiniteDifferences) {
  for (const auto& [tokens, w] : kCases) {
    PoisonedContext ctx;
    const std::int64_t k_width = w.heads * (w.nope + w.rope), v_width = w.heads * w.value;
    const OwnedTensor kv = normal({tokens, w.heads * (w.nope + w.value)}, DType::f64, "kv");
    const OwnedTensor k_rope = normal_strided(tokens, w.rope, DType::f64, "k_rope");
    const OwnedTensor dk = normal({tokens, k_width}, DType::f64, "dk");
    const OwnedTensor dv = normal({tokens, v_width}, DType::f64, "dv");
    const OwnedTensor dkv(kv.view().shape(), DType::f64);
    const OwnedTensor dk_rope = OwnedTensor::strided(tokens, w.rope, DType::f64, 3);
    ops::mla_split_backward(dkv, dk_rope, dk, dv, w, ctx);
    EXPECT_TRUE(dk_rope.margins_untouched());
    const auto loss = [&] {
      const OwnedTensor k({tokens, k_width}, DType::f64), v({tokens, v_width}, DType::f64);
      ops::mla_split_forward(k, v, kv, k_rope, w, ctx);
      return dot(dk, k) + dot(dv, v);
    };
    // Up to 15,000 terms of order one in the loss: its rounding, 3e-12, over the step of 1e-5.
    const GradientTolerance tolerance{.absolute = 3e-6, .max_elements = 50};
    EXPECT_TRUE(gradient_matches(kv, dkv, loss, tolerance)) << tokens << " tokens, dkv";
    EXPECT_TRUE(gradient_matches(k_rope, dk_rope, loss, tolerance)) << tokens << " tokens, dk_rope";
  }
}

TEST(MlaSplit, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  const ops::MlaWidths w{.heads = 5, .nope = 9, .rope = 8, .value = 7};
  const std::int64_t tokens = 301;
  const OwnedTensor kv = normal({tokens, 5 * 16}, DType::f32, "kv"),
                    dk = normal({tokens, 5 * 17}, DType::f32, "dk");
  const OwnedTensor k_rope = normal({tokens, 8}, DType::f32, "r"),
                    dv = normal({tokens, 5 * 7}, DType::f32, "dv");
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor k({tokens, 5 * 17}, DType::f32), v({tokens, 5 * 7}, DType::f32);
    ops::mla_split_forward(k, v, kv, k_rope, w, ctx);
    return k;
  });
  expect_same_bits_on_any_thread_count([&] {
    OwnedTensor dkv({tokens, 5 * 16}, DType::f32), dk_rope({tokens, 8}, DType::f32);
    ops::mla_split_backward(dkv, dk_rope, dk, dv, w, ctx);
    return dk_rope;
  });
}

TEST(MlaSplit, RefusesOtherShapesAndDtypes) {
  PoisonedContext ctx;
  const ops::MlaWidths w{.heads = 2, .nope = 2, .rope = 1, .value = 3};
  const OwnedTensor kv({1, 10}, DType::f32), k_rope({1, 1}, DType::f32), k({1, 6}, DType::f32),
      v({1, 6}, DType::f32);
  const OwnedTensor wide({1, 11}, DType::f32), kv64({1, 10}, DType::f64), k_rope64({1, 1}, DType::f64);
  const OwnedTensor k64({1, 6}, DType::f64);
  for (const auto& [a, b, c, d] : {std::array{&wide, &v, &kv, &k_rope}, std::array{&k, &wide, &kv, &k_rope},
                                   std::array{&k, &v, &wide, &k_rope}, std::array{&k, &v, &kv, &wide},
                                   std::array{&k64, &v, &kv, &k_rope}, std::array{&k, &k64, &kv, &k_rope},
                                   std::array{&k, &v, &kv64, &k_rope}, std::array{&k, &v, &kv, &k_rope64}}) {
    EXPECT_THROW(ops::mla_split_forward(*a, *b, *c, *d, w, ctx), std::logic_error);
    EXPECT_THROW(ops::mla_split_backward(*c, *d, *a, *b, w, ctx), std::logic_error);
  }
}

}  // namespace
}  // namespace switchyard::test
