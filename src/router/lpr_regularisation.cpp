#include "router/lpr_regularisation.h"

#include "ops/elementwise.h"
#include "ops/latent.h"
#include "ops/latent_losses.h"

namespace switchyard::router {

namespace {

ops::Diversity diversity_of(const std::string& name) {
  if (name == "orthogonal") return ops::Diversity::orthogonal;
  if (name == "cosine") return ops::Diversity::cosine;
  SY_CHECK(name == "euclidean", "no diversity {}", name);
  return ops::Diversity::euclidean;
}

}  // namespace

LatentRegularisation::LatentRegularisation(const config::Router& options, std::int64_t n_experts)
    : diversity_(diversity_of(options.own.word("diversity"))),
      global_scope_(options.own.word("reg_scope") == "global_batch"),
      ema_(options.own.word("key_update") == "ema"),
      n_experts_(n_experts),
      width_(options.own.integer("latent_dim")) {
  const double reg_coef = options.own.number("reg_coef");
  div_coef_ = reg_coef * options.own.number("div_weight") * options.own.number("diversity_lambda");
  kl_coef_ = reg_coef * options.own.number("kl_weight");
  align_coef_ = reg_coef * options.own.number("align_weight");
}

bool LatentRegularisation::needs_statistics_first() const {
  return global_scope_ && (div_coef_ != 0 || align_coef_ != 0);
}

std::int64_t LatentRegularisation::n_statistics() const {
  return routed_place() + (needs_routed_sums() ? n_experts_ * (width_ + 1) : 0);
}

LatentRegularisation::Parts LatentRegularisation::parts(const Tensor& statistics_S) const {
  const std::int64_t d = width_, E = n_experts_;
  Parts parts{.tokens_1 = statistics_S.slice(kTokens, 1),
              .kl_1 = statistics_S.slice(kKl, 1),
              .distance_1 = statistics_S.slice(kDistance, 1),
              .gram_dd = statistics_S.slice(kMoments, d * d).reshape(Shape{d, d}),
              .sum_d = statistics_S.slice(kMoments + d * d, d)};
  if (needs_routed_sums()) {
    parts.routed_sum_Ed = statistics_S.slice(routed_place(), E * d).reshape(Shape{E, d});
    parts.routed_count_E = statistics_S.slice(routed_place() + E * d, E);
  }
  return parts;
}

void LatentRegularisation::observe(Tensor statistics_S, const LatentRows& token, Tensor z_Td, Tensor chosen_TK,
                                   Tensor expert_TK, Tensor token_T, Context& ctx) const {
  const Parts own = parts(statistics_S);
  ops::fill_zero(statistics_S, ctx);  // what no term reads
  ops::count_rows(own.tokens_1, token_T, ctx);
  if (kl_coef_ != 0) ops::standard_kl_sum(own.kl_1, token.mean, token.log_var, token_T, ctx);
  if (div_coef_ != 0 && diversity_ == ops::Diversity::euclidean)
    ops::pair_distance_sum(own.distance_1, token.mean, token_T, ctx);
  else if (div_coef_ != 0)
    ops::row_moments(own.gram_dd, own.sum_d, token.unit, token_T, ctx);
  if (needs_routed_sums())
    ops::routed_sums(own.routed_sum_Ed, own.routed_count_E, z_Td, chosen_TK, expert_TK, ctx);
}

ops::RowSums LatentRegularisation::token_sums(const Parts& parts) const {
  return {parts.gram_dd, parts.sum_d, parts.distance_1, parts.tokens_1};
}

ops::RowSums LatentRegularisation::key_sums(Tensor key_Ed, Tensor key_unit_Ed, Context& ctx) const {
  ops::RowSums sums{.n = static_cast<double>(n_experts_)};
  if (diversity_ == ops::Diversity::euclidean) {
    sums.distance_1 = ctx.scratch.take(Shape{1}, DType::f64);
    ops::pair_distance_sum(sums.distance_1, key_Ed, {}, ctx);
  } else {
    sums.gram_dd = ctx.scratch.take(Shape{width_, width_}, DType::f64);
    sums.sum_d = ctx.scratch.take(Shape{width_}, DType::f64);
    ops::row_moments(sums.gram_dd, sums.sum_d, key_unit_Ed, {}, ctx);
  }
  return sums;
}

LatentRegularisation::RoutedSums LatentRegularisation::routed_sums(Tensor statistics_S) const {
  const Parts all = parts(statistics_S);
  return {all.routed_sum_Ed, all.routed_count_E};
}

// What is not a sum over tokens counts in proportion to the micro-batch's tokens.
void LatentRegularisation::add_loss(Tensor loss_1, Tensor key_Ed, Tensor own_S, Tensor global_S,
                                    double token_share, Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  const Parts own = parts(own_S), in_scope = parts(global_scope_ ? global_S : own_S);
  if (kl_coef_ != 0) ops::accumulate(loss_1, own.kl_1, kl_coef_ * token_share, ctx);
  if (div_coef_ != 0) {
    const ops::TermFactor factor{div_coef_ * token_share, own.tokens_1};
    const Tensor unit_Ed = ctx.scratch.take(key_Ed.shape(), key_Ed.dtype()),
                 norm_E = ctx.scratch.take(Shape{n_experts_}, key_Ed.dtype());
    ops::unit_rows_forward(unit_Ed, norm_E, key_Ed, ctx);
    ops::add_diversity_loss(loss_1, diversity_, token_sums(in_scope), factor, ctx);
    ops::add_diversity_loss(loss_1, diversity_, key_sums(key_Ed, unit_Ed, ctx), factor, ctx);
  }
  if (align_coef_ != 0)
    ops::add_alignment_loss(loss_1, key_Ed, in_scope.routed_sum_Ed, {align_coef_ * token_share, own.tokens_1},
                            ctx);
}

void LatentRegularisation::add_diversity_gradient(const LatentRows& drow, const LatentRows& row, Tensor token_R,
                                                  const ops::RowSums& sums, const ops::TermFactor& factor,
                                                  Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  const Tensor matrix_dd = ctx.scratch.take(Shape{width_, width_}, DType::f64),
               offset_d = ctx.scratch.take(Shape{width_}, DType::f64),
               scale_1 = ctx.scratch.take(Shape{1}, DType::f64);
  ops::diversity_gradient(matrix_dd, offset_d, scale_1, diversity_, sums, factor, ctx);
  if (diversity_ == ops::Diversity::euclidean)
    ops::pair_distance_backward(drow.mean, row.mean, token_R, scale_1, ctx);
  else
    ops::add_affine_rows(drow.unit, row.unit, matrix_dd, offset_d, token_R, ctx);
}

void LatentRegularisation::backward(const LatentRows& dtoken, const LatentRows& dkey, const LatentRows& token,
                                    const LatentRows& key, Tensor token_T, Tensor own_S, Tensor global_S,
                                    double token_share, Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  const Parts own = parts(own_S), in_scope = parts(global_scope_ ? global_S : own_S);
  if (kl_coef_ != 0)
    ops::standard_kl_backward(dtoken.mean, dtoken.log_var, token.mean, token.log_var, token_T,
                              kl_coef_ * token_share, ctx);
  if (div_coef_ != 0) {
    const ops::TermFactor of_micro_batch{div_coef_ * token_share, own.tokens_1};
    // A token's part in the global batch's term is whole, in a micro-batch's it has the micro-batch's share.
    add_diversity_gradient(dtoken, token, token_T, token_sums(in_scope),
                           global_scope_ ? ops::TermFactor{div_coef_} : of_micro_batch, ctx);
    add_diversity_gradient(dkey, key, {}, key_sums(key.mean, key.unit, ctx), of_micro_batch, ctx);
  }
  if (align_coef_ != 0)
    ops::alignment_backward(dkey.mean, key.mean, in_scope.routed_sum_Ed,
                            {align_coef_ * token_share, own.tokens_1}, ctx);
}

}  // namespace switchyard::router
