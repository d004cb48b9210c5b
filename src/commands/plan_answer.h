// What `switchyard plan` is asked, and what it has found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "plan/calibration.h"
#include "plan/device.h"
#include "plan/layout.h"
#include "plan/memory.h"
#include "plan/search.h"
#include "plan/shape.h"
#include "plan/time.h"

namespace switchyard::commands {

constexpr double kStateBytes = 12;  // of a parameter in a checkpoint: its value and two moments, float32

// What is asked about: a model and how it is trained.
struct Asked {
  config::Model model;
  config::Router router;
  plan::Shape shape;
  plan::Layout layout;
  double tokens = 0;  // 0: not known
  std::optional<config::Checkpoint> checkpoint;
  bool auto_micro_batch = false;  // the largest that fits
  int threads = 0;                // of a run's rank; 0: its share of the cores
};

struct Plan {
  Asked asked;
  plan::Device device;
  plan::Calibration calibration;
  std::vector<plan::StageMemory> stages;
  bool counted_activations = false;
  plan::StepPlan step;
  std::vector<plan::Candidate> layouts;  // of a search
  double hours = 0, energy_kwh = 0, cost = 0, checkpoint_bytes = 0;
  const plan::StageMemory& memory() const { return plan::largest(stages); }
  bool fits() const { return memory().peak() <= device.memory; }
};

// What would make it fit, the least change first, as options of the command; empty: nothing of what is tried.
std::vector<std::string> remedies(const Plan& plan);

}  // namespace switchyard::commands
