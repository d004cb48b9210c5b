// The losses of a latent space on the device; contracts: ops/latent_losses.h. Keys are f32; nobody waits.
#pragma once

#include "core/context.h"
#include "core/latent_losses.h"

namespace switchyard::ops::cuda {

void add_diversity_loss(Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor,
                        Context& ctx);
void diversity_gradient(Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind, const RowSums& rows,
                        const TermFactor& factor, Context& ctx);
void add_alignment_loss(Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor, Context& ctx);
void alignment_backward(Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx);

}  // namespace switchyard::ops::cuda
