// Steps that must not be learned from: a loss far above those before it, or a gradient far longer. Found from
// what the run itself has seen, so that no scale of losses or gradients is assumed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"

namespace switchyard::train {

// What the detector knows between two steps; part of a checkpoint.
struct SpikeHistory {
  // Of the newest steps that were learned from, at most train.spike.window, oldest first.
  std::vector<double> losses, grad_norms;
  std::int64_t skipped = 0;         // steps of the run that were left out
  std::int64_t skipped_in_row = 0;  // up to now
  std::int64_t rollbacks = 0;       // how often the run went back to a checkpoint
};

// Why a step is to be left out, as a clause ("the loss 9.71 is more than ..."); empty: it is to be learned
// from.
//  - The loss exceeds the median of `losses` by more than `deviations` standard deviations of them (at least
//    kLeastDeviation of the median is taken for one). Before kLeastHistory steps: it is more than twice the
//    largest so far.
//  - The gradient's norm exceeds grad_norm_factor times the median of `grad_norms`, from kLeastHistory steps
//  on.
//  - One of both is not finite.
// The standard deviation, not a spread about the median: losses of several domains form several heaps, and a
// batch of the rarer one is no spike. What is left out does not enter the history, so it cannot widen it.
constexpr std::size_t kLeastHistory = 20;
constexpr double kLeastDeviation = 0.02;
std::string spike_reason(const config::Spike& options, const SpikeHistory& history, double loss,
                         double grad_norm);

// After the step: into the history, or counted as left out.
void learned(const config::Spike& options, SpikeHistory& history, double loss, double grad_norm);
void left_out(SpikeHistory& history);

// The median of the newest losses, at most kRecent: where the run stands, whatever a single batch says. NaN
// where there is none.
constexpr std::size_t kRecent = 16;
double recent_loss(const SpikeHistory& history);

}  // namespace switchyard::train
