#include "train/optimizer.h"

#include "ops/adamw.h"
#include "ops/elementwise.h"

namespace switchyard::train {

AdamW::AdamW(const config::Train& options, const ParameterStore& store) : options_(options) {
  bool extend = false;  // whether the row before was trained and so belongs to a range
  for (const Parameter& row : store.rows()) {
    if (row.trained && (!extend || ranges_.back().decay != row.weight_decay))
      ranges_.push_back({row.offset, 0, row.weight_decay});
    extend = row.trained;
    if (!row.trained) continue;
    ranges_.back().count = row.offset + row.shape.numel() - ranges_.back().first;
  }
}

void AdamW::measure(const ParameterStore& store, Tensor grad_squares_1, Context& ctx) const {
  ops::sum_of_squares(grad_squares_1, store.grads(), ctx);
}

void AdamW::update(ParameterStore& store, Tensor grad_squares_1, double lr, std::int64_t step,
                   Context& ctx) const {
  ScratchScope scope(ctx.scratch);
  const Tensor grad_scale_1 = ctx.scratch.take(Shape{1}, DType::f64);
  ops::clip_factor(grad_scale_1, grad_squares_1, options_.clip_norm, ctx);
  for (const Range& range : ranges_) {
    const auto part = [&](const Tensor& flat_P) { return flat_P.slice(range.first, range.count); };
    ops::adamw_update(part(store.values()), part(store.moments1()), part(store.moments2()), part(store.grads()),
                      grad_scale_1,
                      {.lr = lr,
                       .beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .eps = options_.eps,
                       .weight_decay = range.decay ? options_.weight_decay : 0.0,
                       .step = step},
                      store.has_rounded_weights() ? part(store.weights()) : Tensor{}, ctx);
  }
}

}  // namespace switchyard::train
