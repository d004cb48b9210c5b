// From logits to the next token.   V vocabulary
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard::generate {

struct Sampling {
  double temperature = 1;  // 0: the largest logit, the smallest token of equal ones
  std::int64_t top_k = 0;  // only tokens whose logit is among the k largest; 0: all
  double top_p = 1;        // of those, the likeliest that together have this probability; 1: all
  std::uint64_t seed = 1;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& options) : options_(options) {}
  // Temperature, top-k and top-p in this order, as transformers applies them. A function of the logits, the
  // seed and the position alone. Throws RunError where a logit is NaN.
  std::int32_t choose(std::span<const float> logits_V, std::uint64_t position);

 private:
  struct Candidate {
    double value;  // the logit, then its share
    std::int32_t token;
  };
  Sampling options_;
  std::vector<Candidate> candidates_;
};

}  // namespace switchyard::generate
