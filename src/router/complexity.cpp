#include "router/complexity.h"

#include "ops/complexity.h"
#include "ops/cosine.h"
#include "ops/elementwise.h"
#include "ops/slots.h"

namespace switchyard::router {

namespace {

void norm_l2(Tensor raw_T, const ComplexityInput& input, Context& ctx) {
  ops::row_norm_l2(raw_T, input.x_TD, ctx);
}

void norm_l1(Tensor raw_T, const ComplexityInput& input, Context& ctx) {
  ops::row_norm_l1(raw_T, input.x_TD, ctx);
}

void attention_entropy(Tensor raw_T, const ComplexityInput& input, Context& ctx) {
  SY_CHECK(input.attention_entropy_T.defined(), "the attention has not left its entropy");
  ops::copy(raw_T, input.attention_entropy_T, ctx);
}

void router_entropy(Tensor raw_T, const ComplexityInput& input, Context& ctx) {
  ops::softmax_entropy_forward(raw_T, input.logit_TE, input.prob_TE, input.lse_T, ctx);
}

// Of the softmax of the hidden state over its own D numbers: the logarithm of a perplexity that needs no
// classifier.
void hidden_entropy(Tensor raw_T, const ComplexityInput& input, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Tensor prob_TD = ctx.scratch.take(input.x_TD.shape(), input.x_TD.dtype());
  const Tensor lse_T = ctx.scratch.take(raw_T.shape(), raw_T.dtype());
  ops::softmax_forward(prob_TD, lse_T, input.x_TD, ctx);
  ops::softmax_entropy_forward(raw_T, input.x_TD, prob_TD, lse_T, ctx);
}

void loss_gradient(Tensor raw_T, const ComplexityInput& input, Context& ctx) {
  ops::known_values(raw_T, input.known_T, input.value_V, input.mean_1, input.token_T, ctx);
}

constexpr ComplexityEstimator kEstimators[] = {
    {.name = "activation_norm_l2", .raw = norm_l2},
    {.name = "activation_norm_l1", .raw = norm_l1},
    {.name = "attention_entropy", .raw = attention_entropy, .needs_attention_entropy = true},
    {.name = "router_entropy", .raw = router_entropy},
    {.name = "hidden_entropy", .raw = hidden_entropy},
    {.name = "loss_gradient", .raw = loss_gradient, .by_token = true},
    {.name = "threshold", .raw = norm_l2, .thresholded = true},
};

}  // namespace

std::span<const ComplexityEstimator> complexity_estimators() { return kEstimators; }

const ComplexityEstimator& complexity_estimator(std::string_view name) {
  for (const ComplexityEstimator& estimator : kEstimators)
    if (estimator.name == name) return estimator;
  SY_CHECK(false, "no estimator {}", name);
  return kEstimators[0];
}

}  // namespace switchyard::router
