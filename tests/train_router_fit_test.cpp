#include "train/router_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/rng.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::train {
namespace {

// D hidden size, E experts, K chosen, d latent width; T tokens.
struct Choices {
  std::int64_t D, E, K, d, T;
};

void draw(Tensor tensor, std::uint64_t purpose_index, double scale) {
  const Rng rng(3, RngPurpose::init, purpose_index);
  for (std::int64_t i = 0; i < tensor.numel(); ++i)
    tensor.as<float>()[i] = static_cast<float>(scale * rng.normal(static_cast<std::uint64_t>(i)));
}

std::vector<std::int64_t> largest(const std::vector<double>& score_E, std::int64_t K) {
  std::vector<std::int64_t> order(score_E.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return score_E[static_cast<std::size_t>(a)] > score_E[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(K));
  std::sort(order.begin(), order.end());
  return order;
}

// Of the experts that a gate chooses for tokens that it was not fitted on, the share that cosines of means and
// keys choose too; 0: a random encoder with random keys in place of a fit.
double agreement(const Choices& of, bool fitted) {
  const auto [D, E, K, d, T] = of;
  test::OwnedTensor gate_ED({E, D}, DType::f32), x_TD({T, D}, DType::f32), token_T({T}, DType::i32);
  test::OwnedTensor encoder_dD({d, D}, DType::f32), bias_d({d}, DType::f32), key_Ed({E, d}, DType::f32);
  draw(gate_ED, 1, 1);
  draw(encoder_dD, 2, 0.1);
  draw(key_Ed, 3, 1);
  std::fill_n(bias_d.view().as<float>(), d, 0.0f);
  std::fill_n(token_T.view().as<std::int32_t>(), T, 5);
  if (fitted) {
    GateSums sums(D, E);
    for (std::uint64_t batch = 0; batch < 8; ++batch) {
      draw(x_TD, 10 + batch, 1);
      sums.add(x_TD, token_T, gate_ED);
    }
    sums.fit(encoder_dD, bias_d, key_Ed);
  }
  draw(x_TD, 99, 1);
  Context ctx;
  test::OwnedTensor a_TD({T, D}, DType::f32), mean_T({T}, DType::f32), rstd_T({T}, DType::f32);
  test::OwnedTensor one_D({D}, DType::f32), zero_D({D}, DType::f32), mu_Td({T, d}, DType::f32),
      logit_TE({T, E}, DType::f32);
  std::fill_n(one_D.view().as<float>(), D, 1.0f);
  std::fill_n(zero_D.view().as<float>(), D, 0.0f);
  ops::layernorm_silu_forward(a_TD, mean_T, rstd_T, x_TD, one_D, zero_D, 1e-5, ctx);
  ops::linear_forward(mu_Td, a_TD, encoder_dD, ops::Write::set, ctx);
  ops::linear_forward(logit_TE, x_TD, gate_ED, ops::Write::set, ctx);
  std::int64_t shared = 0;
  for (std::int64_t t = 0; t < T; ++t) {
    std::vector<double> logit_E, cosine_E;
    for (std::int64_t e = 0; e < E; ++e) {
      double dot = 0, squares = 0;
      for (std::int64_t c = 0; c < d; ++c) {
        const double key = key_Ed.view().row<float>(e)[c];
        dot += key * (mu_Td.view().row<float>(t)[c] + bias_d.view().as<float>()[c]);
        squares += key * key;
      }
      cosine_E.push_back(dot / std::sqrt(squares));  // the token's length changes no order
      logit_E.push_back(logit_TE.view().row<float>(t)[e]);
    }
    const auto a = largest(logit_E, K), b = largest(cosine_E, K);
    std::vector<std::int64_t> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    shared += std::ssize(both);
  }
  return static_cast<double>(shared) / static_cast<double>(T * K);
}

// Chance agrees on K/E of the experts. SiLU is not linear, and tokens drawn at random have no structure that
// would make up for it: a fit has to come two fifths of the way from chance to agreement.
TEST(RouterFit, ChoosesWhatTheGateChooses) {
  for (const Choices& of : {Choices{16, 8, 2, 16, 256}, {32, 8, 2, 4, 256}, {32, 24, 4, 16, 256}}) {
    const double chance = static_cast<double>(of.K) / static_cast<double>(of.E);
    const double random = agreement(of, false), fitted = agreement(of, true);
    EXPECT_NEAR(random, chance, 0.1);  // some 1,000 choices, and encoders that are not quite without bias
    EXPECT_GT(fitted, chance + 0.4 * (1 - chance)) << "D " << of.D << ", E " << of.E << ", d " << of.d;
  }
}

TEST(RouterFit, PaddingIsNoToken) {
  constexpr std::int64_t D = 8, E = 4, d = 3, T = 32;
  test::OwnedTensor gate_ED({E, D}, DType::f32), x_TD({T, D}, DType::f32), token_T({T}, DType::i32);
  draw(gate_ED, 1, 1);
  std::vector<std::vector<double>> keys;
  for (const bool padded : {false, true}) {
    draw(x_TD, 4, 1);
    std::fill_n(token_T.view().as<std::int32_t>(), T, 1);
    GateSums sums(D, E);
    sums.add(x_TD, token_T, gate_ED);
    if (padded) {
      std::fill_n(token_T.view().as<std::int32_t>(), T, -1);
      draw(x_TD, 5, 7);
      sums.add(x_TD, token_T, gate_ED);
    }
    test::OwnedTensor encoder_dD({d, D}, DType::f32), bias_d({d}, DType::f32), key_Ed({E, d}, DType::f32);
    sums.fit(encoder_dD, bias_d, key_Ed);
    keys.push_back(test::values(key_Ed));
    for (std::int64_t e = 0; e < E; ++e) {
      double squares = 0;
      for (std::int64_t c = 0; c < d; ++c) squares += std::pow(key_Ed.view().row<float>(e)[c], 2);
      EXPECT_NEAR(squares, d, 1e-5);  // float32
    }
  }
  EXPECT_EQ(keys[0], keys[1]);
}

// Four directions around a mean that is longer than what tells them apart: every token is nearest to the gate
// of its own direction, and what all have in common chooses nothing.
TEST(RouterFit, ClustersAreTheDirectionsThatTokensHave) {
  constexpr std::int64_t kT = 400, kD = 24, kC = 4;
  test::OwnedTensor x_TD({kT, kD}, DType::f32), way_CD({kC, kD}, DType::f32), mean_D({kD}, DType::f32);
  test::OwnedTensor centre_CD({kC, kD}, DType::f32);
  draw(x_TD, 1, 0.1);
  draw(way_CD, 2, 1);
  draw(mean_D, 3, 3);
  const Rng rng(7, RngPurpose::init, 0);
  std::vector<std::int64_t> cluster_T;
  std::vector<double> true_mean(kD);
  for (std::int64_t t = 0; t < kT; ++t) {
    cluster_T.push_back(static_cast<std::int64_t>(rng.bits(static_cast<std::uint64_t>(t)) % kC));
    for (std::int64_t i = 0; i < kD; ++i) {
      float& x = x_TD.view().row<float>(t)[i];
      x += way_CD.view().row<float>(cluster_T.back())[i] + mean_D.view().as<float>()[i];
      true_mean[static_cast<std::size_t>(i)] += static_cast<double>(x) / kT;
    }
  }
  cluster_directions(centre_CD, x_TD);

  std::vector<std::int64_t> chosen_C(kC, -1);
  double squares = 0;
  for (std::int64_t t = 0; t < kT; ++t) {
    std::vector<double> logit_C(kC);
    for (std::int64_t c = 0; c < kC; ++c)
      for (std::int64_t i = 0; i < kD; ++i)
        logit_C[static_cast<std::size_t>(c)] += static_cast<double>(centre_CD.view().row<float>(c)[i]) *
                                                static_cast<double>(x_TD.view().row<float>(t)[i]);
    const double mean = std::accumulate(logit_C.begin(), logit_C.end(), 0.0) / kC;
    for (const double logit : logit_C) squares += (logit - mean) * (logit - mean) / (kC * kT);
    const std::int64_t best = largest(logit_C, 1).front();
    std::int64_t& chosen = chosen_C[static_cast<std::size_t>(cluster_T[static_cast<std::size_t>(t)])];
    if (chosen < 0) chosen = best;
    ASSERT_EQ(best, chosen) << "token " << t;
  }
  std::sort(chosen_C.begin(), chosen_C.end());
  EXPECT_EQ(chosen_C, (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_NEAR(squares, 1, 1e-4);  // centres are rounded to float32, some 1e-7 each, of logits near 1
  for (std::int64_t c = 0; c < kC; ++c) {
    double along = 0;
    for (std::int64_t i = 0; i < kD; ++i)
      along += static_cast<double>(centre_CD.view().row<float>(c)[i]) * true_mean[static_cast<std::size_t>(i)];
    EXPECT_NEAR(along, 0, 1e-4);  // as above
  }
}

}  // namespace
}  // namespace switchyard::train
