// The losses that spread a latent space out and bind keys to tokens (docs/router-mathematics.md, section 2).
//   E experts, d latent width
//
// Sums, losses and factors are f64 and lie where the run computes, so that nobody waits for them.
#pragma once

#include <cstdint>

#include "ops/operator.h"

namespace switchyard::ops {

// How alike n rows are. With N_i the rows scaled to length 1, G = sum_i N_i N_i^T and s = sum_i N_i:
//                value                               gradient
//   orthogonal   (|G|^2 - 2 tr G + n) / n^2          4 (G - I) N_i / n^2
//   cosine       (|s|^2 - tr G) / (n (n - 1))        2 (s - N_i) / (n (n - 1))
//   euclidean    -distance / (n (n - 1))             that factor times the gradient of distance
// where distance is the sum of the distances of all ordered pairs. Fewer than two rows: 0, without a gradient.
enum class Diversity : std::uint8_t { orthogonal, cosine, euclidean };

// What is known of n rows. All f64.
struct RowSums {
  Tensor gram_dd{}, sum_d{};  // G and s; not read by euclidean
  Tensor distance_1{};        // read by euclidean alone
  Tensor n_1{};
  double n = 0;  // where n_1 is not defined
};

// What a term counts: coef, times tokens_1 (f64) where that is defined.
struct TermFactor {
  double coef;
  Tensor tokens_1{};
};

// squares: |G|^2 for orthogonal, |s|^2 for cosine.
constexpr double diversity_value(Diversity kind, double n, double squares, double trace, double distance) {
  if (n < 2) return 0;
  switch (kind) {
    case Diversity::orthogonal:
      return (squares - 2 * trace + n) / (n * n);
    case Diversity::cosine:
      return (squares - trace) / (n * (n - 1));
    case Diversity::euclidean:
      return -distance / (n * (n - 1));
  }
  return 0;
}

// The gradient with respect to N_i: (gram G + identity I) N_i + sum s; to each distance: distance.
struct DiversitySlopes {
  double gram = 0, identity = 0, sum = 0, distance = 0;
};
constexpr DiversitySlopes diversity_slopes(Diversity kind, double n) {
  if (n < 2) return {};
  switch (kind) {
    case Diversity::orthogonal:
      return {.gram = 4 / (n * n), .identity = -4 / (n * n)};
    case Diversity::cosine:
      return {.identity = -2 / (n * (n - 1)), .sum = 2 / (n * (n - 1))};
    case Diversity::euclidean:
      return {.distance = -1 / (n * (n - 1))};
  }
  return {};
}

// loss_1 += factor * the rows' diversity.
SY_OPERATOR(add_diversity_loss, Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor,
            Context& ctx);
// The gradient of that term, set: matrix_dd N_i + offset_d with respect to N_i (add_affine_rows); where the
// diversity is euclidean only scale_1, by which that of the sum of distances is multiplied
// (pair_distance_backward).
SY_OPERATOR(diversity_gradient, Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind,
            const RowSums& rows, const TermFactor& factor, Context& ctx);

// loss_1 += factor * mean |key_Ed - target_Ed|.   key_Ed compute type, target_Ed f64
SY_OPERATOR(add_alignment_loss, Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
            Context& ctx);
// dkey_Ed += factor * sign(key_Ed - target_Ed) / (E d).
SY_OPERATOR(alignment_backward, Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
            Context& ctx);

}  // namespace switchyard::ops
