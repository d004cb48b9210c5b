#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

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

double AdamW::grad_norm(const ParameterStore& store, Context& ctx) const {
  return std::sqrt(ops::sum_of_squares(store.grads(), ctx));
}

void AdamW::update(ParameterStore& store, double lr, double grad_norm, std::int64_t step, Context& ctx) const {
  const double clip = options_.clip_norm > 0 ? std::min(1.0, options_.clip_norm / (grad_norm + 1e-6)) : 1.0;
  for (const Range& range : ranges_) {
    const auto part = [&](const Tensor& flat_P) { return flat_P.slice(range.first, range.count); };
    ops::adamw_update(part(store.values()), part(store.moments1()), part(store.moments2()), part(store.grads()),
                      {.lr = lr,
                       .beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .eps = options_.eps,
                       .weight_decay = range.decay ? options_.weight_decay : 0.0,
                       .grad_scale = clip,
                       .step = step},
                      ctx, store.has_rounded_weights() ? part(store.weights()) : Tensor{});
  }
}

}  // namespace switchyard::train
