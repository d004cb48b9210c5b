#include "generate/sampling.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/rng.h"

namespace switchyard::generate {

namespace {

std::int32_t largest(std::span<const float> logits_V) {
  std::size_t best = 0;
  for (std::size_t v = 0; v < logits_V.size(); ++v) {
    if (std::isnan(logits_V[v])) throw_run("the logit of token {} is not a number; the weights are damaged", v);
    if (logits_V[v] > logits_V[best]) best = v;
  }
  return static_cast<std::int32_t>(best);
}

}  // namespace

std::int32_t Sampler::choose(std::span<const float> logits_V, std::uint64_t position) {
  const std::int32_t best = largest(logits_V);
  if (options_.temperature == 0) return best;
  const double most = logits_V[static_cast<std::size_t>(best)];
  // The likelier first; the smaller token of equal ones first.
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.token < b.token;
  };
  const auto behind = [&](const Candidate& a, const Candidate& b) { return before(b, a); };  // for heaps
  candidates_.clear();
  for (std::size_t v = 0; v < logits_V.size(); ++v)
    candidates_.push_back({static_cast<double>(logits_V[v]), static_cast<std::int32_t>(v)});

  if (const auto k = static_cast<std::size_t>(options_.top_k); k > 0 && k < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k - 1),
                     candidates_.end(), before);
    const double smallest = candidates_[k - 1].value;  // equal ones stay, as in transformers
    std::erase_if(candidates_, [&](const Candidate& c) { return c.value < smallest; });
  }
  double sum = 0;
  for (Candidate& c : candidates_) sum += c.value = std::exp((c.value - most) / options_.temperature);
  if (options_.top_p < 1) {
    // A token stays while those before it have less than top_p. The heap hands them out likeliest first.
    std::make_heap(candidates_.begin(), candidates_.end(), behind);
    double kept = 0;
    auto end = candidates_.end();
    while (end != candidates_.begin() && (end == candidates_.end() || kept < options_.top_p * sum)) {
      std::pop_heap(candidates_.begin(), end, behind);
      kept += (--end)->value;
    }
    candidates_.erase(candidates_.begin(), end);
    sum = kept;
  }
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  double rest = Rng(options_.seed, RngPurpose::sampling, 0).uniform(position) * sum;
  for (const Candidate& c : candidates_)
    if ((rest -= c.value) < 0) return c.token;
  return best;  // rounding alone leads here
}

}  // namespace switchyard::generate
