// Random numbers for tensors.   T rows of N elements
#pragma once

#include <cstdint>

#include "core/rng.h"
#include "ops/operator.h"

namespace switchyard::ops {

// Where in a run a micro-batch stands, as far as its noise goes: a function of (seed, step, layer, the token's
// place in the global batch), so that neither micro-batches nor ranks change it.
struct NoisePlace {
  // i32 {step, first sequence of the micro-batch in the global batch}, where the run computes: a recorded step
  // reads another place each time.
  Tensor place_2;
  std::int64_t layer;
  std::int64_t seq_len;
};

// The stream of a step's layer, and the place of the micro-batch's first token in the global batch.
constexpr std::uint64_t noise_stream(std::int32_t step, std::int64_t layer) {
  return (static_cast<std::uint64_t>(step) << 20) + static_cast<std::uint64_t>(layer);
}
constexpr std::int64_t first_noise_row(std::int32_t first_sequence, std::int64_t seq_len) {
  return first_sequence * seq_len;
}

// x_TN[t,n] += sigma * the standard normal value at index (first + t) * N + n of the stream of rng's seed and
// purpose that is the place's step and layer; first: the place of the micro-batch's first token.
SY_OPERATOR(add_normal, Tensor x_TN, const Rng& rng, const NoisePlace& place, double sigma, Context& ctx);

}  // namespace switchyard::ops
