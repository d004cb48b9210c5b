// Rows of a small latent space and the sums over them that latent prototype routing's regularisation is made
// of (docs/router-mathematics.md, section 2).   R rows (T where they are tokens), d latent width, E experts, K
// slots a token
//
// Rows with a negative token_R count in no sum and get no gradient; token_R may be undefined: all rows count.
// Sums over rows are in double, in fixed blocks, in ascending order. Rows may be strided. Sums and factors that
// are f64 tensors may lie on the host or where the run computes; only there nobody waits for them.
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// norm_R = length of each row, unit_Rd = in_Rd / norm; zeros where the length is below 1e-12. Both set.
SY_OPERATOR(unit_rows_forward, Tensor unit_Rd, Tensor norm_R, Tensor in_Rd, Context& ctx);
// din_Rd += (dunit - unit (unit . dunit)) / norm; nothing where the length is below 1e-12.
SY_OPERATOR(unit_rows_backward, Tensor din_Rd, Tensor dunit_Rd, Tensor unit_Rd, Tensor norm_R, Context& ctx);

// gram_dd = sum over rows of N N^T, sum_d = sum of N. Both f64, set.
SY_OPERATOR(row_moments, Tensor gram_dd, Tensor sum_d, Tensor unit_Rd, Tensor token_R, Context& ctx);
// dunit_Rd += N matrix_dd^T + offset_d.   matrix_dd, offset_d f64
SY_OPERATOR(add_affine_rows, Tensor dunit_Rd, Tensor unit_Rd, Tensor matrix_dd, Tensor offset_d, Tensor token_R,
            Context& ctx);

// count_1 (f64, set) = the rows that count.
SY_OPERATOR(count_rows, Tensor count_1, Tensor token_R, Context& ctx);

// sum_1 (f64, set) = the sum of |Y_i - Y_j| over ordered pairs i != j: quadratic in the rows.
SY_OPERATOR(pair_distance_sum, Tensor sum_1, Tensor Y_Rd, Tensor token_R, Context& ctx);
// dY_Rd += scale_1 (f64) * its gradient; pairs of equal rows have none.
SY_OPERATOR(pair_distance_backward, Tensor dY_Rd, Tensor Y_Rd, Tensor token_R, Tensor scale_1, Context& ctx);

// z_Td = mean + epsilon * exp(log_var / 2), set.
SY_OPERATOR(sample_latent, Tensor z_Td, Tensor mean_Td, Tensor log_var_Td, Tensor epsilon_Td, Context& ctx);

// sum_1 (f64, set) = the sum over tokens of
//   KL(N(mean, exp(log_var)) || N(0, 1)) = -1/2 sum_j (1 + log_var - mean^2 - exp(log_var)).
SY_OPERATOR(standard_kl_sum, Tensor sum_1, Tensor mean_Td, Tensor log_var_Td, Tensor token_T, Context& ctx);
// dmean_Td += scale * mean;  dlog_var_Td += scale * (exp(log_var) - 1) / 2
SY_OPERATOR(standard_kl_backward, Tensor dmean_Td, Tensor dlog_var_Td, Tensor mean_Td, Tensor log_var_Td,
            Tensor token_T, double scale, Context& ctx);

// With R_TE = softmax over all E of the row that holds chosen_TK at expert_TK and 0 elsewhere:
//   sum_Ed = R^T z, count_E = column sums of R. Both f64, set. Tokens whose slots are all free count nowhere.
//   R is one value everywhere but at the chosen, so this costs T (K + 1) d, not T E d.
SY_OPERATOR(routed_sums, Tensor sum_Ed, Tensor count_E, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK,
            Context& ctx);

// Rows that do not count become zero.
SY_OPERATOR(clear_skipped_rows, Tensor x_RD, Tensor token_R, Context& ctx);

// out = factor * in; equal shapes; out may be in.
SY_OPERATOR(scale_rows, Tensor out_Rd, Tensor in_Rd, double factor, Context& ctx);

}  // namespace switchyard::ops
