// Element by element: zeros, copies, sums, biases, noise.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/rng.h"
#include "ops/operator.h"

namespace switchyard::ops {

// Sums over whole tensors and other small things.

SY_OPERATOR(fill_zero, Tensor out, Context& ctx);  // any shape; all bytes zero
// out = in; equal shapes; rows may be strided. On a device from bf16 to f32 and from f32 to bf16, too: rounded.
SY_OPERATOR(copy, Tensor out, Tensor in, Context& ctx);
// out = a + b; out may be a or b. On a device b may be f32 where the others are bf16.
SY_OPERATOR(add, Tensor out, Tensor a, Tensor b, Context& ctx);
// out = addend + the sum of N leaves by halves of their numbers: of the first (N + 1) / 2, and of the others,
// each the same way; added in float32 where they are bf16, and rounded once. One type and number of elements,
// contiguous; at most kMostLeaves. `addend` may be undefined; out may be it or one of the leaves. On the CPU
// f32 or f64.
constexpr int kMostLeaves = 256;
SY_OPERATOR(sum_by_halves, Tensor out, Tensor addend, std::span<const Tensor> leaf_N, Context& ctx);
// Leaves go onto a stack in turn; this many pairs at its top are added after each. n in [1, kMostLeaves]. Here
// for the backend, too, which is linked without the operators.
inline std::array<std::uint8_t, kMostLeaves> sums_after_leaves(int n) {
  SY_CHECK(n >= 1 && n <= kMostLeaves, "a sum of {} leaves", n);
  std::array<std::uint8_t, kMostLeaves> sums{};
  const auto halve = [&](const auto& self, int first, int count) -> void {
    if (count == 1) return;
    const int half = (count + 1) / 2;
    self(self, first, half);
    self(self, first + half, count - half);
    ++sums[static_cast<std::size_t>(first + count - 1)];
  };
  halve(halve, 0, n);
  return sums;
}
constexpr int kStackOfLeaves = 9;  // that are on it at once: log2 of kMostLeaves, and the one that comes
// sum_N += factor * value_N; f64, contiguous.
SY_OPERATOR(accumulate, Tensor sum_N, Tensor value_N, double factor, Context& ctx);
// Sum of squares of a contiguous tensor, in double, in fixed blocks whose sums are added in ascending order.
// sum_1: f64, set.
SY_OPERATOR(sum_of_squares, Tensor sum_1, Tensor in, Context& ctx);
// The same as a number: waits for the device.
double sum_of_squares(Tensor in, Context& ctx);

// Sums that are the same whatever part of a whole is here: block by block, then all blocks in one order.
//   B blocks of in_P; V values, of which M are added

// square_B[b] (f64, set) = the sum of squares of the elements of block b. block_B3 (i32): first element / 2^20,
// first element % 2^20, count.
SY_OPERATOR(squares_of_blocks, Tensor square_B, Tensor in_P, Tensor block_B3, Context& ctx);
// sum_1 (f64, set) = the sum of value_V[index_M[m]] over m, in an order that depends on M alone. value_V f64.
SY_OPERATOR(sum_at, Tensor sum_1, Tensor value_V, Tensor index_M, Context& ctx);

// Biases of linear layers.   T rows (may be strided), N outputs

// out_TN[t] += bias_N
SY_OPERATOR(bias_forward, Tensor out_TN, Tensor bias_N, Context& ctx);
// dbias_N += sum over rows of dout_TN, in fixed blocks, in ascending order.
SY_OPERATOR(bias_backward, Tensor dbias_N, Tensor dout_TN, Context& ctx);

// Random numbers for tensors.   T rows of N elements

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
