#include "ops/classifier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

TEST(Classifier, ThreeTokensByHand) {
  PoisonedContext ctx;
  OwnedTensor x({3, 1}, DType::f64), weight({2, 1}, DType::f64), dweight({2, 1}, DType::f64);
  const OwnedTensor loss({3}, DType::f64), dx({3, 1}, DType::f64), target = ints({0, -1, 1});
  const double l = std::log(3.0);
  fill(x, {1, 5, 1});
  fill(weight, {0, l});  // logits 0 and ln 3: probabilities 1/4 and 3/4
  const std::vector<double> expected_loss{std::log(4.0), 0, std::log(4.0 / 3)};
  ops::classifier_forward(loss, x, weight, target, ctx);
  EXPECT_TRUE(all_near(values(loss), expected_loss, 1e-15, 0));

  poison(loss);
  fill(dweight, {100, 200});
  ops::classifier_forward_backward(loss, dx, dweight, x, weight, target, 2.0, ctx);
  EXPECT_TRUE(all_near(values(loss), expected_loss, 1e-15, 0));
  // dz: 2 (-3/4, 3/4), (0, 0), 2 (1/4, -1/4)
  EXPECT_TRUE(all_near(values(dx), {1.5 * l, 0, -0.5 * l}, 1e-14, 0));
  EXPECT_TRUE(all_near(values(dweight), {99, 201}, 1e-15, 0));
}

TEST(Classifier, OneWordIsNeverWrong) {
  for (DType dtype : {DType::f32, DType::f64}) {
    PoisonedContext ctx;
    const OwnedTensor x = normal({3, 4}, dtype, "x"), weight = normal({1, 4}, dtype, "weight");
    const OwnedTensor loss({3}, dtype), dx({3, 4}, dtype), target = ints({0, 0, -1});
    const OwnedTensor dweight = normal({1, 4}, dtype, "dweight"), before = normal({1, 4}, dtype, "dweight");
    ops::classifier_forward_backward(loss, dx, dweight, x, weight, target, 0.5, ctx);
    EXPECT_EQ(values(loss), (std::vector<double>{0, 0, 0}));
    EXPECT_EQ(values(dx), std::vector<double>(12, 0.0));
    EXPECT_EQ(values(dweight), values(before));
    poison(loss);
    ops::classifier_forward(loss, x, weight, target, ctx);
    EXPECT_EQ(values(loss), (std::vector<double>{0, 0, 0}));
  }
}

TEST(Classifier, LargeLogitsStayFinite) {
  PoisonedContext ctx;
  OwnedTensor x({4, 1}, DType::f32), weight({3, 1}, DType::f32), dweight({3, 1}, DType::f32);
  const OwnedTensor loss({4}, DType::f32), dx({4, 1}, DType::f32), target = ints({0, 2, 1, 0});
  fill(weight, {1, -1, 0.5});
  fill(x, {1e30, 1e30, -1e30, -1e30});
  fill(dweight, {0, 0, 0});
  ops::classifier_forward_backward(loss, dx, dweight, x, weight, target, 1.0, ctx);
  const double b = static_cast<float>(1e30);
  EXPECT_EQ(values(loss), (std::vector<double>{0, b / 2, 0, 2 * b}));
  // dz is zero where the target wins, else 1 at the winner and -1 at the target.
  EXPECT_EQ(values(dx), (std::vector<double>{0, 0.5, 0, -2}));
  EXPECT_EQ(values(dweight), (std::vector<double>{2 * b, -b, -b}));
  ops::classifier_forward(loss, x, weight, target, ctx);
  EXPECT_EQ(values(loss), (std::vector<double>{0, b / 2, 0, 2 * b}));
}

TEST(Classifier, RowsWithoutTargetGiveNothing) {
  for (DType dtype : {DType::f32, DType::f64}) {
    PoisonedContext ctx;
    // The logits of the row without a target are infinities and NaN.
    const double huge = dtype == DType::f32 ? 3e38 : 1e308;
    const OwnedTensor x = normal({3, 2}, dtype, "x"), weight = normal({5, 2}, dtype, "weight", 3.0);
    set(x, 2, huge), set(x, 3, -huge);
    set(weight, 0, 100), set(weight, 1, 100);
    const OwnedTensor loss({3}, dtype), dx({3, 2}, dtype), target = ints({1, -1, 4});
    const OwnedTensor dweight = normal({5, 2}, dtype, "dweight");
    ops::classifier_forward_backward(loss, dx, dweight, x, weight, target, 0.7, ctx);
    EXPECT_EQ(loss[1], 0);
    EXPECT_EQ(dx[2], 0);
    EXPECT_EQ(dx[3], 0);

    // All else is what it is without that row.
    OwnedTensor two_x({2, 2}, dtype);
    for (std::int64_t i : {0, 1}) set(two_x, i, x[i]), set(two_x, 2 + i, x[4 + i]);
    const OwnedTensor two_loss({2}, dtype), two_dx({2, 2}, dtype), two_target = ints({1, 4});
    const OwnedTensor two_dweight = normal({5, 2}, dtype, "dweight");
    ops::classifier_forward_backward(two_loss, two_dx, two_dweight, two_x, weight, two_target, 0.7, ctx);
    const double unit = dtype == DType::f32 ? 1e-6 : 1e-14;  // some roundings of numbers of order one
    EXPECT_TRUE(all_near({loss[0], loss[2]}, values(two_loss), unit, unit));
    EXPECT_TRUE(all_near({dx[0], dx[1], dx[4], dx[5]}, values(two_dx), unit, unit));
    EXPECT_TRUE(all_near(values(dweight), values(two_dweight), unit, unit));

    // Forward alone: there not even NaN in x shows.
    poison(x.view().slice(1, 1));
    poison(loss);
    ops::classifier_forward(loss, x, weight, target, ctx);
    EXPECT_EQ(loss[1], 0);
    EXPECT_TRUE(all_near({loss[0], loss[2]}, values(two_loss), unit, unit));
  }
}

// The definition, one token at a time, in double.
struct Reference {
  std::vector<double> loss, dx, dweight;

  Reference(const Tensor& x_TD, const Tensor& weight_VD, const Tensor& target_T, double dloss) {
    const std::vector<double> x = values(x_TD), weight = values(weight_VD), target = values(target_T);
    const std::size_t T = target.size(), D = x.size() / T, V = weight.size() / D;
    loss.assign(T, 0);
    dx.assign(x.size(), 0);
    dweight.assign(weight.size(), 0);
    std::vector<double> z(V);
    for (std::size_t t = 0; t < T; ++t) {
      if (target[t] < 0) continue;
      for (std::size_t v = 0; v < V; ++v) {
        z[v] = 0;
        for (std::size_t d = 0; d < D; ++d) z[v] += x[t * D + d] * weight[v * D + d];
      }
      const double max = *std::ranges::max_element(z);
      double sum = 0;
      for (double score : z) sum += std::exp(score - max);
      const std::size_t right = static_cast<std::size_t>(target[t]);
      loss[t] = max + std::log(sum) - z[right];
      for (std::size_t v = 0; v < V; ++v) {
        const double dz = dloss * (std::exp(z[v] - max) / sum - (v == right ? 1 : 0));
        for (std::size_t d = 0; d < D; ++d) {
          dx[t * D + d] += dz * weight[v * D + d];
          dweight[v * D + d] += dz * x[t * D + d];
        }
      }
    }
  }
};

struct Sizes {
  std::int64_t tokens, width, vocab;
};

// About one target in eight is missing.
OwnedTensor random_targets(const Sizes& s) {
  OwnedTensor target({s.tokens}, DType::i32);
  fill_int(target, "target", -std::max<std::int64_t>(1, s.vocab / 8), s.vocab);
  for (std::int64_t t = 0; t < s.tokens; ++t)
    if (target[t] < 0) set(target, t, -1);
  return target;
}

struct Tolerances {
  double loss, dx, dweight;  // absolute
};

struct Operators {
  std::function<void(Tensor, Tensor, Tensor, Tensor, Context&)> forward = ops::classifier_forward;
  std::function<void(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, double, Context&)> forward_backward =
      ops::classifier_forward_backward;
};

void expect_follows_definition(const Sizes& s, DType dtype, const Tolerances& tolerance,
                               const Operators& classifier = {}) {
  PoisonedContext ctx;
  const OwnedTensor x = normal_strided(s.tokens, s.width, dtype, "x");
  const OwnedTensor weight = normal_strided(s.vocab, s.width, dtype, "weight", 1.0, 3),
                    target = random_targets(s);
  const double dloss = 0.75;
  const Reference expected(x, weight, target, dloss);
  const OwnedTensor loss({s.tokens}, dtype), dx = OwnedTensor::strided(s.tokens, s.width, dtype, 2);
  const OwnedTensor dweight = normal_strided(s.vocab, s.width, dtype, "dweight", 1.0, 1);
  const std::vector<double> before = values(dweight);
  const std::string what = std::to_string(s.tokens) + " tokens, vocabulary " + std::to_string(s.vocab);
  classifier.forward(loss, x, weight, target, ctx);
  EXPECT_TRUE(all_near(values(loss), expected.loss, 0, tolerance.loss)) << what << ", forward";
  poison(loss);
  classifier.forward_backward(loss, dx, dweight, x, weight, target, dloss, ctx);
  EXPECT_TRUE(all_near(values(loss), expected.loss, 0, tolerance.loss)) << what;
  EXPECT_TRUE(all_near(values(dx), expected.dx, 0, tolerance.dx)) << what << ", dx";
  EXPECT_TRUE(all_near(difference(values(dweight), before), expected.dweight, 0, tolerance.dweight))
      << what << ", dweight";
  EXPECT_TRUE(dx.margins_untouched() && dweight.margins_untouched());
}

const Sizes kSizes[] = {{1, 1, 2}, {3, 5, 3}, {17, 33, 50}, {65, 3, 129}, {129, 17, 33}, {257, 7, 257}};

TEST(Classifier, DoubleFollowsTheDefinition) {
  // Numbers of order ten, some hundred roundings of 1e-16 of them.
  for (const Sizes& s : kSizes) expect_follows_definition(s, DType::f64, {1e-13, 1e-13, 1e-13});
}

TEST(Classifier, FloatFollowsTheDefinition) {
  // The reference reads the same float32 inputs. Logits reach 20 and are off by 2e-6, which is what losses and,
  // relatively, probabilities are off by. dx sums the probabilities times weights of up to 4; dweight sums up
  // to 257 tokens beside a start of order one, whose own roundings are 1e-7 each.
  for (const Sizes& s : kSizes) expect_follows_definition(s, DType::f32, {6e-6, 6e-6, 6e-6});
}

TEST(Classifier, LargeVocabulariesLoseNothing) {
  // Two products a logit: 1e-6 of logits of up to 10. The sum of 2^17 exponentials must not add to that. dx
  // sums 2^17 products in float32, which costs 1e-5.
  expect_follows_definition({17, 2, 1 << 17}, DType::f32, {6e-6, 4e-5, 8e-6});
}

TEST(Classifier, ChunksOfRowsJoin) {
  // Less than a chunk, one, two and a single row; and chunks of one row. In float32 some hundred products of
  // order ten cost 1e-5. A chunk that is lost or misplaced is off by order one.
  for (const auto& [tokens, chunk_rows] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{65, 128}, {128, 128}, {257, 128}, {5, 1}}) {
    SCOPED_TRACE(::testing::Message() << tokens << " tokens in chunks of " << chunk_rows);
    const Operators in_chunks{
        [&](Tensor loss, Tensor x, Tensor weight, Tensor target, Context& ctx) {
          ops::cpu::classifier_forward_in_chunks(loss, x, weight, target, chunk_rows, ctx);
        },
        [&](Tensor loss, Tensor dx, Tensor dweight, Tensor x, Tensor weight, Tensor target, double dloss,
            Context& ctx) {
          ops::cpu::classifier_forward_backward_in_chunks(loss, dx, dweight, x, weight, target, dloss,
                                                          chunk_rows, ctx);
        }};
    expect_follows_definition({tokens, 2, 1100}, DType::f32, {6e-6, 1.2e-5, 1.2e-5}, in_chunks);
    expect_follows_definition({tokens, 2, 1100}, DType::f64, {1e-13, 1e-13, 1e-13}, in_chunks);
  }
}

TEST(Classifier, ChunksFitTheVocabulary) {
  EXPECT_EQ(ops::cpu::classifier_chunk_rows(100, 50), 100);
  EXPECT_EQ(ops::cpu::classifier_chunk_rows(1 << 20, 1 << 14), 1 << 10);
  EXPECT_EQ(ops::cpu::classifier_chunk_rows(1 << 20, 1 << 17), 128);
  EXPECT_EQ(ops::cpu::classifier_chunk_rows(1 << 20, 150'000), 128);
}

TEST(Classifier, GradientsMatchFiniteDifferences) {
  for (const Sizes& s : {Sizes{1, 1, 2}, Sizes{3, 5, 3}, Sizes{17, 9, 40}, Sizes{129, 2, 5}}) {
    PoisonedContext ctx;
    const OwnedTensor x = normal_strided(s.tokens, s.width, DType::f64, "x");
    const OwnedTensor weight = normal({s.vocab, s.width}, DType::f64, "weight"), target = random_targets(s);
    const OwnedTensor loss_T({s.tokens}, DType::f64);
    const double dloss = 0.3;
    const auto loss = [&] {
      ops::classifier_forward(loss_T, x, weight, target, ctx);
      double sum = 0;
      for (double value : values(loss_T)) sum += value;
      return dloss * sum;
    };
    const OwnedTensor dx = OwnedTensor::strided(s.tokens, s.width, DType::f64, 2);
    const OwnedTensor dweight = normal({s.vocab, s.width}, DType::f64, "dweight");
    const std::vector<double> before = values(dweight);
    ops::classifier_forward_backward(loss_T, dx, dweight, x, weight, target, dloss, ctx);
    const GradientTolerance tolerance{.max_elements = 100};
    EXPECT_TRUE(gradient_matches(x, dx, loss, tolerance)) << s.tokens << " tokens";
    EXPECT_TRUE(gradient_matches(weight, difference(values(dweight), before), loss, tolerance)) << s.tokens;
  }
}

TEST(Classifier, SameBitsTwiceOnTheSameThreads) {
  PoisonedContext ctx;
  const Sizes s{257, 65, 129};
  const OwnedTensor x = normal({s.tokens, s.width}, DType::f32, "x"), target = random_targets(s);
  const OwnedTensor weight = normal({s.vocab, s.width}, DType::f32, "weight");
  // Loss, dx and dweight in one tensor.
  const auto run = [&] {
    OwnedTensor all({s.tokens * (1 + s.width) + s.vocab * s.width}, DType::f32);
    const Tensor loss = all.view().slice(0, s.tokens);
    const Tensor dx = all.view().slice(s.tokens, x.numel()).reshape(x.view().shape());
    const Tensor dweight =
        all.view().slice(s.tokens * (1 + s.width), weight.numel()).reshape(weight.view().shape());
    fill_normal(dweight, "dweight");
    ops::classifier_forward_backward(loss, dx, dweight, x, weight, target, 0.1, ctx);
    return all;
  };
  for (int threads : {1, 2, 3}) {
    EXPECT_TRUE(same_bits(with_threads(threads, run), with_threads(threads, run))) << threads << " threads";
  }
}

TEST(Classifier, RefusesOtherShapes) {
  PoisonedContext ctx;
  const OwnedTensor x({2, 3}, DType::f32), weight({4, 3}, DType::f32), wide({4, 5}, DType::f32);
  const OwnedTensor loss({2}, DType::f32), loss3({3}, DType::f32), target = ints({0, 1}), target1 = ints({0});
  EXPECT_THROW(ops::classifier_forward(loss, x, wide, target, ctx), std::logic_error);
  EXPECT_THROW(ops::classifier_forward(loss3, x, weight, target, ctx), std::logic_error);
  EXPECT_THROW(ops::classifier_forward(loss, x, weight, target1, ctx), std::logic_error);
  EXPECT_THROW(ops::classifier_forward_backward(loss, weight, weight, x, weight, target, 1.0, ctx),
               std::logic_error);
  EXPECT_THROW(ops::classifier_forward_backward(loss, x, wide, x, weight, target, 1.0, ctx), std::logic_error);
}

TEST(Classifier, RefusesOtherDtypes) {
  PoisonedContext ctx;
  const OwnedTensor x({2, 3}, DType::f32), weight({4, 3}, DType::f32), loss({2}, DType::f32);
  const OwnedTensor x64({2, 3}, DType::f64), weight64({4, 3}, DType::f64), loss64({2}, DType::f64);
  const OwnedTensor target = ints({0, 1});
  EXPECT_THROW(ops::classifier_forward(loss64, x, weight, target, ctx), std::logic_error);
  EXPECT_THROW(ops::classifier_forward(loss, x64, weight, target, ctx), std::logic_error);
  EXPECT_THROW(ops::classifier_forward(loss, x, weight64, target, ctx), std::logic_error);
  EXPECT_THROW(ops::classifier_forward(loss, x, weight, loss, ctx), std::logic_error);
  EXPECT_THROW(ops::classifier_forward_backward(loss, x64, weight, x, weight, target, 1.0, ctx),
               std::logic_error);
  EXPECT_THROW(ops::classifier_forward_backward(loss, x, weight64, x, weight, target, 1.0, ctx),
               std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
