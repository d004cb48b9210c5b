// The CPU version of ops/latent_losses.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"
#include "core/latent_losses.h"

namespace switchyard::ops::cpu {

void add_diversity_loss(Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor);
void diversity_gradient(Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind, const RowSums& rows,
                        const TermFactor& factor);
template <class T>
void add_alignment_loss(Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor);
template <class T>
void alignment_backward(Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor);

}  // namespace switchyard::ops::cpu
