// Steps that must not be learned from: a loss far above those before it, or a gradient far longer. Found from
// what the run itself has seen, so that no scale of losses or gradients is assumed.
#pragma once

#include <string>

#include "checkpoint/run_state.h"
#include "config/config.h"

namespace switchyard::train {

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
std::string spike_reason(const config::Spike& options, const checkpoint::SpikeHistory& history, double loss,
                         double grad_norm);

// After the step: into the history, or counted as left out.
void learned(const config::Spike& options, checkpoint::SpikeHistory& history, double loss, double grad_norm);
void left_out(checkpoint::SpikeHistory& history);

}  // namespace switchyard::train
