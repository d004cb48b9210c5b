// The CPU version of ops/adamw.h, which holds the contracts. T: float or double.
#pragma once

#include "core/adamw_step.h"
#include "core/context.h"

namespace switchyard::ops::cpu {

double clip_factor(double sum_of_squares, double clip_norm);
template <class T>
void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, double grad_scale,
                  const AdamWStep& step);

}  // namespace switchyard::ops::cpu
