// A small row of router state (f32 or f64, wherever it lies) as doubles: what is solved once a step.
#pragma once

#include <span>
#include <vector>

#include "core/tensor.h"

namespace switchyard::router {

std::vector<double> read_row(const Tensor& tensor);
double read_number(const Tensor& tensor);  // of one element; allocates nothing on the host
void write_row(const Tensor& tensor, std::span<const double> values);

}  // namespace switchyard::router
