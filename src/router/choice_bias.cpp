#include "router/choice_bias.h"

#include <fmt/core.h>

#include <algorithm>

#include "ops/router_state.h"
#include "ops/sigmoid_group.h"
#include "ops/slots.h"
#include "router/linear_gate.h"

namespace switchyard::router {

namespace {

struct NamedRule {
  std::string_view word;
  BiasRule rule;
};
constexpr NamedRule kRules[] = {{"sign", BiasRule::sign},
                                {"smebu", BiasRule::smebu},
                                {"phi", BiasRule::phi},
                                {"quantile", BiasRule::quantile}};

BiasRule rule_of(const std::string& word) {
  for (const NamedRule& each : kRules)
    if (each.word == word) return each.rule;
  SY_CHECK(false, "no rule of a bias is called {}", word);
}

constexpr config::Interval kKept{0, 1, false, true};

// What one rule or some read, and no other.
struct OptionOfRules {
  config::RouterOption option;
  std::vector<BiasRule> rules;
};
std::vector<OptionOfRules> options_of_rules(bool mean_free) {
  return {
      {{.key = "bias_update_speed", .fallback = 1e-3, .range = config::kShare, .in_training_alone = true},
       {BiasRule::sign, BiasRule::smebu}},
      {{.key = "bias_mean_free", .fallback = mean_free, .in_training_alone = true}, {BiasRule::sign}},
      // Of Trinity Large, which has a bias_update_speed of 5e-4 (arXiv 2602.17004).
      {{.key = "bias_kappa", .fallback = 2.0, .range = {0, 1000, true}, .in_training_alone = true},
       {BiasRule::smebu}},
      {{.key = "bias_momentum", .fallback = 0.5, .range = kKept, .in_training_alone = true}, {BiasRule::smebu}},
      {{.key = "phi_strength", .fallback = 1.0, .range = {0, 1000, true}, .in_training_alone = true},
       {BiasRule::phi}},
      {{.key = "phi_decay",
        .fallback = 0.99,
        .range = kKept,
        .in_training_alone = true,
        .kept_each_step = true},
       {BiasRule::phi}},
      {{.key = "bias_ema", .fallback = 0.0, .range = kKept, .in_training_alone = true, .kept_each_step = true},
       {BiasRule::quantile}},
      {{.key = "bias_solves", .fallback = std::int64_t{0}, .range = {0, 16}, .in_training_alone = true},
       {BiasRule::quantile}},
      {settle_tokens_option(), {BiasRule::quantile}}};
}

// As a configuration has it; no option of a rule is a word.
std::string text_of(const config::OptionValue& value) {
  if (std::holds_alternative<bool>(value)) return std::get<bool>(value) ? "true" : "false";
  if (std::holds_alternative<std::int64_t>(value)) return fmt::format("{}", std::get<std::int64_t>(value));
  return fmt::format("{}", std::get<double>(value));
}

bool reads(const OptionOfRules& each, const std::string& word) {
  return word != "none" && std::count(each.rules.begin(), each.rules.end(), rule_of(word)) > 0;
}

}  // namespace

ChoiceBias::ChoiceBias(const config::RouterOptions& options, const RouterShape& shape,
                       const ExpertGroups& groups, const std::string& meaning, const std::string& prefix,
                       ParameterStore& store)
    : rule_(rule_of(options.word("bias"))), groups_(groups), store_(store) {
  if (rule_ == BiasRule::quantile) {
    SY_CHECK(groups.n_group == 1, "a bias that is solved for knows no groups of experts");
    quantile_.emplace(shape, options, meaning, prefix, store);
    return;
  }
  const std::int64_t E = shape.n_experts;
  bias_ = add_expert_state(prefix + "e_score_correction_bias", E, meaning, store);
  switch (rule_) {
    case BiasRule::sign:
      speed_ = options.number("bias_update_speed");
      mean_free_ = options.boolean("bias_mean_free");
      break;
    case BiasRule::smebu:
      speed_ = options.number("bias_update_speed");
      kappa_ = options.number("bias_kappa");
      momentum_kept_ = options.number("bias_momentum");
      momentum_ = add_expert_state(prefix + "bias_momentum", E, meaning, store);
      break;
    case BiasRule::phi:
      load_kept_ = options.number("phi_decay");
      strength_ = options.number("phi_strength");
      store.begin_group();
      load_ = store.add({.name = prefix + "expert_load",  // 1 at balance, where a run begins
                         .shape = Shape{E},
                         .init = Init::ones,
                         .weight_decay = false,
                         .trained = false});
      break;
    case BiasRule::quantile:
      break;
  }
}

void ChoiceBias::choose(Tensor expert_TK, Tensor own_S, Tensor score_TE, const RouterBatch& batch,
                        Context& ctx) {
  if (quantile_) return quantile_->choose(expert_TK, own_S, score_TE, batch, ctx);
  ScratchScope scope(ctx.scratch);
  const Tensor choice_TE = ctx.scratch.take(score_TE.shape(), score_TE.dtype());
  const Tensor chosen_choice_TK = ctx.scratch.take(expert_TK.shape(), score_TE.dtype());
  ops::group_choice(choice_TE, score_TE, store_.value(bias_), groups_.n_group, groups_.topk_group, ctx);
  ops::top_k(expert_TK, chosen_choice_TK, choice_TE, batch.token_T, ctx);
}

void ChoiceBias::after_step(Tensor count_E, Tensor own_S, Context& ctx) {
  switch (rule_) {
    case BiasRule::sign:
      if (speed_ != 0) ops::balance_bias(store_.value(bias_), count_E, speed_, mean_free_, ctx);
      break;
    case BiasRule::smebu:
      ops::balance_bias_softly(store_.value(bias_), store_.value(momentum_), count_E,
                               {.speed = speed_, .kappa = kappa_, .keep = momentum_kept_}, ctx);
      break;
    case BiasRule::phi:
      ops::follow_load_bias(store_.value(bias_), store_.value(load_), count_E, load_kept_, strength_, ctx);
      break;
    case BiasRule::quantile:
      quantile_->after_step(own_S, ctx);
      break;
  }
}

std::vector<config::RouterOption> choice_bias_options(std::vector<std::string_view> words,
                                                      std::string_view fallback, bool mean_free) {
  const auto has = [&](std::string_view word) { return std::count(words.begin(), words.end(), word) > 0; };
  // Where there may be no bias at all, a model without one computes something else.
  std::vector<config::RouterOption> options = {
      {.key = "bias", .fallback = std::string(fallback), .choices = words, .in_training_alone = !has("none")}};
  for (OptionOfRules& each : options_of_rules(mean_free))
    if (std::any_of(words.begin(), words.end(),
                    [&](std::string_view word) { return reads(each, std::string(word)); }))
      options.push_back(std::move(each.option));
  return options;
}

std::vector<config::RouterOption> joined(std::vector<config::RouterOption> own,
                                         const std::vector<config::RouterOption>& shared) {
  own.insert(own.end(), shared.begin(), shared.end());
  return own;
}

void check_choice_bias(const config::Router& router, bool mean_free,
                       const config::RouterSchema::Refuse& refuse) {
  const std::string& word = router.own.word("bias");
  for (const OptionOfRules& each : options_of_rules(mean_free)) {
    if (!router.own.has(each.option.key) || reads(each, word)) continue;
    for (const auto& [key, value] : router.own.all())
      if (key == each.option.key && value != each.option.fallback)
        refuse(
            key,
            fmt::format("is {}, but bias is \"{}\", which does not read it; remove it", text_of(value), word),
            "bias");
  }
}

}  // namespace switchyard::router
