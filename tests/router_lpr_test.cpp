#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "config/load.h"
#include "gradient_check.h"
#include "ops/latent_losses.h"
#include "router/lpr_similarity.h"
#include "router/router.h"
#include "tensors.h"

namespace switchyard::router {
namespace {

using test::fill;
using test::ints;
using test::OwnedTensor;
using test::values;

// All options at the default, the given ones changed.
config::Router options_with(const std::map<std::string, config::OptionValue>& changed) {
  for (const config::RouterSchema& schema : router_schemas()) {
    if (schema.type != "lpr") continue;
    config::Router options{.type = "lpr", .balance_coef = 0};
    for (const config::RouterOption& option : schema.options) options.own.set(option.key, option.fallback);
    for (const auto& [key, value] : changed) options.own.set(key, value);
    return options;
  }
  throw std::logic_error("no lpr");
}
config::OptionValue word(const std::string& value) { return value; }

// A router with its parameters, activations and scratch, all of it poisoned before use.
struct Fixture {
  Fixture(const config::Router& options, const RouterShape& given, std::int64_t n_seq, std::int64_t seq_len,
          DType dtype)
      : shape(given), router(make_router(options, given, "gate.", store)) {
    // Measured before there are parameters, as a run does it: a plan may not read them.
    Arena measure = Arena::measuring();
    router->plan(measure, n_seq, seq_len, dtype);
    store.allocate(dtype, true);
    for (std::size_t i = 0; i < store.rows().size(); ++i) {
      const bool ones = store.rows()[i].init == Init::ones;
      test::fill_normal(store.value(i), store.rows()[i].name, ones ? 0.2 : 0.5, ones ? 1.0 : 0.0);
    }
    if (has("ema_counts"))
      fill(row("ema_counts"), std::vector<double>(static_cast<std::size_t>(shape.n_experts), 0));
    arena.emplace(measure.peak(), "test");
    router->plan(*arena, n_seq, seq_len, dtype);
    router->keep_statistics_in(statistics_S.emplace(Shape{router->n_statistics()}, DType::f64));
    arena->poison();
    ctx.scratch.set_poison(true);
  }
  bool has(const std::string& name) const { return find(name) < store.rows().size(); }
  Tensor row(const std::string& name) const { return store.value(find(name)); }
  std::size_t find(const std::string& name) const {
    std::size_t i = 0;
    while (i < store.rows().size() && store.rows()[i].name != "gate." + name) ++i;
    return i;
  }
  // As if another micro-batch or rank had made them: they stay as they are in further forward passes.
  OwnedTensor statistics() const { return test::doubles(values(*statistics_S)); }
  double own_loss(const RoutingLossGradient& gradient) {
    const OwnedTensor loss_1 = test::doubles({0});
    router->add_router_loss(loss_1, gradient, ctx);
    return loss_1[0];
  }

  RouterShape shape;
  ParameterStore store;
  std::unique_ptr<Router> router;
  std::optional<Arena> arena;
  std::optional<OwnedTensor> statistics_S;
  Context ctx;
};

RouterShape small_shape(std::int64_t n_slots = 2) {
  return {.hidden_size = 6, .n_experts = 5, .n_slots = n_slots, .normalise_weights = true, .init_std = 0.02};
}

// Four tokens, the last one padding, three experts; the encoder hands SiLU(LayerNorm(x)) on as the mean.
TEST(LatentPrototype, FourTokensAndThreeExpertsByHand) {
  Fixture f(options_with({{"latent_dim", std::int64_t{2}}}),
            {.hidden_size = 2, .n_experts = 3, .n_slots = 2, .normalise_weights = true, .init_std = 1}, 1, 4,
            DType::f64);
  fill(f.row("norm.weight"), {1, 1});
  fill(f.row("norm.bias"), {0, 0});
  fill(f.row("encoder.weight"), {1, 0, 0, 1, 0, 0, 0, 0});
  fill(f.row("encoder.bias"), {0, 0, 0, 0});
  fill(f.row("expert_keys"), {1, 0, 0, 1, -2, 0});
  fill(f.row("out_proj.weight"), {1, 0, 0, 2});
  fill(f.row("out_proj.bias"), {0.5, 0});
  OwnedTensor x({4, 2}, DType::f64);
  fill(x, {2, 0, 0, 2, 1, 1, 5, 9});
  const RouterOutput out = f.router->forward(x, {.token_T = ints({4, 4, 4, -1}), .seq_len = 4}, f.ctx);

  // (2, 0) has mean 1 and variance 1: the norm gives (c, -c). (1, 1) gives (0, 0), which is like no key.
  const double c = 1 / std::sqrt(1 + 1e-5), sigmoid = 1 / (1 + std::exp(-c));
  const double p = c * sigmoid, q = -c * (1 - sigmoid), r = std::hypot(p, q);
  EXPECT_EQ(values(out.decision.expert_TK), (std::vector<double>{0, 1, 1, 2, 0, 1, -1, -1}));
  const auto first_of = [](double a, double b) { return 1 / (1 + std::exp(b - a)); };
  const double a = first_of(p / r, q / r), b = first_of(p / r, -q / r);
  EXPECT_TRUE(test::all_near(values(out.decision.weight_TK), {a, 1 - a, b, 1 - b, 0.5, 0.5, 0, 0}, 1e-14, 0));
  const auto addend = [](double s0, double s1, double s2) {
    const double e0 = std::exp(s0), e1 = std::exp(s1), e2 = std::exp(s2), sum = e0 + e1 + e2;
    return std::pair{0.5 + (e0 - 2 * e2) / sum, 2 * e1 / sum};
  };
  const auto [x0, y0] = addend(p / r, q / r, -p / r);
  const auto [x1, y1] = addend(q / r, p / r, -q / r);
  EXPECT_TRUE(test::all_near(values(out.decision.expert_input_addend_TD),
                             {x0, y0, x1, y1, 0.5 - 1.0 / 3, 2.0 / 3, 0, 0}, 1e-14, 1e-15));
}

TEST(LatentPrototype, ItsParametersHaveTheirNamesAndStarts) {
  ParameterStore store;
  const auto router = make_router(options_with({{"latent_dim", std::int64_t{4}},
                                                {"unit_ball", true},
                                                {"key_update", word("ema")},
                                                {"similarity", word("cross_attention")},
                                                {"num_heads", std::int64_t{2}},
                                                {"bias", word("quantile")}}),
                                  small_shape(), "g.", store);
  std::vector<std::string> names;
  for (const Parameter& row : store.rows()) names.push_back(row.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"g.norm.weight", "g.norm.bias", "g.encoder.weight", "g.encoder.bias",
                                      "g.out_proj.weight", "g.out_proj.bias", "g.expert_keys",
                                      "g.similarity_func.q_proj.weight", "g.similarity_func.q_proj.bias",
                                      "g.similarity_func.k_proj.weight", "g.similarity_func.k_proj.bias",
                                      "g.similarity_func.q_norm.weight", "g.similarity_func.k_norm.weight",
                                      "g.similarity_func.v_proj.weight", "g.similarity_func.v_proj.bias",
                                      "g.ema_sums", "g.ema_counts", "g.e_score_correction_bias"}));
  store.allocate(DType::f32, true);
  store.initialise(1);
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    const Parameter& row = store.rows()[i];
    const bool state = row.name == "g.expert_keys" || row.name.find("ema_") != std::string::npos ||
                       row.name == "g.e_score_correction_bias";
    EXPECT_EQ(row.trained, !state) << row.name;
    if (row.name != "g.expert_keys") continue;
    for (std::int64_t e = 0; e < 5; ++e) {  // on the unit sphere, rounded
      const Tensor key = store.value(i).slice(e, 1);
      EXPECT_NEAR(test::dot(key, key), 1, 1e-6);
    }
  }
}

// ---- gradients ----

using Options = std::tuple<std::string, std::string, std::string, std::string>;
class LatentPrototypeGradient : public ::testing::TestWithParam<Options> {};

// The loss that a layer makes of a router: sum(r weights) + sum(q addend) + own loss + sum(s P) + dz
// sum(lse^2). What alignment compares keys with has no gradient, so the loss holds those statistics still.
TEST_P(LatentPrototypeGradient, MatchesFiniteDifferences) {
  const auto& [similarity, diversity, key_update, bias] = GetParam();
  const bool heads = similarity == "cross_attention_2";
  const config::Router options = options_with({{"latent_dim", std::int64_t{4}},
                                               {"similarity", word(heads ? "cross_attention" : similarity)},
                                               {"num_heads", std::int64_t{heads ? 2 : 1}},
                                               {"sigma", 1.3},
                                               {"diversity", word(diversity)},
                                               {"key_update", word(key_update)},
                                               {"bias", word(bias)},
                                               {"reg_coef", 0.5},
                                               {"div_weight", 2.0},
                                               {"diversity_lambda", 0.7},
                                               {"kl_weight", 0.3},
                                               {"align_weight", 0.4}});
  Fixture f(options, small_shape(), 2, 4, DType::f64);
  const OwnedTensor x = test::normal({8, 6}, DType::f64, "x"), token = ints({1, 1, 1, 1, 1, 1, -1, -1});
  const OwnedTensor epsilon = test::normal({8, 4}, DType::f64, "epsilon"),
                    r = test::normal({8, 2}, DType::f64, "r");
  const OwnedTensor q = test::normal({8, 6}, DType::f64, "q"), s = test::normal({2, 5}, DType::f64, "s");
  for (std::int64_t i = 6 * 6; i < 8 * 6; ++i) test::set(q, i, 0);  // no expert sees padding
  constexpr double kDz = 0.05, kDp = -0.4, kShare = 1.0 / 6;
  const RouterBatch batch{.token_T = token, .n_seq = 2, .seq_len = 4, .training = true, .epsilon_Td = epsilon};

  const RouterOutput first = f.router->forward(x, batch, f.ctx);
  const std::vector<double> chosen = values(first.decision.expert_TK);
  const OwnedTensor statistics = f.statistics();
  const std::int64_t moments = 3 + 4 * 4 + 4, routed = 5 * 4 + 5;
  const auto loss = [&] {
    const RouterOutput out = f.router->forward(x, batch, f.ctx);
    EXPECT_EQ(values(out.decision.expert_TK), chosen);  // over a border there is no derivative
    const OwnedTensor now = f.statistics();
    for (std::int64_t i = moments; i < moments + routed; ++i) test::set(now, i, statistics[i]);
    const RoutingLossGradient at{
        .dprob_BE = s, .dlse2 = kDz, .dprob2 = kDp, .token_share = kShare, .statistics_S = now};
    double sum = test::dot(r, out.decision.weight_TK) + test::dot(q, out.decision.expert_input_addend_TD) +
                 f.own_loss(at);
    for (std::int64_t t = 0; t < 6; ++t) {
      for (std::int64_t e = 0; e < 5; ++e) {
        const double p = test::get(out.prob_TE, t * 5 + e);
        sum += s[t / 4 * 5 + e] * p + kDp * p * p;
      }
      sum += kDz * std::pow(test::get(out.lse_T, t), 2);
    }
    return sum;
  };
  const OwnedTensor dx = test::normal({8, 6}, DType::f64, "dx", 0.0);
  f.router->backward(
      dx, {.dweight_TK = r, .daddend_TD = q}, x, batch,
      {.dprob_BE = s, .dlse2 = kDz, .dprob2 = kDp, .token_share = kShare, .statistics_S = statistics}, f.ctx);
  // A loss of order ten, a hundred with dot products, rounded to 1e-14, over the step of 1e-5; norms of rows of
  // six and latents of length one half bend strongly.
  const test::GradientTolerance tolerance{.relative = 1e-5, .absolute = 1e-7, .max_elements = 20};
  EXPECT_TRUE(test::gradient_matches(x, dx, loss, tolerance)) << "x";
  for (std::size_t i = 0; i < f.store.rows().size(); ++i) {
    if (f.store.rows()[i].trained) {
      EXPECT_TRUE(test::gradient_matches(f.store.value(i), f.store.grad(i), loss, tolerance))
          << f.store.rows()[i].name;
    } else {
      EXPECT_EQ(test::dot(f.store.grad(i), f.store.grad(i)), 0) << f.store.rows()[i].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Options, LatentPrototypeGradient,
                         ::testing::Combine(::testing::Values("cosine", "dot", "gaussian", "mahalanobis",
                                                              "cross_attention", "cross_attention_2", "kl",
                                                              "js", "hellinger", "wasserstein"),
                                            ::testing::Values("orthogonal", "cosine", "euclidean"),
                                            ::testing::Values("gradient", "ema"),
                                            ::testing::Values("none", "quantile")),
                         [](const auto& test) {
                           return std::get<0>(test.param) + "_" + std::get<1>(test.param) + "_" +
                                  std::get<2>(test.param) + "_" + std::get<3>(test.param);
                         });

TEST(LatentPrototype, EverySimilarityIsChecked) { EXPECT_EQ(lpr_similarities().size(), 9u); }

// ---- regularisation ----

TEST(Diversity, LinearFormsEqualTheQuadraticOnes) {
  constexpr std::int64_t n = 17, d = 4;
  OwnedTensor N = test::normal({n, d}, DType::f64, "rows");
  for (std::int64_t i = 0; i < n; ++i) {
    double length = 0;
    for (std::int64_t j = 0; j < d; ++j) length += std::pow(N[i * d + j], 2);
    for (std::int64_t j = 0; j < d; ++j) test::set(N, i * d + j, N[i * d + j] / std::sqrt(length));
  }
  std::vector<double> gram(d * d), sum(d);
  double orthogonal = 0, cosine = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double product = 0;
      for (std::int64_t k = 0; k < d; ++k) product += N[i * d + k] * N[j * d + k];
      orthogonal += std::pow(product - (i == j), 2) / (n * n);
      cosine += i == j ? 0 : product / (n * (n - 1));
    }
    for (std::size_t a = 0; a < d; ++a) {
      const double own = N[i * d + static_cast<std::int64_t>(a)];
      sum[a] += own;
      for (std::size_t b = 0; b < d; ++b) gram[a * d + b] += own * N[i * d + static_cast<std::int64_t>(b)];
    }
  }
  Context ctx;
  const OwnedTensor sum_d = test::doubles(sum), flat_gram = test::doubles(gram);
  const auto value = [&](ops::Diversity kind, double rows) {
    const OwnedTensor loss_1 = test::doubles({0});
    ops::add_diversity_loss(
        loss_1, kind, {.gram_dd = flat_gram.view().reshape(Shape{d, d}), .sum_d = sum_d, .n = rows}, {1}, ctx);
    return loss_1[0];
  };
  EXPECT_NEAR(value(ops::Diversity::orthogonal, n), orthogonal, 1e-14);
  EXPECT_NEAR(value(ops::Diversity::cosine, n), cosine, 1e-14);
  EXPECT_EQ(value(ops::Diversity::orthogonal, 1), 0);  // one row is no pair
}

// ---- what a batch's cut, padding, noise and loads may do ----

struct StepSums {
  std::vector<double> statistics, gradients;
  double loss = 0;
};

// One optimizer step's forward and backward over four sequences of three tokens, `at_once` at a time.
StepSums step_in_parts(std::int64_t at_once, const config::Router& options, const OwnedTensor& x) {
  Fixture f(options, small_shape(), at_once, 3, DType::f64);
  const std::vector<double> ids{1, 1, 1, 1, 1, -1, 1, 1, 1, 1, -1, -1};
  const OwnedTensor r = test::normal({12, 2}, DType::f64, "r"), q = test::normal({12, 6}, DType::f64, "q");
  for (std::int64_t i = 0; i < 12 * 6; ++i)
    if (ids[static_cast<std::size_t>(i / 6)] < 0) test::set(q, i, 0);
  const OwnedTensor none = test::normal({at_once, 5}, DType::f64, "none", 0.0);
  StepSums sums;
  sums.statistics.resize(static_cast<std::size_t>(f.router->n_statistics()));
  const std::int64_t tokens = at_once * 3;
  for (const bool backward : {false, true})
    for (std::int64_t first = 0; first < 4; first += at_once) {
      const auto begin = ids.begin() + first * 3;
      const OwnedTensor token = ints(std::vector<double>(begin, begin + tokens));
      const OwnedTensor place = ints({7, static_cast<double>(first)});
      const RouterBatch batch{
          .token_T = token, .n_seq = at_once, .seq_len = 3, .training = true, .seed = 5, .rng_offset_2 = place};
      const Tensor part = x.view().slice(first * 3, tokens);
      f.router->forward(part, batch, f.ctx);
      if (!backward) {
        const std::vector<double> statistics = values(*f.statistics_S);
        for (std::size_t i = 0; i < statistics.size(); ++i) sums.statistics[i] += statistics[i];
        continue;
      }
      const OwnedTensor global_S = test::doubles(sums.statistics);
      const RoutingLossGradient gradient{
          .dprob_BE = none, .dlse2 = 0, .token_share = 1.0 / 9, .statistics_S = global_S};
      sums.loss += f.own_loss(gradient);
      const OwnedTensor dx = test::normal({tokens, 6}, DType::f64, "dx", 0.0);
      f.router->backward(
          dx,
          {.dweight_TK = r.view().slice(first * 3, tokens), .daddend_TD = q.view().slice(first * 3, tokens)},
          part, batch, gradient, f.ctx);
      const auto part_gradient = values(dx);
      sums.gradients.insert(sums.gradients.end(), part_gradient.begin(), part_gradient.end());
    }
  const auto of_parameters = values(f.store.grads());
  sums.gradients.insert(sums.gradients.end(), of_parameters.begin(), of_parameters.end());
  return sums;
}

TEST(LatentPrototype, OneByFourIsFourByOne) {
  for (const char* diversity : {"orthogonal", "cosine"}) {
    const config::Router options = options_with({{"latent_dim", std::int64_t{4}},
                                                 {"diversity", word(diversity)},
                                                 {"reg_coef", 1.0},
                                                 {"align_weight", 1.0},
                                                 {"bias", word("quantile")}});
    const OwnedTensor x = test::normal({12, 6}, DType::f64, "x");
    const StepSums whole = step_in_parts(4, options, x), parts = step_in_parts(1, options, x);
    // The same sums in another order.
    EXPECT_TRUE(test::all_near(parts.statistics, whole.statistics, 1e-12, 1e-12));
    EXPECT_NEAR(parts.loss, whole.loss, 1e-12);
    EXPECT_TRUE(test::all_near(parts.gradients, whole.gradients, 1e-11, 1e-11));
  }
}

TEST(LatentPrototype, PaddingCountsNowhere) {
  const config::Router options =
      options_with({{"latent_dim", std::int64_t{4}}, {"reg_coef", 1.0}, {"align_weight", 1.0}});
  OwnedTensor x = test::normal({12, 6}, DType::f64, "x");
  const StepSums before = step_in_parts(4, options, x);
  for (const std::int64_t t : {5, 10, 11})
    for (std::int64_t i = 0; i < 6; ++i) test::set(x, t * 6 + i, 3.0 * static_cast<double>(t + i * i));
  const StepSums after = step_in_parts(4, options, x);
  EXPECT_EQ(before.statistics, after.statistics);
  EXPECT_EQ(before.gradients, after.gradients);
  EXPECT_EQ(before.statistics[0], 9);
}

TEST(LatentPrototype, EvaluationHasNoNoiseAndNoState) {
  config::Router options = options_with({{"latent_dim", std::int64_t{4}}, {"key_update", word("ema")}});
  options.jitter = 0.5;
  Fixture f(options, small_shape(), 1, 8, DType::f32);
  const OwnedTensor x = test::normal({8, 6}, DType::f32, "x"), token = ints(std::vector<double>(8, 1));
  const auto run = [&](bool training, std::int64_t step) {
    const OwnedTensor place = ints({static_cast<double>(step), 0});
    const RouterOutput out = f.router->forward(
        x, {.token_T = token, .seq_len = 8, .training = training, .seed = 1, .rng_offset_2 = place}, f.ctx);
    return values(out.decision.weight_TK);
  };
  const auto first = run(true, 1);
  const std::vector<double> statistics = values(*f.statistics_S);
  EXPECT_EQ(run(false, 1), run(false, 2));
  EXPECT_EQ(values(*f.statistics_S), statistics);
  EXPECT_NE(run(true, 2), first);
  EXPECT_EQ(run(true, 1), first);  // noise is a function of the step
}

// With every expert chosen jitter moves weights alone; what aligns keys are similarities, which it leaves
// alone.
TEST(LatentPrototype, JitterIsNoPartOfTheAlignment) {
  for (const char* key_update : {"gradient", "ema"}) {
    const OwnedTensor x = test::normal({8, 6}, DType::f64, "x"), token = ints(std::vector<double>(8, 1));
    const OwnedTensor place = ints({1, 0}), none = test::normal({1, 5}, DType::f64, "none", 0.0);
    const auto loss_and_statistics = [&](double jitter) {
      config::Router options = options_with(
          {{"latent_dim", std::int64_t{4}}, {"align_weight", 1.0}, {"key_update", word(key_update)}});
      options.jitter = jitter;
      Fixture f(options, small_shape(5), 1, 8, DType::f64);
      f.router->forward(x, {.token_T = token, .seq_len = 8, .training = true, .seed = 1, .rng_offset_2 = place},
                        f.ctx);
      std::vector<double> found = values(*f.statistics_S);
      found.push_back(
          f.own_loss({.dprob_BE = none, .dlse2 = 0, .token_share = 1.0 / 8, .statistics_S = *f.statistics_S}));
      return found;
    };
    EXPECT_TRUE(test::all_near(loss_and_statistics(5), loss_and_statistics(0), 1e-12, 1e-12)) << key_update;
  }
}

// Everything on one expert, the others without a token: values stay finite and the keys go on moving.
TEST(LatentPrototype, OneExpertMayHaveEveryToken) {
  for (const char* similarity : {"cosine", "dot", "kl", "hellinger"}) {
    const config::Router options = options_with({{"latent_dim", std::int64_t{4}},
                                                 {"key_update", word("ema")},
                                                 {"bias", word("quantile")},
                                                 {"similarity", word(similarity)},
                                                 {"bias_ema", 1.0 - 1e-9}});
    Fixture f(options, small_shape(1), 1, 8, DType::f32);
    fill(f.row("e_score_correction_bias"), {0, 0, 1000, 0, 0});
    const OwnedTensor x = test::normal({8, 6}, DType::f32, "x"), token = ints(std::vector<double>(8, 1));
    const OwnedTensor r = test::normal({8, 1}, DType::f32, "r"), q = test::normal({8, 6}, DType::f32, "q");
    const OwnedTensor none = test::normal({1, 5}, DType::f64, "none", 0.0);
    for (std::int64_t step = 0; step < 3; ++step) {
      const auto keys = values(f.row("expert_keys"));
      const OwnedTensor place = ints({static_cast<double>(step), 0});
      const RouterBatch batch{
          .token_T = token, .seq_len = 8, .training = true, .seed = 1, .rng_offset_2 = place};
      const RouterOutput out = f.router->forward(x, batch, f.ctx);
      EXPECT_EQ(values(out.decision.expert_TK), std::vector<double>(8, 2.0));
      const RoutingLossGradient gradient{
          .dprob_BE = none, .dlse2 = 0, .token_share = 1.0 / 8, .statistics_S = *f.statistics_S};
      EXPECT_TRUE(std::isfinite(f.own_loss(gradient)));
      const OwnedTensor dx = test::normal({8, 6}, DType::f32, "dx", 0.0);
      f.router->backward(dx, {.dweight_TK = r, .daddend_TD = q}, x, batch, gradient, f.ctx);
      EXPECT_TRUE(std::isfinite(test::dot(dx, dx))) << similarity;
      f.router->after_step(test::doubles({0, 0, 8, 0, 0}), *f.statistics_S, f.ctx);
      EXPECT_TRUE(std::isfinite(test::dot(f.row("expert_keys"), f.row("expert_keys")))) << similarity;
      EXPECT_NE(values(f.row("expert_keys")), keys);
    }
  }
}

// ---- configuration ----

std::string refusal(const std::string& router) {
  try {
    config::parse_run(R"({"model": {"model_type": "qwen3_moe", "vocab_size": 8, "hidden_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "moe_intermediate_size": 4, "num_experts": 4,
        "num_experts_per_tok": 2}, "data": {"train": ["a"]},
        "train": {"steps": 1, "seq_len": 8, "micro_batch_size": 1}, "router": {"type": "lpr", )" +
                          router + "}}",
                      "run.json", {}, router_schemas());
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(LatentPrototype, OptionsThatDoNotGoTogetherAreRefused) {
  EXPECT_EQ(refusal(R"("similarity": "cross_attention", "num_heads": 4)"), "");
  const std::pair<const char*, const char*> cases[] = {
      {R"("similarity": "cross_attention", "num_heads": 3)", "router.num_heads: is 3, which does not divide"},
      {R"("num_heads": 2)", "router.num_heads: is 2, but similarity"},
      {R"("sigma": 2)", "router.sigma: is 2, but similarity"},
      {R"("similarity": "cosinus")", "router.similarity"},
      {R"("latent_dim": 0)", "router.latent_dim"},
      {R"("diversity": "euclidean")", "router.reg_scope: is \"global_batch\", but diversity"},
      {R"("ema_decay": 0.5)", "router.ema_decay: is 0.5, but key_update"},
      {R"("bias_ema": 0.5)", "router.bias_ema: is 0.5, but bias"},
      {R"("bias_update_speed": 0.5)", "router.bias_update_speed"}};
  for (const auto& [router, message] : cases)
    EXPECT_NE(refusal(router).find(message), std::string::npos) << router << ": " << refusal(router);
}

}  // namespace
}  // namespace switchyard::router
