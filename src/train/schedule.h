// Learning-rate schedules.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace switchyard::train {

// The learning rate of optimizer step `step`, counted from 1; a pure function.
//
//   S = train.steps, W = round(warmup_ratio * S), D = round(decay_ratio * S), r = min_lr_ratio
//   warm-up    step <= W:  lr * step / W
//   after it, with t = (step - W) / (S - W), which reaches 1 at step S and stays there:
//   constant   lr
//   linear     lr * (1 - (1 - r) * t)
//   cosine     lr * (r + (1 - r) * (1 + cos(pi * t)) / 2)
//   wsd        lr up to step B = max(W, S - D), then the cosine above with t = (step - B) / (S - B)
double learning_rate(const config::Train& train, std::int64_t step);

}  // namespace switchyard::train
