// What a type of router can be configured with. Each router declares its schema beside its code, in the router
// module; this module reads `router` by the schemas that it is handed, and knows no router.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "config/ranges.h"

namespace switchyard::config {

struct RouterOption {
  std::string_view key;
  OptionValue fallback;                     // where the key is absent; its type is the key's type
  Interval range{};                         // of an integer or a number
  std::vector<std::string_view> choices{};  // of a word
  // Where the model gives the default. The most experts a token goes to is called max_experts in every router
  // that has such an option (slots_per_token).
  std::int64_t (*fallback_of)(const Model&) = nullptr;
  bool in_training_alone = false;  // has no part in what a trained model computes
  bool kept_each_step = false;     // the share of a running mean that a step keeps
};

struct RouterSchema {
  std::string_view type;
  double balance_coef = 0.001;  // defaults
  BalanceScope balance_scope = BalanceScope::global_batch;
  // Why z_loss_coef must stay 0 ("which has no softmax ..."); empty: it works.
  std::string_view no_z_loss{};
  std::string_view no_logit_norm{};  // the same of logit_norm
  // What weights sum to whatever norm_topk_prob says; none: it decides.
  std::string_view weights_sum_to{};
  std::vector<RouterOption> options{};
  // What no range says: calls `refuse(key, problem, other key)` where options do not go together.
  using Refuse =
      std::function<void(std::string_view key, const std::string& problem, std::string_view other_key)>;
  std::function<void(const Router&, const Model&, const Refuse&)> check{};
};

// A router of this type with every default for this model.
Router default_of(const RouterSchema& schema, const Model& model);
// The schema of a type. Throws std::logic_error where there is none.
const RouterSchema& schema_of(std::string_view type, std::span<const RouterSchema> routers);

// What of the forward pass of a trained model is not the layout's own, and hence not what transformers computes
// from the same weights: one clause each, naming the key; none where all of it is. What acts in training alone
// (jitter, losses, how a bias moves) does not count.
std::vector<std::string> beyond_layout(const Router& router, const Model& model,
                                       std::span<const RouterSchema> routers);

// max_experts: as many as num_experts_per_tok unless it says otherwise, and never more than there are.
RouterOption max_experts_option();
void check_max_experts(const Router& router, const Model& model, const RouterSchema::Refuse& refuse);

}  // namespace switchyard::config
