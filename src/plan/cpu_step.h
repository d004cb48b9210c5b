// How long an optimizer step takes on this machine's CPU, before the run: the run's own operators are timed in
// the run's own sizes, a layer of each kind, a chunk of the output layer and a piece of the update, and counted
// as often as a step does them. Rates of products depend on their shapes too much for one rate to stand for
// all: an expert's few rows, a narrow layer's columns.
//   T tokens of a micro-batch, D hidden size, V vocabulary
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "ops/profile.h"

namespace switchyard::plan {

// Seconds of one step, of one process.
struct CpuStep {
  double attention = 0;  // scores, softmax and values
  double experts = 0;    // products of experts, with SwiGLU where it is within
  double products = 0;   // all others: attention's projections, dense networks, shared experts, routers' logits
  double output = 0;     // logits, their loss and gradients; once more for each depth of multi-token prediction
  double router = 0;     // what routers do beside their products
  double passes = 0;     // what walks over activations: norms, rotations, dispatch, combine, sums, embedding
  double optimizer = 0;  // gradients zeroed and their norm, AdamW
  double total() const;
  // Names and seconds, in this order.
  std::vector<std::pair<const char*, double>> parts() const;
};

// Part by part.
CpuStep mean_of(const CpuStep& a, const CpuStep& b);

struct CpuStepSettings {
  // That each kind of layer, and the output layer, is timed for at least; the update half as long. Their passes
  // take turns.
  double seconds = 0.4;
  // Of a pass that is timed; of a larger micro-batch whole sequences are left out.
  std::int64_t most_tokens = 4096;
  double (*now)() = ops::steady_seconds;  // seconds of any clock; a test has its own
};

// Takes memory for two layers of each kind, with gradients, and for a part of the output layer and of the
// update. run's micro-batch is a number; threads are those that the process has (core/threads.h). Another
// program on the same cores makes the figures larger, as it does a step.
CpuStep predict_cpu_step(const config::Run& run, const CpuStepSettings& settings = {});

}  // namespace switchyard::plan
