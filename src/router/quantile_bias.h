// The bias of quantile balancing: one solve an optimizer step, no loss term (docs/router-mathematics.md,
// section 1, quantile). It composes with any scores S.   T tokens, E experts, K slots a token
//
// With cutoff_t the (K+1)-th largest S + b of token t, expert j is chosen by token t for any bias above
// cutoff_t - S_tj; the new b_j is the K/E quantile of that margin over the tokens of the global batch, less the
// mean over experts. What is counted is the margin's distance from the bias in force.
#pragma once

#include <string>

#include "router/router.h"

namespace switchyard::router {

class QuantileBias {
 public:
  // Adds "e_score_correction_bias" [E] of this meaning (Parameter's). `ema` is the share of the old bias that a
  // step keeps.
  QuantileBias(const RouterShape& shape, double ema, const std::string& meaning, const std::string& prefix,
               ParameterStore& store);

  // How many numbers of a router's statistics are this bias's.
  std::int64_t n_statistics() const;

  // expert_TK i32, set: the K largest score_TE + bias, in descending order of that sum. In training the gaps
  // are counted: gap_count_S, f64 [n_statistics()], set; read only then.
  void choose(Tensor expert_TK, Tensor gap_count_S, Tensor score_TE, const RouterBatch& batch, Context& ctx);

  // Router::after_step() of a router with this bias.
  void after_step(Tensor gap_count_S, Context& ctx);

 private:
  std::int64_t n_experts_, n_slots_;
  double ema_;
  ParameterStore& store_;
  std::size_t bias_;
};

}  // namespace switchyard::router
