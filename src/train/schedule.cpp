#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace switchyard::train {

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
