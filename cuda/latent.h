// Latent rows and the sums over them on the device; shapes and formulas: ops/latent.h. All f32 but what is f64
// there; clear_skipped_rows also takes bf16. What is f64 may lie on the host: the call waits then.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cuda {

void unit_rows_forward(Tensor unit_Rd, Tensor norm_R, Tensor in_Rd, Context& ctx);
void unit_rows_backward(Tensor din_Rd, Tensor dunit_Rd, Tensor unit_Rd, Tensor norm_R, Context& ctx);
void row_moments(Tensor gram_dd, Tensor sum_d, Tensor unit_Rd, Tensor skip_R, Context& ctx);
void add_affine_rows(Tensor dunit_Rd, Tensor unit_Rd, Tensor matrix_dd, Tensor offset_d, Tensor skip_R,
                     Context& ctx);
void count_rows(Tensor count_1, Tensor skip_R, Context& ctx);
void pair_distance_sum(Tensor sum_1, Tensor Y_Rd, Tensor skip_R, Context& ctx);
void pair_distance_backward(Tensor dY_Rd, Tensor Y_Rd, Tensor skip_R, Tensor scale_1, Context& ctx);
void sample_latent(Tensor z_Td, Tensor mean_Td, Tensor log_var_Td, Tensor epsilon_Td, Context& ctx);
void standard_kl_sum(Tensor sum_1, Tensor mean_Td, Tensor log_var_Td, Tensor skip_T, Context& ctx);
void standard_kl_backward(Tensor dmean_Td, Tensor dlog_var_Td, Tensor mean_Td, Tensor log_var_Td, Tensor skip_T,
                          double scale, Context& ctx);
void routed_sums(Tensor sum_Ed, Tensor count_E, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK, Context& ctx);
void clear_skipped_rows(Tensor x_RD, Tensor skip_R, Context& ctx);
void scale_rows(Tensor out_Rd, Tensor in_Rd, double factor, Context& ctx);

}  // namespace switchyard::ops::cuda
