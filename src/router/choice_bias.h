// The bias that chooses with the scores and does not weigh, and the rules by which it moves after a step
// (docs/router-mathematics.md, section 1, "rules of the bias"). Any scores may have it.
//   T tokens, E experts, K slots a token, S statistics
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "router/quantile_bias.h"
#include "router/router.h"

namespace switchyard::router {

// What moves the bias: a sign step towards the mean load; the same softly clamped, with momentum (SMEBU); the
// logarithm of an average load (phi-balancing); or the quantile that gives each expert its share.
enum class BiasRule { sign, smebu, phi, quantile };

// Experts in so many groups of neighbours, of which so many can be chosen from.
struct ExpertGroups {
  std::int64_t n_group = 1, topk_group = 1;
};

class ChoiceBias {
 public:
  // Adds "e_score_correction_bias" [E] of this meaning (Parameter's), and what the option "bias" needs beside
  // it: "bias_momentum" [E] for smebu, "expert_load" [E] for phi. The rule quantile knows no groups.
  ChoiceBias(const config::RouterOptions& options, const RouterShape& shape, const ExpertGroups& groups,
             const std::string& meaning, const std::string& prefix, ParameterStore& store);

  // How many numbers of a router's statistics are this bias's.
  std::int64_t n_statistics() const { return quantile_ ? quantile_->n_statistics() : 0; }

  // expert_TK i32, set: the K largest score_TE + bias within the best groups, in descending order of that sum.
  // own_S: f64 [n_statistics()], set in training; read only then.
  void choose(Tensor expert_TK, Tensor own_S, Tensor score_TE, const RouterBatch& batch, Context& ctx);

  // Router::after_step() of a router with this bias.
  void after_step(Tensor count_E, Tensor own_S, Context& ctx);
  // Likewise Router::settle_tokens() and Router::settle(): of the rule quantile.
  std::int64_t settle_tokens() const { return quantile_ ? quantile_->settle_tokens() : 0; }
  void settle(Tensor own_S, double keep, Context& ctx) {
    if (quantile_) quantile_->settle(own_S, keep, ctx);
  }

 private:
  BiasRule rule_;
  ExpertGroups groups_;
  double speed_ = 0, kappa_ = 0, momentum_kept_ = 0, load_kept_ = 0, strength_ = 0;
  bool mean_free_ = false;
  ParameterStore& store_;
  std::optional<QuantileBias> quantile_;  // has the bias where it is there
  std::size_t bias_ = 0, momentum_ = 0, load_ = 0;
};

// The options of a router with such a bias: "bias" with these words, of which "none" says that there is no
// bias, and what these rules read. `mean_free`: the default of bias_mean_free.
std::vector<config::RouterOption> choice_bias_options(std::vector<std::string_view> words,
                                                      std::string_view fallback, bool mean_free);
// A router's own options and those that it shares with others, in this order.
std::vector<config::RouterOption> joined(std::vector<config::RouterOption> own,
                                         const std::vector<config::RouterOption>& shared);
// Refuses what the rule that is chosen does not read. `mean_free` as above.
void check_choice_bias(const config::Router& router, bool mean_free,
                       const config::RouterSchema::Refuse& refuse);

}  // namespace switchyard::router
