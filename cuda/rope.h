// Rotary embedding on the device; shapes and formulas: ops/rope.h. x f32 or bf16, turned in f32; the tables are
// f32 for both: an angle's cosine in bf16 would be wrong in the third digit. frequency_P on host or device.
#pragma once

#include "core/context.h"
#include "core/rope_layout.h"

namespace switchyard::ops::cuda {

void rope_table(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale, Context& ctx);
void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                  Context& ctx);
void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                   Context& ctx);

}  // namespace switchyard::ops::cuda
