// Cosine similarity of tokens and experts' means.   T tokens, D hidden size, E experts, K slots a token
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// norm_R = length of each row of x_RD: sum |x| (l1) or sqrt(sum x^2) (l2). Set.
SY_OPERATOR(row_norm_l1, Tensor norm_R, Tensor x_RD, Context& ctx);
SY_OPERATOR(row_norm_l2, Tensor norm_R, Tensor x_RD, Context& ctx);

// score_TE, which holds the products x . m, is divided by max(|x||m|, 1e-12).   x_norm_T, mean_norm_E: l2.
SY_OPERATOR(cosine_forward, Tensor score_TE, Tensor x_norm_T, Tensor mean_norm_E, Context& ctx);
// With g = dscore / max(|x||m|, 1e-12), which takes dscore_TE's place, the gradient of x is
//   sum_e g_e m_e  -  x sum_e dscore_e score_e / |x|^2;
// the second part is added to dx_TD here, the first is a product of matrices. Means have no gradient.
SY_OPERATOR(cosine_backward, Tensor dscore_TE, Tensor dx_TD, Tensor score_TE, Tensor x_TD, Tensor x_norm_T,
            Tensor mean_norm_E, Context& ctx);

// sum_ED[e] = sum of x_TD[t] over the slots of expert e, count_E[e] = their number. Both f64, set; in token
// order.
SY_OPERATOR(expert_sums, Tensor sum_ED, Tensor count_E, Tensor x_TD, Tensor expert_TK, Context& ctx);

}  // namespace switchyard::ops
