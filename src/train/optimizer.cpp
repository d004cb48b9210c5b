#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "ops/adamw.h"
#include "ops/elementwise.h"

namespace switchyard::train {

AdamW::AdamW(const config::Train& options, const ParameterStore& store) : options_(options) {
  std::vector<const Parameter*> rows;
  for (const Parameter& row : store.rows()) rows.push_back(&row);
  std::sort(rows.begin(), rows.end(),
            [](const Parameter* a, const Parameter* b) { return a->offset < b->offset; });
  bool extend = false;  // whether the row before was trained and so belongs to a range
  for (const Parameter* row : rows) {
    if (row->trained && (!extend || ranges_.back().decay != row->weight_decay))
      ranges_.push_back({row->offset, 0, row->weight_decay});
    extend = row->trained;
    if (!row->trained) continue;
    ranges_.back().count = row->offset + row->shape.numel() - ranges_.back().first;
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

namespace {

// How far `step` has come from `begin` to `end`: 0 to 1, and 1 where there is no way between them.
double progress(std::int64_t step, std::int64_t begin, std::int64_t end) {
  if (step >= end) return 1.0;
  return std::max(0.0, static_cast<double>(step - begin) / static_cast<double>(end - begin));
}

double cosine_factor(double r, double t) {
  return r + (1.0 - r) * 0.5 * (1.0 + std::cos(std::numbers::pi * t));
}

}  // namespace

double learning_rate(const config::Train& train, std::int64_t step) {
  SY_CHECK(step >= 1 && train.steps >= 1, "step {} of {}", step, train.steps);
  const std::int64_t steps = train.steps;
  const auto share = [&](double ratio) {
    return static_cast<std::int64_t>(std::llround(ratio * static_cast<double>(steps)));
  };
  const std::int64_t warmup = share(train.warmup_ratio);
  const double r = train.min_lr_ratio;
  if (step <= warmup) return train.lr * static_cast<double>(step) / static_cast<double>(warmup);
  switch (train.schedule) {
    case config::Schedule::constant:
      return train.lr;
    case config::Schedule::linear:
      return train.lr * (1.0 - (1.0 - r) * progress(step, warmup, steps));
    case config::Schedule::cosine:
      return train.lr * cosine_factor(r, progress(step, warmup, steps));
    case config::Schedule::wsd: {
      const std::int64_t decay_begin = std::max(warmup, steps - share(train.decay_ratio));
      if (step <= decay_begin) return train.lr;
      return train.lr * cosine_factor(r, progress(step, decay_begin, steps));
    }
  }
  SY_CHECK(false, "unknown schedule");
  return 0.0;
}

}  // namespace switchyard::train
