// How long a step takes, by part, and what is sent. A model of it: rates of products are shares of published
// peaks, and memory, links and network have their own (calibration.h).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "plan/calibration.h"
#include "plan/device.h"
#include "plan/layout.h"

namespace switchyard::plan {

// Seconds of one step on the slowest stage. Parts that are exchanges have what is exposed; `hidden` has the
// rest.
struct StepTime {
  double products = 0;  // of attention's projections, dense networks, routers and the head
  double experts = 0;
  double attention = 0;
  double elementwise = 0;  // norms, activations, permutations, conversions: what walks over memory
  double recompute = 0;    // all of that, again
  double launch = 0;       // gaps between kernels
  double exchange = 0;     // tokens to experts and back
  double tensor = 0, context = 0, pipeline = 0;  // between ranks that divide matrices, sequences, layers
  double sums = 0;                               // gradients added up, weights gathered
  double bubble = 0;                             // a stage waits for others
  double optimizer = 0;
  double fixed = 0;
  double hidden = 0;  // of exchanges, beside what computes: not part of the step
  double total() const;
  // Name and seconds of those that are part of the step.
  std::vector<std::pair<const char*, double>> parts() const;
  // The largest part, in words.
  std::string bottleneck() const;
};

// Bytes that one rank sends in a step.
struct SentBytes {
  double experts = 0, tensor = 0, context = 0, pipeline = 0, sums = 0;
  double total() const { return experts + tensor + context + pipeline + sums; }
};

struct StepPlan {
  StepTime time;
  SentBytes sent;
  double tokens = 0;  // of a step, of all ranks
  double model_flops = 0;
  double tokens_per_second_per_device = 0;
  double model_flops_per_second = 0;  // a device
  double mfu = 0;                     // of the published peak in the precision of the products
};

StepPlan step_of(const Shape& shape, const Layout& layout, const Device& device,
                 const Calibration& calibration);

// FLOP/s that the maker publishes for this precision. Throws InputError where the device has none.
double peak_of(const Device& device, Precision precision);

}  // namespace switchyard::plan
