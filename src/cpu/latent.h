// The CPU version of ops/latent.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void unit_rows_forward(Tensor unit_Rd, Tensor norm_R, Tensor in_Rd);
template <class T>
void unit_rows_backward(Tensor din_Rd, Tensor dunit_Rd, Tensor unit_Rd, Tensor norm_R);
template <class T>
void row_moments(Tensor gram_dd, Tensor sum_d, Tensor unit_Rd, Tensor skip_R, Scratch& scratch);
template <class T>
void add_affine_rows(Tensor dunit_Rd, Tensor unit_Rd, Tensor matrix_dd, Tensor offset_d, Tensor skip_R);
std::int64_t count_rows(Tensor skip_R);
template <class T>
double pair_distance_sum(Tensor Y_Rd, Tensor skip_R, Scratch& scratch);
template <class T>
void pair_distance_backward(Tensor dY_Rd, Tensor Y_Rd, Tensor skip_R, double scale, Scratch& scratch);
template <class T>
void sample_latent(Tensor z_Td, Tensor mean_Td, Tensor log_var_Td, Tensor epsilon_Td);
template <class T>
double standard_kl_sum(Tensor mean_Td, Tensor log_var_Td, Tensor skip_T, Scratch& scratch);
template <class T>
void standard_kl_backward(Tensor dmean_Td, Tensor dlog_var_Td, Tensor mean_Td, Tensor log_var_Td, Tensor skip_T,
                          double scale);
template <class T>
void routed_sums(Tensor sum_Ed, Tensor count_E, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK,
                 Scratch& scratch);
template <class T>
void clear_skipped_rows(Tensor x_RD, Tensor skip_R);
template <class T>
void scale_rows(Tensor out_Rd, Tensor in_Rd, double factor);

}  // namespace switchyard::ops::cpu
