#include "router/lpr_similarity.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ops/elementwise.h"
#include "ops/latent.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/prototype.h"
#include "ops/slots.h"

namespace switchyard::router {

namespace {

constexpr double kNormEps = 1e-6;

struct NamedMetric {
  std::string_view name;
  ops::PrototypeSimilarity similarity;
};
constexpr std::array<NamedMetric, 6> kMetrics{{{"gaussian", ops::PrototypeSimilarity::gaussian},
                                               {"mahalanobis", ops::PrototypeSimilarity::mahalanobis},
                                               {"kl", ops::PrototypeSimilarity::kl},
                                               {"js", ops::PrototypeSimilarity::js},
                                               {"hellinger", ops::PrototypeSimilarity::hellinger},
                                               {"wasserstein", ops::PrototypeSimilarity::wasserstein}}};

const NamedMetric* metric_of(std::string_view similarity) {
  const auto found = std::find_if(kMetrics.begin(), kMetrics.end(),
                                  [&](const NamedMetric& metric) { return metric.name == similarity; });
  return found == kMetrics.end() ? nullptr : &*found;
}

}  // namespace

std::vector<std::string_view> lpr_similarities() {
  std::vector<std::string_view> names{"cosine", "dot", "cross_attention"};
  for (const NamedMetric& metric : kMetrics) names.push_back(metric.name);
  return names;
}

bool compares_distributions(std::string_view similarity) {
  const NamedMetric* metric = metric_of(similarity);
  return metric && of_distributions(metric->similarity);
}

LatentSimilarity::LatentSimilarity(const config::Router& options, const RouterShape& shape,
                                   const std::string& prefix, ParameterStore& store)
    : sigma_(options.own.number("sigma")),
      n_experts_(shape.n_experts),
      width_(options.own.integer("latent_dim")),
      heads_(options.own.integer("num_heads")),
      prefix_(prefix + "similarity_func."),
      store_(store) {
  const std::string& name = options.own.word("similarity");
  const NamedMetric* metric = metric_of(name);
  kind_ = metric             ? Kind::metric
          : name == "dot"    ? Kind::dot
          : name == "cosine" ? Kind::cosine
                             : Kind::cross_attention;
  if (metric) metric_similarity_ = metric->similarity;
  const auto add = [&](const char* row, Shape row_shape, Init init) {
    store.begin_group();
    return store.add({.name = prefix_ + row, .shape = row_shape, .init = init, .weight_decay = false});
  };
  if (kind_ == Kind::cross_attention) {
    q_proj_ = add_linear("q_proj", shape, store);
    k_proj_ = add_linear("k_proj", shape, store);
    q_norm_ = add("q_norm.weight", Shape{width_}, Init::ones);
    k_norm_ = add("k_norm.weight", Shape{width_}, Init::ones);
    if (heads_ > 1) value_proj_ = add_linear("v_proj", shape, store);
  } else if (metric && metric->similarity == ops::PrototypeSimilarity::mahalanobis) {
    log_sigma_ = add("log_sigma", Shape{width_}, Init::zeros);
  } else if (compares_distributions(name)) {
    key_log_var_ = add("key_log_var", Shape{n_experts_, width_}, Init::zeros);
    value_proj_ = add_linear("proj", shape, store);
  }
}

LatentSimilarity::Linear LatentSimilarity::add_linear(const std::string& name, const RouterShape& shape,
                                                      ParameterStore& store) const {
  Linear linear;
  store.begin_group();
  linear.weight = store.add({.name = prefix_ + name + ".weight",
                             .shape = Shape{width_, width_},
                             .init = Init::normal,
                             .init_std = shape.init_std});
  store.begin_group();
  linear.bias = store.add(
      {.name = prefix_ + name + ".bias", .shape = Shape{width_}, .init = Init::zeros, .weight_decay = false});
  return linear;
}

void LatentSimilarity::apply(Tensor out, const Linear& linear, Tensor in, Context& ctx) const {
  ops::linear_forward(out, in, store_.value(linear.weight), ops::Write::set, ctx);
  ops::bias_forward(out, store_.value(linear.bias), ctx);
}

void LatentSimilarity::apply_backward(Tensor din, Tensor dout, const Linear& linear, Tensor in,
                                      Context& ctx) const {
  ops::linear_backward_weight(store_.grad(linear.weight), dout, in, ctx);
  ops::bias_backward(store_.grad(linear.bias), dout, ctx);
  ops::linear_backward_input(din, dout, store_.value(linear.weight), ops::Write::add, ctx);
}

ops::PrototypeMetric LatentSimilarity::metric(bool backward) const {
  ops::PrototypeMetric metric{.similarity = metric_similarity_, .sigma = sigma_};
  if (metric_similarity_ == ops::PrototypeSimilarity::mahalanobis) {
    metric.log_sigma_d = store_.value(log_sigma_);
    if (backward) metric.dlog_sigma_d = store_.grad(log_sigma_);
  }
  return metric;
}

bool LatentSimilarity::keys_have_variance() const {
  return kind_ == Kind::metric && of_distributions(metric_similarity_);
}

bool LatentSimilarity::projects_values() const {
  return (kind_ == Kind::cross_attention && heads_ > 1) || keys_have_variance();
}

double LatentSimilarity::attention_scale() const { return 1 / std::sqrt(static_cast<double>(width_ / heads_)); }

Tensor LatentSimilarity::key_log_var() const {
  return keys_have_variance() ? store_.value(key_log_var_) : Tensor();
}
Tensor LatentSimilarity::key_log_var_grad() const {
  return keys_have_variance() ? store_.grad(key_log_var_) : Tensor();
}

void LatentSimilarity::plan(Arena& arena, std::int64_t n_tokens, DType dtype) {
  if (projects_values()) value_Ed_ = arena.take(Shape{n_experts_, width_}, dtype);
  if (kind_ != Kind::cross_attention) return;
  for (Tensor* tensor : {&q_in_Td_, &q_Td_}) *tensor = arena.take(Shape{n_tokens, width_}, dtype);
  for (Tensor* tensor : {&k_in_Ed_, &k_Ed_}) *tensor = arena.take(Shape{n_experts_, width_}, dtype);
  q_rstd_T_ = arena.take(Shape{n_tokens, 1}, dtype);
  k_rstd_E_ = arena.take(Shape{n_experts_, 1}, dtype);
}

// score_TE = q k^T of one head, scaled.
void LatentSimilarity::head_scores(Tensor score_TE, std::int64_t head, Context& ctx) const {
  const std::int64_t size = width_ / heads_;
  ops::linear_forward(score_TE, q_Td_.columns(head * size, size), k_Ed_.columns(head * size, size),
                      ops::Write::set, ctx);
  ops::scale_rows(score_TE, score_TE, attention_scale(), ctx);
}

void LatentSimilarity::forward(Tensor score_TE, const LatentRows& token, const LatentRows& key, Context& ctx) {
  switch (kind_) {
    case Kind::cosine:
      ops::linear_forward(score_TE, token.unit, key.unit, ops::Write::set, ctx);
      break;
    case Kind::dot:
      ops::linear_forward(score_TE, token.mean, key.mean, ops::Write::set, ctx);
      break;
    case Kind::cross_attention:  // the mean over heads of products of heads is one product, scaled
      apply(q_in_Td_, q_proj_, token.mean, ctx);
      apply(k_in_Ed_, k_proj_, key.mean, ctx);
      ops::rmsnorm_forward(q_Td_, q_rstd_T_, q_in_Td_, store_.value(q_norm_), kNormEps, ctx);
      ops::rmsnorm_forward(k_Ed_, k_rstd_E_, k_in_Ed_, store_.value(k_norm_), kNormEps, ctx);
      ops::linear_forward(score_TE, q_Td_, k_Ed_, ops::Write::set, ctx);
      ops::scale_rows(score_TE, score_TE, attention_scale() / static_cast<double>(heads_), ctx);
      break;
    case Kind::metric:
      ops::prototype_similarity_forward(score_TE, {token.mean, token.log_var}, {key.mean, key.log_var},
                                        metric(false), ctx);
      break;
  }
  if (projects_values()) apply(value_Ed_, value_proj_, key.mean, ctx);
}

// V_Td = prob_TE value_Ed is, as a product, the backward pass of a linear layer with weight value_Ed.
void LatentSimilarity::decode(Tensor V_Td, Tensor prob_TE, const LatentRows& key, Context& ctx) {
  const Tensor value_Ed = projects_values() ? value_Ed_ : key.mean;
  if (kind_ != Kind::cross_attention || heads_ == 1)
    return ops::linear_backward_input(V_Td, prob_TE, value_Ed, ops::Write::set, ctx);
  ScratchScope scope(ctx.scratch);
  const std::int64_t size = width_ / heads_;
  const Tensor head_prob_TE = ctx.scratch.take(prob_TE.shape(), prob_TE.dtype());
  const Tensor lse_T = ctx.scratch.take(Shape{prob_TE.rows()}, prob_TE.dtype());
  for (std::int64_t head = 0; head < heads_; ++head) {
    head_scores(head_prob_TE, head, ctx);
    ops::softmax_forward(head_prob_TE, lse_T, head_prob_TE, ctx);
    ops::linear_backward_input(V_Td.columns(head * size, size), head_prob_TE,
                               value_Ed.columns(head * size, size), ops::Write::set, ctx);
  }
}

void LatentSimilarity::decode_backward(Tensor dprob_TE, const LatentRows& dkey, Tensor dV_Td, Tensor prob_TE,
                                       const LatentRows& key, Context& ctx) {
  if (kind_ == Kind::cross_attention && heads_ > 1) return ops::fill_zero(dprob_TE, ctx);  // backward() does it
  if (!projects_values()) {
    ops::linear_forward(dprob_TE, dV_Td, key.mean, ops::Write::set, ctx);
    return ops::linear_backward_weight(dkey.mean, prob_TE, dV_Td, ctx);
  }
  ScratchScope scope(ctx.scratch);
  const Tensor dvalue_Ed = ctx.scratch.take(value_Ed_.shape(), value_Ed_.dtype());
  ops::linear_forward(dprob_TE, dV_Td, value_Ed_, ops::Write::set, ctx);
  ops::fill_zero(dvalue_Ed, ctx);
  ops::linear_backward_weight(dvalue_Ed, prob_TE, dV_Td, ctx);
  apply_backward(dkey.mean, dvalue_Ed, value_proj_, key.mean, ctx);
}

void LatentSimilarity::backward(const LatentRows& dtoken, const LatentRows& dkey, Tensor dscore_TE,
                                Tensor score_TE, Tensor dV_Td, const LatentRows& token, const LatentRows& key,
                                Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const auto scratch_like = [&](const Tensor& tensor) {
    return ctx.scratch.take(tensor.shape(), tensor.dtype());
  };
  switch (kind_) {
    case Kind::cosine:
      ops::linear_backward_input(dtoken.unit, dscore_TE, key.unit, ops::Write::add, ctx);
      ops::linear_backward_weight(dkey.unit, dscore_TE, token.unit, ctx);
      return;
    case Kind::dot:
      ops::linear_backward_input(dtoken.mean, dscore_TE, key.mean, ops::Write::add, ctx);
      ops::linear_backward_weight(dkey.mean, dscore_TE, token.mean, ctx);
      return;
    case Kind::metric:
      ops::prototype_similarity_backward({dtoken.mean, dtoken.log_var}, {dkey.mean, dkey.log_var}, dscore_TE,
                                         score_TE, {token.mean, token.log_var}, {key.mean, key.log_var},
                                         metric(true), ctx);
      return;
    case Kind::cross_attention:
      break;
  }
  const Tensor dq_Td = scratch_like(q_Td_), dk_Ed = scratch_like(k_Ed_);
  const Tensor dq_in_Td = scratch_like(q_Td_), dk_in_Ed = scratch_like(k_Ed_);
  const Tensor dhead_TE = scratch_like(dscore_TE), mean_TE = scratch_like(dscore_TE);
  for (const Tensor& tensor : {dk_Ed, dq_in_Td, dk_in_Ed}) ops::fill_zero(tensor, ctx);
  ops::scale_rows(mean_TE, dscore_TE, 1 / static_cast<double>(heads_), ctx);
  const Tensor dvalue_Ed = scratch_like(k_Ed_);
  ops::fill_zero(dvalue_Ed, ctx);
  const std::int64_t size = width_ / heads_;
  for (std::int64_t head = 0; head < heads_; ++head) {
    const auto of_head = [&](const Tensor& tensor) { return tensor.columns(head * size, size); };
    if (heads_ > 1) {
      const Tensor head_prob_TE = scratch_like(dscore_TE);
      const Tensor lse_T = ctx.scratch.take(Shape{dscore_TE.rows()}, dscore_TE.dtype());
      head_scores(head_prob_TE, head, ctx);
      ops::softmax_forward(head_prob_TE, lse_T, head_prob_TE, ctx);
      ops::linear_forward(dhead_TE, of_head(dV_Td), of_head(value_Ed_), ops::Write::set, ctx);
      ops::linear_backward_weight(of_head(dvalue_Ed), head_prob_TE, of_head(dV_Td), ctx);
      ops::softmax_backward(dhead_TE, dhead_TE, head_prob_TE, ctx);
      ops::add(dhead_TE, dhead_TE, mean_TE, ctx);
    } else {
      ops::copy(dhead_TE, mean_TE, ctx);
    }
    ops::scale_rows(dhead_TE, dhead_TE, attention_scale(), ctx);
    ops::linear_backward_input(of_head(dq_Td), dhead_TE, of_head(k_Ed_), ops::Write::set, ctx);
    ops::linear_backward_weight(of_head(dk_Ed), dhead_TE, of_head(q_Td_), ctx);
  }
  ops::rmsnorm_backward(dq_in_Td, store_.grad(q_norm_), dq_Td, q_in_Td_, q_rstd_T_, store_.value(q_norm_), ctx);
  ops::rmsnorm_backward(dk_in_Ed, store_.grad(k_norm_), dk_Ed, k_in_Ed_, k_rstd_E_, store_.value(k_norm_), ctx);
  apply_backward(dtoken.mean, dq_in_Td, q_proj_, token.mean, ctx);
  apply_backward(dkey.mean, dk_in_Ed, k_proj_, key.mean, ctx);
  if (heads_ > 1) apply_backward(dkey.mean, dvalue_Ed, value_proj_, key.mean, ctx);
}

}  // namespace switchyard::router
