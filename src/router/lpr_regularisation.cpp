#include "router/lpr_regularisation.h"

#include <algorithm>
#include <cmath>

#include "core/device_memory.h"
#include "ops/latent.h"
#include "router/host_row.h"

namespace switchyard::router {

namespace {

constexpr std::size_t kTokens = 0, kKl = 1, kDistance = 2, kMoments = 3;

double square_sum(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}

Diversity diversity_of(const std::string& name) {
  if (name == "orthogonal") return Diversity::orthogonal;
  if (name == "cosine") return Diversity::cosine;
  SY_CHECK(name == "euclidean", "no diversity {}", name);
  return Diversity::euclidean;
}

// Of E x d numbers on the host, as a tensor.
Tensor view(std::vector<double>& values, std::size_t first, Shape shape) {
  return Tensor(values.data() + first, shape, DType::f64);
}

// drow_Rd += scale times the gradient of the term.
void add_diversity_gradient(const LatentRows& drow, const LatentRows& row, Tensor skip_R, DiversityTerm term,
                            double scale, Diversity kind, Context& ctx) {
  if (scale == 0) return;
  if (kind == Diversity::euclidean)
    return ops::pair_distance_backward(drow.mean, row.mean, skip_R, scale * term.distance_scale, ctx);
  const auto d = static_cast<std::int64_t>(term.offset_d.size());
  for (std::vector<double>* values : {&term.matrix_dd, &term.offset_d})
    for (double& value : *values) value *= scale;
  ops::add_affine_rows(drow.unit, row.unit, view(term.matrix_dd, 0, Shape{d, d}),
                       view(term.offset_d, 0, Shape{d}), skip_R, ctx);
}

}  // namespace

DiversityTerm diversity_term(Diversity kind, const RowSums& rows, std::int64_t d) {
  const auto width = static_cast<std::size_t>(d);
  DiversityTerm term;
  term.matrix_dd.resize(width * width);
  term.offset_d.resize(width);
  const double n = rows.n, pairs = n * (n - 1);
  if (n < 2) return term;
  double trace = 0;
  if (kind != Diversity::euclidean)
    for (std::size_t i = 0; i < width; ++i) trace += rows.gram_dd[i * width + i];
  switch (kind) {
    case Diversity::orthogonal:
      term.value = (square_sum(rows.gram_dd) - 2 * trace + n) / (n * n);
      for (std::size_t i = 0; i < width; ++i)
        for (std::size_t j = 0; j < width; ++j)
          term.matrix_dd[i * width + j] = 4 * (rows.gram_dd[i * width + j] - (i == j ? 1 : 0)) / (n * n);
      break;
    case Diversity::cosine:
      term.value = (square_sum(rows.sum_d) - trace) / pairs;
      for (std::size_t i = 0; i < width; ++i) {
        term.matrix_dd[i * width + i] = -2 / pairs;
        term.offset_d[i] = 2 * rows.sum_d[i] / pairs;
      }
      break;
    case Diversity::euclidean:
      term.value = -rows.distance / pairs;
      term.distance_scale = -1 / pairs;
      break;
  }
  return term;
}

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
  const auto E = static_cast<std::size_t>(n_experts), d = static_cast<std::size_t>(width_);
  statistics_.resize(kMoments + d * d + d + (needs_routed_sums() ? E * d + E : 0));
  key_gram_dd_.resize(d * d);
  key_sum_d_.resize(d);
}

bool LatentRegularisation::needs_statistics_first() const {
  return global_scope_ && (div_coef_ != 0 || align_coef_ != 0);
}

void LatentRegularisation::observe(const LatentRows& token, const LatentRows& key, Tensor z_Td,
                                   Tensor chosen_TK, Tensor expert_TK, Tensor token_T, Context& ctx) {
  const std::int64_t d = width_, E = n_experts_;
  const auto moments = static_cast<std::size_t>(d * d),
             routed = kMoments + moments + static_cast<std::size_t>(d);
  const HostCopy host_token_T(token_T);
  const auto* id = host_token_T->as<std::int32_t>();
  statistics_[kTokens] =
      static_cast<double>(std::count_if(id, id + token_T.rows(), [](std::int32_t t) { return t >= 0; }));
  statistics_[kKl] = kl_coef_ != 0 ? ops::standard_kl_sum(token.mean, token.log_var, token_T, ctx) : 0;
  if (div_coef_ != 0 && diversity_ == Diversity::euclidean) {
    statistics_[kDistance] = ops::pair_distance_sum(token.mean, token_T, ctx);
    key_distance_ = ops::pair_distance_sum(key.mean, {}, ctx);
  } else if (div_coef_ != 0) {
    ops::row_moments(view(statistics_, kMoments, Shape{d, d}), view(statistics_, kMoments + moments, Shape{d}),
                     token.unit, token_T, ctx);
    ops::row_moments(view(key_gram_dd_, 0, Shape{d, d}), view(key_sum_d_, 0, Shape{d}), key.unit, {}, ctx);
  }
  if (!needs_routed_sums()) return;
  ops::routed_sums(view(statistics_, routed, Shape{E, d}),
                   view(statistics_, routed + static_cast<std::size_t>(E * d), Shape{E}), z_Td, chosen_TK,
                   expert_TK, ctx);
  key_Ed_ = read_row(key.mean);
}

RowSums LatentRegularisation::token_sums(std::span<const double> statistics) const {
  const auto d = static_cast<std::size_t>(width_);
  return {statistics[kTokens], statistics.subspan(kMoments, d * d), statistics.subspan(kMoments + d * d, d),
          statistics[kDistance]};
}
RowSums LatentRegularisation::key_sums() const {
  return {static_cast<double>(n_experts_), key_gram_dd_, key_sum_d_, key_distance_};
}
std::span<const double> LatentRegularisation::in_scope(std::span<const double> global) const {
  return global_scope_ ? global : std::span<const double>(statistics_);
}

std::span<const double> LatentRegularisation::routed_sum_Ed(std::span<const double> statistics) const {
  const auto E = static_cast<std::size_t>(n_experts_), d = static_cast<std::size_t>(width_);
  return statistics.subspan(kMoments + d * d + d, E * d);
}
std::span<const double> LatentRegularisation::routed_count_E(std::span<const double> statistics) const {
  const auto E = static_cast<std::size_t>(n_experts_), d = static_cast<std::size_t>(width_);
  return statistics.subspan(kMoments + d * d + d + E * d, E);
}

// What is not a sum over tokens counts in proportion to the micro-batch's tokens.
double LatentRegularisation::loss(std::span<const double> global, double token_share) const {
  const std::span<const double> statistics = in_scope(global);
  const double share = statistics_[kTokens] * token_share;
  double loss = kl_coef_ * statistics_[kKl] * token_share;
  if (div_coef_ != 0)
    loss += share * div_coef_ *
            (diversity_term(diversity_, token_sums(statistics), width_).value +
             diversity_term(diversity_, key_sums(), width_).value);
  if (align_coef_ != 0) {
    const std::span<const double> target_Ed = routed_sum_Ed(statistics);
    double sum = 0;
    for (std::size_t i = 0; i < key_Ed_.size(); ++i) sum += std::abs(key_Ed_[i] - target_Ed[i]);
    loss += share * align_coef_ * sum / static_cast<double>(key_Ed_.size());
  }
  return loss;
}

void LatentRegularisation::backward(const LatentRows& dtoken, const LatentRows& dkey, const LatentRows& token,
                                    const LatentRows& key, Tensor token_T, std::span<const double> global,
                                    double token_share, Context& ctx) const {
  const std::span<const double> statistics = in_scope(global);
  const double share = statistics_[kTokens] * token_share;
  if (kl_coef_ != 0)
    ops::standard_kl_backward(dtoken.mean, dtoken.log_var, token.mean, token.log_var, token_T,
                              kl_coef_ * token_share, ctx);
  if (div_coef_ != 0) {
    // A token's part in the global batch's term is whole, in a micro-batch's it has the micro-batch's share.
    add_diversity_gradient(dtoken, token, token_T, diversity_term(diversity_, token_sums(statistics), width_),
                           global_scope_ ? div_coef_ : div_coef_ * share, diversity_, ctx);
    add_diversity_gradient(dkey, key, {}, diversity_term(diversity_, key_sums(), width_), div_coef_ * share,
                           diversity_, ctx);
  }
  if (align_coef_ == 0) return;
  const std::span<const double> target_Ed = routed_sum_Ed(statistics);
  const double step = share * align_coef_ / static_cast<double>(key_Ed_.size());
  std::vector<double> dkey_Ed = read_row(dkey.mean);
  for (std::size_t i = 0; i < dkey_Ed.size(); ++i)
    dkey_Ed[i] += key_Ed_[i] > target_Ed[i] ? step : key_Ed_[i] < target_Ed[i] ? -step : 0;
  write_row(dkey.mean, dkey_Ed);
}

}  // namespace switchyard::router
