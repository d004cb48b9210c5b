// What a profile of training steps (ops/profile.h) says, beside what this machine can do at most.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "core/json.h"
#include "ops/profile.h"

namespace switchyard::train {

// What the machine does: FLOP/s of a large product in each MatmulType, 0 where it was not measured; bytes read
// and written a second in a copy larger than caches.
struct MachineRates {
  std::array<double, ops::kMatmulTypes> product{};
  double copy = 0;
};

// FLOP/s of a large dense product in ctx.matmul's precision, on the threads that the run has; the best of a
// few, some 20 milliseconds in all.
double measure_product_rate(Context& ctx);
// All rates that products of a run with this context may have.
MachineRates measure_rates(Context& ctx);

// The least time that so much work takes: its FLOPs at the rates of products, or its bytes at the rate of
// copies, whichever is longer.
double bound_seconds(const ops::Profile::Row& row, const MachineRates& rates);

// What all counted steps of a profile did, and the least time that takes.
struct ProfileWork {
  double flops = 0, bytes = 0;
  double product_seconds = 0;  // its FLOPs at the rates of products
  double copy_seconds = 0;     // its bytes at the rate of copies
  double bound_seconds = 0;    // bound_seconds() of its operators together
};
ProfileWork work_of(const std::vector<ops::Profile::Row>& rows, const MachineRates& rates);

// Lines for people: one operator a line, by time, in milliseconds of a step.
std::vector<std::string> table_of(const ops::Profile& profile, const MachineRates& rates, Device device,
                                  int ranks);
// profile.json: figures of all counted steps together, in seconds, bytes and FLOPs.
Json json_of(const ops::Profile& profile, const MachineRates& rates, Device device, int ranks);

}  // namespace switchyard::train
