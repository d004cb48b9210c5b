#include "ops/prototype.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

using enum ops::PrototypeSimilarity;
constexpr ops::PrototypeSimilarity kAll[] = {gaussian, mahalanobis, kl, js, hellinger, wasserstein};
constexpr double kSigma = 1.3;

struct Point {
  double mean, log_var;
};

double kl_of(double m1, double v1, double m2, double v2) {
  return 0.5 * (std::log(v2 / v1) + (v1 + (m1 - m2) * (m1 - m2)) / v2 - 1);
}

// One pair as docs/router-mathematics.md writes it, in double, with nothing rearranged.
double by_definition(ops::PrototypeSimilarity similarity, const std::vector<Point>& token,
                     const std::vector<Point>& key, const std::vector<double>& log_sigma) {
  double squares = 0, weighted = 0, kl_sum = 0, js_sum = 0, product = 1, transport = 0;
  for (std::size_t j = 0; j < token.size(); ++j) {
    const double m1 = token[j].mean, m2 = key[j].mean, square = (m1 - m2) * (m1 - m2);
    const double v1 = std::max(std::exp(token[j].log_var), 1e-6), v2 = std::max(std::exp(key[j].log_var), 1e-6);
    const double mid = (m1 + m2) / 2, v_mid = (v1 + v2) / 2;
    squares += square;
    weighted += square * std::exp(-log_sigma[j]);
    kl_sum += kl_of(m1, v1, m2, v2);
    js_sum += (kl_of(m1, v1, mid, v_mid) + kl_of(m2, v2, mid, v_mid)) / 2;
    product *= std::sqrt(2 * std::sqrt(v1 * v2) / (v1 + v2)) * std::exp(-square / (4 * (v1 + v2)));
    transport += square + (std::sqrt(v1) - std::sqrt(v2)) * (std::sqrt(v1) - std::sqrt(v2));
  }
  switch (similarity) {
    case gaussian:
      return std::exp(-squares / (2 * kSigma * kSigma));
    case mahalanobis:
      return 1 / (1 + weighted);
    case kl:
      return -kl_sum;
    case js:
      return -js_sum;
    case hellinger:
      return -std::sqrt(1 - product + 1e-6);
    case wasserstein:
      return -std::sqrt(transport + 1e-6);
  }
  return 0;
}

struct Sizes {
  std::int64_t tokens, experts, width;
};
const Sizes kSizes[] = {{1, 1, 1}, {3, 5, 4}, {37, 9, 16}, {70, 33, 3}};

struct Case {
  ops::PrototypeSimilarity similarity;
  OwnedTensor mean_Td, log_var_Td, key_Ed, key_log_var_Ed, log_sigma_d, dscore_TE, score_TE;
  OwnedTensor dmean_Td, dlog_var_Td, dkey_Ed, dkey_log_var_Ed, dlog_sigma_d;
  PoisonedContext ctx;

  Case(ops::PrototypeSimilarity kind, Sizes s, DType dtype)
      : similarity(kind),
        mean_Td(normal_strided(s.tokens, s.width, dtype, "mean", 0.6)),
        log_var_Td(normal_strided(s.tokens, s.width, dtype, "log_var", 0.8)),
        key_Ed(normal({s.experts, s.width}, dtype, "key", 0.6)),
        key_log_var_Ed(normal({s.experts, s.width}, dtype, "key_log_var", 0.8)),
        log_sigma_d(normal({s.width}, dtype, "log_sigma", 0.5)),
        dscore_TE(normal({s.tokens, s.experts}, dtype, "dscore")),
        score_TE({s.tokens, s.experts}, dtype),
        dmean_Td(zeros(s.tokens, s.width, dtype)),
        dlog_var_Td(zeros(s.tokens, s.width, dtype)),
        dkey_Ed(zeros(s.experts, s.width, dtype)),
        dkey_log_var_Ed(zeros(s.experts, s.width, dtype)),
        dlog_sigma_d(normal({s.width}, dtype, "none", 0)) {
    set(log_var_Td, 0, -30);  // under the clamp
  }
  static OwnedTensor zeros(std::int64_t rows, std::int64_t columns, DType dtype) {
    return normal_strided(rows, columns, dtype, "none", 0.0, 2);
  }
  ops::PrototypeMetric metric() const { return {similarity, kSigma, log_sigma_d, dlog_sigma_d}; }
  ops::GaussianRows token() const { return {mean_Td, log_var_Td}; }
  ops::GaussianRows key() const { return {key_Ed, key_log_var_Ed}; }
  void forward() { ops::prototype_similarity_forward(score_TE, token(), key(), metric(), ctx); }
  void backward() {
    ops::prototype_similarity_backward({dmean_Td, dlog_var_Td}, {dkey_Ed, dkey_log_var_Ed}, dscore_TE, score_TE,
                                       token(), key(), metric(), ctx);
  }
  std::vector<Point> points(const Tensor& mean, const Tensor& log_var, std::int64_t row) const {
    std::vector<Point> all;
    for (std::int64_t j = 0; j < mean.dim(1); ++j)
      all.push_back({get(mean, row * mean.dim(1) + j), get(log_var, row * mean.dim(1) + j)});
    return all;
  }
};

TEST(PrototypeSimilarity, IsWhatItsDefinitionSays) {
  for (const ops::PrototypeSimilarity similarity : kAll)
    for (const Sizes& s : kSizes)
      for (const DType dtype : {DType::f64, DType::f32}) {
        Case c(similarity, s, dtype);
        c.forward();
        std::vector<double> expected;
        for (std::int64_t t = 0; t < s.tokens; ++t)
          for (std::int64_t e = 0; e < s.experts; ++e)
            expected.push_back(by_definition(similarity, c.points(c.mean_Td, c.log_var_Td, t),
                                             c.points(c.key_Ed, c.key_log_var_Ed, e), values(c.log_sigma_d)));
        // The definition subtracts terms of order one: 1e-15 each; under a root near 0 that grows by 1 / 1e-3.
        // In float32 a sum of up to 48 terms, each rounded a few times to 6e-8.
        const double tolerance = dtype == DType::f64 ? 1e-11 : 5e-6;
        EXPECT_TRUE(all_near(values(c.score_TE), expected, tolerance, tolerance))
            << static_cast<int>(similarity) << ", " << s.experts << " experts";
      }
}

// A token that lies on a key: nothing is lost to cancellation, and the roots stay finite.
TEST(PrototypeSimilarity, IsExactWhereTokenAndKeyAgree) {
  for (const ops::PrototypeSimilarity similarity : kAll) {
    PoisonedContext ctx;
    const OwnedTensor mean = normal({2, 16}, DType::f32, "same", 3.0),
                      log_var = normal({2, 16}, DType::f32, "v");
    const OwnedTensor log_sigma = normal({16}, DType::f32, "sigma"), score({2, 2}, DType::f32);
    ops::prototype_similarity_forward(score, {mean, log_var}, {mean, log_var}, {similarity, 1, log_sigma}, ctx);
    const bool root = similarity == hellinger || similarity == wasserstein;
    const double best = similarity == gaussian || similarity == mahalanobis ? 1 : root ? -1e-3 : 0;
    EXPECT_NEAR(score[0], best, 1e-9) << static_cast<int>(similarity);
    EXPECT_NEAR(score[3], best, 1e-9) << static_cast<int>(similarity);
  }
}

TEST(PrototypeSimilarity, GradientMatchesFiniteDifferences) {
  for (const ops::PrototypeSimilarity similarity : kAll)
    for (const Sizes& s : kSizes) {
      Case c(similarity, s, DType::f64);
      c.forward();
      c.backward();
      const auto loss = [&] {
        c.forward();
        return dot(c.dscore_TE, c.score_TE);
      };
      // Up to 2,000 terms of order ten, rounded to 1e-12, over the step of 1e-5.
      const GradientTolerance tolerance{.relative = 1e-5, .absolute = 1e-6, .max_elements = 150};
      const auto name = std::to_string(static_cast<int>(similarity)) + ", width " + std::to_string(s.width);
      EXPECT_TRUE(gradient_matches(c.mean_Td, c.dmean_Td, loss, tolerance)) << name;
      EXPECT_TRUE(gradient_matches(c.key_Ed, c.dkey_Ed, loss, tolerance)) << name;
      if (c.metric().of_distributions()) {
        EXPECT_TRUE(gradient_matches(c.log_var_Td, c.dlog_var_Td, loss, tolerance)) << name;
        EXPECT_TRUE(gradient_matches(c.key_log_var_Ed, c.dkey_log_var_Ed, loss, tolerance)) << name;
      }
      if (similarity == mahalanobis) {
        EXPECT_TRUE(gradient_matches(c.log_sigma_d, c.dlog_sigma_d, loss, tolerance)) << name;
      }
      EXPECT_TRUE(c.dmean_Td.margins_untouched());
      EXPECT_TRUE(c.dkey_Ed.margins_untouched());
    }
}

TEST(PrototypeSimilarity, FloatGradientFollowsDouble) {
  for (const ops::PrototypeSimilarity similarity : kAll) {
    Case f32(similarity, {37, 9, 16}, DType::f32), f64(similarity, {37, 9, 16}, DType::f64);
    for (Case* c : {&f32, &f64}) {
      set(c->log_var_Td, 0, 0.3);
      c->forward();
      c->backward();
    }
    // Sums of up to 37 terms of order one to ten.
    EXPECT_TRUE(all_near(values(f32.dmean_Td), values(f64.dmean_Td), 1e-5, 5e-5));
    EXPECT_TRUE(all_near(values(f32.dkey_Ed), values(f64.dkey_Ed), 1e-5, 2e-4));
  }
}

TEST(PrototypeSimilarity, SameBitsOnAnyThreadCount) {
  for (const ops::PrototypeSimilarity similarity : {mahalanobis, hellinger})
    expect_same_bits_on_any_thread_count([&] {
      Case c(similarity, {301, 33, 16}, DType::f32);
      c.forward();
      c.backward();
      return std::move(c.dkey_Ed);
    });
}

TEST(PrototypeSimilarity, RefusesOtherShapes) {
  Case c(kl, {3, 5, 4}, DType::f32);
  const OwnedTensor score({3, 4}, DType::f32);
  EXPECT_THROW(ops::prototype_similarity_forward(score, c.token(), c.key(), c.metric(), c.ctx),
               std::logic_error);
  EXPECT_THROW(ops::prototype_similarity_forward(c.score_TE, {c.mean_Td}, c.key(), c.metric(), c.ctx),
               std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
