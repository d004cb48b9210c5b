// The bias of quantile balancing: one solve an optimizer step, no loss term (docs/router-mathematics.md,
// section 1, quantile). It composes with any scores S.   T tokens, E experts, K slots a token
//
// With cutoff_t the (K+1)-th largest S + b of token t, expert j is chosen by token t for any bias above
// cutoff_t - S_tj; the new b_j is the K/E quantile of that margin over the tokens of the global batch, less the
// mean over experts. What is counted is the margin's distance from the bias in force.
//
// b follows the router one step behind. Two ways to be nearer, neither of which sees a token that is evaluated:
//   solves         each micro-batch of training solves a bias of its own, from b on, so many times before its
//                  experts are chosen; b itself moves as without.
//   settle_tokens  before the run is evaluated or saved, b is solved on further training tokens with weights
//                  standing still (Step::settle_routers).
#pragma once

#include <string>
#include <vector>

#include "config/router_schema.h"
#include "router/router.h"

namespace switchyard::router {

// Router::settle_tokens() of a router that settles.
config::RouterOption settle_tokens_option();

class QuantileBias {
 public:
  // Adds "e_score_correction_bias" [E] of this meaning (Parameter's). `own`: the router's options, of
  // which bias_ema, bias_solves and settle_tokens are read (choice_bias.h).
  QuantileBias(const RouterShape& shape, const config::RouterOptions& own, const std::string& meaning,
               const std::string& prefix, ParameterStore& store);

  // How many numbers of a router's statistics are this bias's.
  std::int64_t n_statistics() const;

  // expert_TK i32, set: the K largest score_TE + bias, in descending order of that sum. In training the gaps
  // are counted: gap_count_S, f64 [n_statistics()], set; read only then.
  void choose(Tensor expert_TK, Tensor gap_count_S, Tensor score_TE, const RouterBatch& batch, Context& ctx);

  // Router's functions of the same names, of a router with this bias.
  void after_step(Tensor gap_count_S, Context& ctx) { settle(gap_count_S, ema_, ctx); }
  std::int64_t settle_tokens() const { return n_statistics() > 0 ? settle_tokens_ : 0; }
  void settle(Tensor gap_count_S, double keep, Context& ctx);

 private:
  Tensor bins(const Tensor& gap_count_S) const;
  double share() const { return static_cast<double>(n_slots_) / static_cast<double>(n_experts_); }

  std::int64_t n_experts_, n_slots_;
  double ema_;
  std::int64_t solves_, settle_tokens_;
  ParameterStore& store_;
  std::size_t bias_;
};

}  // namespace switchyard::router
