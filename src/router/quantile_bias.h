// The bias of quantile balancing: one solve an optimizer step, no loss term (ROUTERS.md, section 1, quantile).
// It composes with any scores S.   T tokens, E experts, K slots a token
//
// With cutoff_t the (K+1)-th largest S + b of token t, expert j is chosen by token t for any bias above
// cutoff_t - S_tj; the new b_j is the K/E quantile of that margin over the tokens of the global batch, less the
// mean over experts.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "router/router.h"

namespace switchyard::router {

// The new biases from the histograms of the margins over [low, high), bin after bin, expert after expert.
std::vector<double> solve_quantile_bias(std::span<const double> count_EN, std::size_t n_experts, double low,
                                        double high, double share);

class QuantileBias {
 public:
  // Adds "e_score_correction_bias" [E]. The scores lie within [score_low, score_high]; `ema` is the share of
  // the old bias that a step keeps.
  QuantileBias(const RouterShape& shape, double score_low, double score_high, double ema,
               const std::string& prefix, ParameterStore& store);

  // expert_TK i32, set: the K largest score_TE + bias, in descending order of that sum. In training the margins
  // are counted.
  void choose(Tensor expert_TK, Tensor score_TE, const RouterBatch& batch, Context& ctx);

  // Router::statistics() and Router::after_step() of a router with this bias.
  std::span<const double> statistics() const { return margin_count_EN_; }
  void after_step(std::span<const double> statistics);

 private:
  struct Range {
    double low, high;
  };
  Range margins() const;  // of the biases in force

  std::int64_t n_experts_, n_slots_;
  double score_low_, score_high_, ema_;
  ParameterStore& store_;
  std::size_t bias_;
  std::vector<double> margin_count_EN_;
};

}  // namespace switchyard::router
