#include "router/quantile_bias.h"

#include <algorithm>

#include "ops/elementwise.h"
#include "ops/router_state.h"
#include "ops/routing.h"
#include "ops/sigmoid_group.h"
#include "ops/slots.h"
#include "router/linear_gate.h"

namespace switchyard::router {

config::RouterOption settle_tokens_option() {
  return {.key = "settle_tokens",
          .fallback = std::int64_t{0},
          .range = {0, static_cast<double>(std::int64_t{1} << 40)},
          .in_training_alone = true};
}

// Where every expert is chosen there is no cutoff and nothing to balance: then nothing is counted.
QuantileBias::QuantileBias(const RouterShape& shape, const config::RouterOptions& own,
                           const std::string& meaning, const std::string& prefix, ParameterStore& store)
    : n_experts_(shape.n_experts),
      n_slots_(shape.n_slots),
      ema_(own.number("bias_ema")),
      solves_(own.integer("bias_solves")),
      settle_tokens_(own.integer("settle_tokens")),
      store_(store),
      bias_(add_expert_state(prefix + "e_score_correction_bias", shape.n_experts, meaning, store)) {}

std::int64_t QuantileBias::n_statistics() const {
  return n_slots_ < n_experts_ ? n_experts_ * 2 * ops::kGapBins : 0;
}

Tensor QuantileBias::bins(const Tensor& gap_count_S) const {
  return gap_count_S.reshape(Shape{n_experts_, 2 * ops::kGapBins});
}

void QuantileBias::choose(Tensor expert_TK, Tensor gap_count_S, Tensor score_TE, const RouterBatch& batch,
                          Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const std::int64_t n_tokens = score_TE.rows(), Kp = std::min(n_slots_ + 1, n_experts_);
  const Tensor choice_TE = ctx.scratch.take(score_TE.shape(), score_TE.dtype());
  const Tensor best_TKp = ctx.scratch.take(Shape{n_tokens, Kp}, DType::i32);
  const Tensor best_choice_TKp = ctx.scratch.take(Shape{n_tokens, Kp}, score_TE.dtype());
  const auto choose_by = [&](const Tensor& bias_E) {
    ops::group_choice(choice_TE, score_TE, bias_E, 1, 1, ctx);  // score + bias
    ops::top_k(best_TKp, best_choice_TKp, choice_TE, batch.token_T, ctx);
  };
  const Tensor& bias_E = store_.value(bias_);
  choose_by(bias_E);
  if (batch.training && n_statistics() > 0) {
    const Tensor cutoff_T1 = ctx.scratch.take(Shape{n_tokens, 1}, score_TE.dtype());
    const auto count_gaps = [&](const Tensor& count_S) {
      ops::copy(cutoff_T1, best_choice_TKp.columns(n_slots_, 1), ctx);
      ops::cutoff_gap_histogram(bins(count_S), choice_TE, cutoff_T1.reshape({n_tokens}), batch.token_T, ctx);
    };
    count_gaps(gap_count_S);
    if (solves_ > 0) {
      const Tensor own_bias_E = ctx.scratch.take(bias_E.shape(), bias_E.dtype());
      const Tensor own_count_S = ctx.scratch.take(gap_count_S.shape(), gap_count_S.dtype());
      ops::copy(own_bias_E, bias_E, ctx);
      for (std::int64_t solve = 0; solve < solves_; ++solve) {
        if (solve > 0) count_gaps(own_count_S);
        ops::follow_quantile_bias(own_bias_E, bins(solve > 0 ? own_count_S : gap_count_S), share(), 0, ctx);
        choose_by(own_bias_E);
      }
    }
  }
  ops::copy(expert_TK, best_TKp.columns(0, n_slots_), ctx);
}

void QuantileBias::settle(Tensor gap_count_S, double keep, Context& ctx) {
  if (n_statistics() == 0) return;
  ops::follow_quantile_bias(store_.value(bias_), bins(gap_count_S), share(), keep, ctx);
}

}  // namespace switchyard::router
