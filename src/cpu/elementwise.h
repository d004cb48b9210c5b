// The CPU version of ops/elementwise.h, which holds the contracts. T: float or double.
#pragma once

#include "core/context.h"

namespace switchyard::ops::cpu {

// These two move bytes, whatever the dtype.
void fill_zero(Tensor out);
void copy(Tensor out, Tensor in);
template <class T>
void add(Tensor out, Tensor a, Tensor b);
void accumulate(Tensor sum_N, Tensor value_N, double factor);
template <class T>
double sum_of_squares(Tensor in, Scratch& scratch);

}  // namespace switchyard::ops::cpu
