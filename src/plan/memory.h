// What one rank holds, by part, before anything is allocated.
#pragma once

#include <optional>
#include <vector>

#include "plan/calibration.h"
#include "plan/layout.h"

namespace switchyard::plan {

// Bytes, of one rank of one stage.
struct StageMemory {
  double parameters = 0;  // float32; what it is of them where they are divided
  double weights = 0;     // bf16, beside them
  double gradients = 0;
  double moments = 0;
  double gathered = 0;     // layers that are made whole while they run
  double buffers = 0;      // of libraries: workspaces, handles
  double activations = 0;  // that wait for their backward pass, of all micro-batches in flight
  double working = 0;      // of the layer that runs: what is made again, gradients of activations, workspace
  double head = 0;         // logits and their gradient
  double exchange = 0;     // tokens on their way to experts and back
  double steady() const { return parameters + weights + gradients + moments + buffers; }
  double peak() const { return steady() + gathered + activations + working + head + exchange; }
};

// Values that a rank of a stage holds after all divisions but those of the optimizer's state.
struct StageValues {
  double dense = 0, experts = 0;
  double largest_layer = 0;  // of both, of one layer
};
std::vector<StageValues> values_of_stages(const Shape& shape, const Layout& layout);

// Bytes that a token keeps in one layer until its backward pass, on all ranks that divide it together.
double kept_bytes(const Shape& shape, const LayerShape& layer, const Layout& layout);

// `measured_activations`: bytes of one micro-batch where the program itself has counted them, in place of the
// closed form.
std::vector<StageMemory> memory_of(const Shape& shape, const Layout& layout, const Calibration& calibration,
                                   std::optional<double> measured_activations = std::nullopt);

// The stage that needs most.
const StageMemory& largest(const std::vector<StageMemory>& stages);

}  // namespace switchyard::plan
