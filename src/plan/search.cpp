#include "plan/search.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"

namespace switchyard::plan {

namespace {

// Powers of two, and what was asked for.
std::vector<std::int64_t> powers(std::int64_t most, std::int64_t asked) {
  std::vector<std::int64_t> list;
  for (std::int64_t n = 1; n <= most; n *= 2) list.push_back(n);
  if (std::find(list.begin(), list.end(), asked) == list.end()) list.push_back(asked);
  return list;
}

bool possible(const Layout& layout, const Shape& shape) {
  try {
    check_layout(layout, shape);
    return true;
  } catch (const InputError&) {
    return false;
  }
}

void add(std::vector<Candidate>& found, const Shape& shape, const Layout& layout, const Device& device,
         const Calibration& calibration) {
  const double peak = largest(memory_of(shape, layout, calibration)).peak();
  found.push_back({layout, peak, peak <= device.memory, step_of(shape, layout, device, calibration)});
}

}  // namespace

std::vector<Candidate> search(const Shape& shape, const Layout& asked, const Device& device,
                              const Calibration& calibration, bool only_here) {
  std::vector<Candidate> found;
  const std::int64_t most_pipeline = only_here ? 1 : std::min<std::int64_t>(64, shape.layers);
  const std::int64_t most_tensor = only_here ? 1 : std::min<std::int64_t>(8, device.domain);
  // One sequence is divided where it is long.
  const std::int64_t most_context = only_here ? 1 : std::max<std::int64_t>(1, asked.seq_len / 8192);
  const std::vector<std::string> recomputes = only_here ? std::vector<std::string>{"none", "swiglu", "block"}
                                                        : std::vector<std::string>{"none", "act,norm", "full"};
  std::vector<Layout> layouts;
  for (const std::int64_t pipeline : powers(most_pipeline, asked.pipeline))
    for (const std::int64_t tensor : powers(most_tensor, asked.tensor))
      for (const std::int64_t context : powers(most_context, asked.context))
        for (const std::int64_t expert : powers(std::max<std::int64_t>(1, shape.experts), asked.expert))
          for (const std::int64_t micro : powers(16, asked.micro_batch))
            for (const std::string& recompute : recomputes)
              for (const std::int64_t zero : {1, 2}) {
                if (zero == 2 && !only_here) continue;
                Layout layout = asked;
                layout.pipeline = pipeline;
                layout.chunks = pipeline == 1 ? 1
                                              : std::max<std::int64_t>(
                                                    1, std::min<std::int64_t>(4, shape.layers / pipeline));
                layout.tensor = tensor;
                layout.context = context;
                layout.expert = expert;
                layout.expert_tensor = 1;
                layout.micro_batch = micro;
                layout.zero = zero;
                layout.recompute = parse_recompute(recompute);
                layout.recompute_name = recompute;
                if (possible(layout, shape)) layouts.push_back(layout);
              }
  found.reserve(layouts.size());
  for (const Layout& layout : layouts) add(found, shape, layout, device, calibration);
  std::stable_sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
    if (a.fits != b.fits) return a.fits;
    if (!a.fits) return a.peak < b.peak;
    return a.step.tokens_per_second_per_device > b.step.tokens_per_second_per_device;
  });
  return found;
}

std::vector<Candidate> pareto(std::vector<Candidate> candidates) {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.peak < b.peak; });
  std::vector<Candidate> front;
  for (Candidate& each : candidates)
    if (front.empty() ||
        each.step.tokens_per_second_per_device > front.back().step.tokens_per_second_per_device)
      front.push_back(std::move(each));
  return front;
}

}  // namespace switchyard::plan
