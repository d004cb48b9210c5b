#include "router/quantile_bias.h"

#include <algorithm>

#include "ops/elementwise.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/slots.h"
#include "router/linear_gate.h"

namespace switchyard::router {

// Where every expert is chosen there is no cutoff and nothing to balance: then nothing is counted.
QuantileBias::QuantileBias(const RouterShape& shape, double ema, const std::string& meaning,
                           const std::string& prefix, ParameterStore& store)
    : n_experts_(shape.n_experts),
      n_slots_(shape.n_slots),
      ema_(ema),
      store_(store),
      bias_(add_expert_state(prefix + "e_score_correction_bias", shape.n_experts, meaning, store)) {}

std::int64_t QuantileBias::n_statistics() const {
  return n_slots_ < n_experts_ ? n_experts_ * 2 * ops::kGapBins : 0;
}

void QuantileBias::choose(Tensor expert_TK, Tensor gap_count_S, Tensor score_TE, const RouterBatch& batch,
                          Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const std::int64_t n_tokens = score_TE.rows(), Kp = std::min(n_slots_ + 1, n_experts_);
  const Tensor choice_TE = ctx.scratch.take(score_TE.shape(), score_TE.dtype());
  const Tensor best_TKp = ctx.scratch.take(Shape{n_tokens, Kp}, DType::i32);
  const Tensor best_choice_TKp = ctx.scratch.take(Shape{n_tokens, Kp}, score_TE.dtype());
  ops::group_choice(choice_TE, score_TE, store_.value(bias_), 1, 1, ctx);  // score + bias
  ops::top_k(best_TKp, best_choice_TKp, choice_TE, batch.token_T, ctx);
  ops::copy(expert_TK, best_TKp.columns(0, n_slots_), ctx);
  if (!batch.training || n_statistics() == 0) return;
  const Tensor cutoff_T1 = ctx.scratch.take(Shape{n_tokens, 1}, score_TE.dtype());
  ops::copy(cutoff_T1, best_choice_TKp.columns(n_slots_, 1), ctx);
  ops::cutoff_gap_histogram(gap_count_S.reshape(Shape{n_experts_, 2 * ops::kGapBins}), choice_TE,
                            cutoff_T1.reshape({n_tokens}), batch.token_T, ctx);
}

void QuantileBias::after_step(Tensor gap_count_S, Context& ctx) {
  if (n_statistics() == 0) return;
  ops::follow_quantile_bias(store_.value(bias_), gap_count_S.reshape(Shape{n_experts_, 2 * ops::kGapBins}),
                            static_cast<double>(n_slots_) / static_cast<double>(n_experts_), ema_, ctx);
}

}  // namespace switchyard::router
