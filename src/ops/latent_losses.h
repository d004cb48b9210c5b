// The losses that spread a latent space out and bind keys to tokens (formulas: core/latent_losses.h).
//   E experts, d latent width
//
// Sums, losses and factors are f64 and lie where the run computes, so that nobody waits for them.
#pragma once

#include "core/context.h"
#include "core/latent_losses.h"

namespace switchyard::ops {

// loss_1 += factor * the rows' diversity.
void add_diversity_loss(Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor,
                        Context& ctx);
// The gradient of that term, set: matrix_dd N_i + offset_d with respect to N_i (add_affine_rows); where the
// diversity is euclidean only scale_1, by which that of the sum of distances is multiplied
// (pair_distance_backward).
void diversity_gradient(Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind, const RowSums& rows,
                        const TermFactor& factor, Context& ctx);

// loss_1 += factor * mean |key_Ed - target_Ed|.   key_Ed compute type, target_Ed f64
void add_alignment_loss(Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor, Context& ctx);
// dkey_Ed += factor * sign(key_Ed - target_Ed) / (E d).
void alignment_backward(Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx);

}  // namespace switchyard::ops
