// What the machine can do at best, so that a step's work can be set against it.
#pragma once

#include "core/context.h"

namespace switchyard::train {

// FLOP/s of a large dense product in ctx.matmul's precision on the threads that the run has: the best of a few,
// some 20 milliseconds in all. 0 on a device, where nothing is measured.
double measure_product_rate(Context& ctx);

}  // namespace switchyard::train
