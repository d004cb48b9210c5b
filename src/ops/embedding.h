// Token embedding.   T tokens, D width, V vocabulary
#pragma once

#include "ops/operator.h"

namespace switchyard::ops {

// out_TD[t] = weight_VD[token_T[t]], set; a negative token is padding and gives a row of zeros.
//   token_T i32; weight_VD, out_TD f32|f64. Tokens are < V: the caller has checked them.
SY_OPERATOR(embedding_forward, Tensor out_TD, Tensor token_T, Tensor weight_VD, Context& ctx);

// dweight_VD[token_T[t]] += dout_TD[t], t ascending: the order of the sum is fixed.
SY_OPERATOR(embedding_backward, Tensor dweight_VD, Tensor dout_TD, Tensor token_T, Context& ctx);

}  // namespace switchyard::ops
