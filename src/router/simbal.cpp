#include "router/simbal.h"

#include "ops/linear.h"
#include "ops/simbal.h"

namespace switchyard::router {

config::RouterOption simbal_option() {
  return {.key = "simbal_coef", .fallback = 0.0, .range = config::kCoefficient, .in_training_alone = true};
}

SimBal::SimBal(double coef, const std::string& prefix, ParameterStore& store) : coef_(coef), store_(store) {
  const auto& rows = store.rows();
  while (weight_ < rows.size() && rows[weight_].name != prefix + "weight") ++weight_;
  SY_CHECK(weight_ < rows.size(), "{}weight is no row, so that there is no gate to compare with itself",
           prefix);
}

Tensor SimBal::gram(Context& ctx) const {
  const Tensor weight_ED = store_.value(weight_);
  const Tensor gram_EE = ctx.scratch.take(Shape{weight_ED.rows(), weight_ED.rows()}, weight_ED.dtype());
  ops::linear_forward(gram_EE, weight_ED, weight_ED, ops::Write::set, ctx);
  return gram_EE;
}

void SimBal::add_loss(Tensor loss_1, const RoutingLossGradient& gradient, Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  const Float32Products products(ctx);
  ops::add_simbal_loss(loss_1, gram(ctx), gradient.tokens_B, coef_ * gradient.token_share, ctx);
}

void SimBal::backward(const RoutingLossGradient& gradient, Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  const Float32Products products(ctx);
  const Tensor slope_EE = gram(ctx);
  ops::simbal_slope(slope_EE, slope_EE, gradient.tokens_B, coef_ * gradient.token_share, ctx);
  ops::linear_backward_input(store_.grad(weight_), slope_EE, store_.value(weight_), ops::Write::add, ctx);
}

}  // namespace switchyard::router
