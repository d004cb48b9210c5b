#include <fmt/format.h>

#include <algorithm>

#include "commands/plan_answer.h"
#include "core/error.h"

namespace switchyard::commands {

std::vector<std::string> remedies(const Plan& plan) {
  std::vector<std::string> found;
  const auto try_layout = [&](plan::Layout layout, const std::string& words) {
    try {
      plan::check_layout(layout, plan.asked.shape);
    } catch (const InputError&) {
      return false;
    }
    if (plan::largest(plan::memory_of(plan.asked.shape, layout, plan.calibration)).peak() > plan.device.memory)
      return false;
    found.push_back(words);
    return true;
  };
  const plan::Layout& asked = plan.asked.layout;
  for (std::int64_t micro = asked.micro_batch / 2; micro >= 1; micro /= 2) {
    plan::Layout layout = asked;
    layout.micro_batch = micro;
    if (try_layout(layout, fmt::format("--micro-batch {}", micro))) break;
  }
  if (!asked.recompute.block) {
    plan::Layout layout = asked;
    layout.recompute = {.block = true};
    try_layout(layout, layout.scheme == plan::Scheme::switchyard ? "--recompute block" : "--recompute full");
  }
  if (asked.scheme == plan::Scheme::switchyard && asked.zero < 2) {
    plan::Layout layout = asked;
    layout.zero = 2;
    try_layout(layout, "--zero 2");
  }
  for (std::int64_t expert = asked.expert * 2; expert <= std::min(asked.ranks, plan.asked.shape.experts);
       expert *= 2) {
    plan::Layout layout = asked;
    layout.expert = expert;
    if (try_layout(layout, fmt::format("--expert {}", expert))) break;
  }
  // All of these at once, and then more devices.
  if (found.empty()) {
    plan::Layout layout = asked;
    layout.micro_batch = 1;
    layout.recompute = {.block = true};
    if (layout.scheme == plan::Scheme::switchyard) layout.zero = 2;
    const char* again =
        layout.scheme == plan::Scheme::switchyard ? "--zero 2 --recompute block" : "--recompute full";
    for (std::int64_t times = 1; times <= 1024 && found.empty(); times *= 2) {
      layout.ranks = asked.ranks * times;
      layout.global_batch = std::max(asked.global_batch, layout.data());
      for (std::int64_t expert = asked.expert;
           expert <= std::max<std::int64_t>(1, plan.asked.shape.experts) && found.empty(); expert *= 2) {
        layout.expert = expert;
        try_layout(layout,
                   fmt::format("--ranks {} --expert {} --micro-batch 1 {}", layout.ranks, expert, again));
      }
    }
  }
  return found;
}

}  // namespace switchyard::commands
