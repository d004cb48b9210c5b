#include "model/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace switchyard::model {

namespace {

// The pair that turns `turns` times within the original context, as a real number.
double pair_of_turns(double turns, const config::Rope& rope, double dim) {
  return dim *
         std::log(static_cast<double>(rope.original_max_position_embeddings) / (2 * std::numbers::pi * turns)) /
         (2 * std::log(rope.theta));
}

}  // namespace

std::vector<double> rope_frequencies(const config::Rope& rope, std::int64_t dim) {
  const auto width = static_cast<double>(dim);
  std::vector<double> frequency_P(static_cast<std::size_t>(dim / 2));
  for (std::size_t i = 0; i < frequency_P.size(); ++i)
    frequency_P[i] = std::pow(rope.theta, -2 * static_cast<double>(i) / width);
  switch (rope.type) {
    case config::RopeType::unscaled:
      break;
    case config::RopeType::linear:
      for (double& frequency : frequency_P) frequency /= rope.factor;
      break;
    case config::RopeType::yarn: {
      double low = pair_of_turns(rope.beta_fast, rope, width),
             high = pair_of_turns(rope.beta_slow, rope, width);
      if (rope.truncate) {
        low = std::floor(low);
        high = std::ceil(high);
      }
      low = std::max(low, 0.0);
      high = std::min(high, width - 1);
      if (low == high) high += 0.001;
      for (std::size_t i = 0; i < frequency_P.size(); ++i) {
        const double slowed = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        frequency_P[i] = slowed * frequency_P[i] / rope.factor + (1 - slowed) * frequency_P[i];
      }
      break;
    }
  }
  return frequency_P;
}

}  // namespace switchyard::model
