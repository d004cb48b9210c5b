// Layouts of a model on so many devices, best first.
#pragma once

#include <vector>

#include "plan/memory.h"
#include "plan/time.h"

namespace switchyard::plan {

struct Candidate {
  Layout layout;
  double peak = 0;  // bytes of the rank that needs most
  bool fits = false;
  StepPlan step;
};

// Every layout of the asked-for ranks, batch and precision: experts, layers, matrices and sequences divided by
// powers of two, micro-batches of powers of two, what is asked for among them, and what is computed again.
// Where `only_here`, those that switchyard runs. Those that fit come first, then by tokens a second.
std::vector<Candidate> search(const Shape& shape, const Layout& asked, const Device& device,
                              const Calibration& calibration, bool only_here);

// Of these, those that no other beats in both speed and memory, in the order of memory.
std::vector<Candidate> pareto(std::vector<Candidate> candidates);

}  // namespace switchyard::plan
