// Random numbers for tensors.   T rows of N elements
#pragma once

#include <cstdint>

#include "core/rng.h"
#include "ops/operator.h"

namespace switchyard::ops {

// Offset of a micro-batch in the run's random numbers. Noise is a function of (seed, step, layer, the token's
// position in the global batch), so that neither micro-batches nor ranks change it.
struct NoiseOffset {
  // i32 {step, first sequence of the micro-batch in the global batch}, where the run computes: a recorded step
  // reads another offset each time.
  Tensor rng_offset_2;
  std::int64_t layer;
  std::int64_t seq_len;
};

// The stream of a step's layer, and the position of the micro-batch's first token in the global batch.
constexpr std::uint64_t noise_stream(std::int32_t step, std::int64_t layer) {
  return (static_cast<std::uint64_t>(step) << 20) + static_cast<std::uint64_t>(layer);
}
constexpr std::int64_t first_noise_row(std::int32_t first_sequence, std::int64_t seq_len) {
  return first_sequence * seq_len;
}

// x_TN[t,n] += sigma * the standard normal value at index (first + t) * N + n of the stream of rng's seed and
// purpose that is the offset's step and layer; first: the position of the micro-batch's first token.
SY_OPERATOR(add_normal, Tensor x_TN, const Rng& rng, const NoiseOffset& offset, double sigma, Context& ctx);

}  // namespace switchyard::ops
