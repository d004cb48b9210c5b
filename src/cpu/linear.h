// CPU implementation of ops/linear.h.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

template <class T>
void linear_forward(Tensor out_TN, Tensor in_TK, Tensor weight_NK, bool add, MatmulType type);
template <class T>
void linear_backward_input(Tensor din_TK, Tensor dout_TN, Tensor weight_NK, bool add, MatmulType type);
template <class T>
void linear_backward_weight(Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, MatmulType type);

template <class T>
void grouped_linear_forward(Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep, Context& ctx);
template <class T>
void grouped_linear_backward_input(Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
                                   Context& ctx);
template <class T>
void grouped_linear_backward_weight(Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
                                    Context& ctx);

}  // namespace switchyard::ops::cpu
