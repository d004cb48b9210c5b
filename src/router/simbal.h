// SimBal, the loss that draws the rows of a linear gate towards an orthonormal set, so that similar tokens keep
// similar experts (arXiv 2506.14038; docs/router-mathematics.md, section 3). Any router has it whose schema has
// simbal_option() and whose gate is the row "weight" [E, D].
#pragma once

#include <string>

#include "router/router.h"

namespace switchyard::router {

config::RouterOption simbal_option();

class SimBal {
 public:
  // Of the gate that lies in the store as `prefix` + "weight".
  SimBal(double coef, const std::string& prefix, ParameterStore& store);

  // loss_1 (f64) += what a micro-batch adds: in proportion to its tokens, so that a global batch adds
  // coef * ||R^T R - I||_1, however it is cut.
  void add_loss(Tensor loss_1, const RoutingLossGradient& gradient, Context& ctx) const;
  // Its gradient, added to the weight's.
  void backward(const RoutingLossGradient& gradient, Context& ctx) const;

 private:
  Tensor gram(Context& ctx) const;  // in scratch space of the caller's scope

  double coef_;
  ParameterStore& store_;
  std::size_t weight_ = 0;
};

}  // namespace switchyard::router
