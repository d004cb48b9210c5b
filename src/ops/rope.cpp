#include "ops/rope.h"

#include "cpu/rope.h"
#include "cuda/rope.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_table(const Tensor& cos_SP, const Tensor& sin_SP) {
  check_shape(cos_SP, Shape{cos_SP.rows(), cos_SP.dim(1)}, "cos_SP");
  SY_CHECK(cos_SP.dim(1) > 0, "a head has no pairs");
  check_shape(sin_SP, cos_SP.shape(), "sin_SP");
  check_dtype(sin_SP, cos_SP.dtype(), "sin_SP");
}

void check_rotation(const Tensor& x_THN, const Tensor& cos_SP, const Tensor& sin_SP, std::int64_t seq_len,
                    const RopeLayout& layout) {
  check_table(cos_SP, sin_SP);
  SY_CHECK(seq_len > 0 && seq_len <= cos_SP.rows(), "sequences of {} positions, a table of {}", seq_len,
           cos_SP.rows());
  SY_CHECK(layout.head_dim >= 2 * cos_SP.dim(1), "{} pairs in a head of {}", cos_SP.dim(1), layout.head_dim);
  check_shape(x_THN, Shape{x_THN.rows(), x_THN.dim(1) / layout.head_dim * layout.head_dim}, "x_THN");
  check_statistics_of(cos_SP, x_THN, "cos_SP");
}

}  // namespace

void rope_table(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale, Context& ctx) {
  check_table(cos_SP, sin_SP);
  check_shape(frequency_P, Shape{cos_SP.dim(1)}, "frequency_P");
  check_dtype(frequency_P, DType::f64, "frequency_P");
  SY_ON_CUDA(ctx, cuda::rope_table(cos_SP, sin_SP, frequency_P, scale, ctx));
  with_scalar(cos_SP.dtype(), [&]<class T>() { cpu::rope_table<T>(cos_SP, sin_SP, frequency_P, scale); });
}

void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                  Context& ctx) {
  check_rotation(x_THN, cos_SP, sin_SP, seq_len, layout);
  SY_ON_CUDA(ctx, cuda::rope_forward(x_THN, cos_SP, sin_SP, seq_len, layout, ctx));
  with_scalar(x_THN.dtype(), [&]<class T>() { cpu::rope_forward<T>(x_THN, cos_SP, sin_SP, seq_len, layout); });
}

void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                   Context& ctx) {
  check_rotation(dx_THN, cos_SP, sin_SP, seq_len, layout);
  SY_ON_CUDA(ctx, cuda::rope_backward(dx_THN, cos_SP, sin_SP, seq_len, layout, ctx));
  with_scalar(dx_THN.dtype(),
              [&]<class T>() { cpu::rope_backward<T>(dx_THN, cos_SP, sin_SP, seq_len, layout); });
}

}  // namespace switchyard::ops
