#include "ops/adamw.h"

#include <cmath>

#include "cpu/adamw.h"
#include "cuda/adamw.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void clip_factor(Tensor grad_scale_1, Tensor sum_of_squares_1, double clip_norm, Context& ctx) {
  for (const Tensor* each : {&grad_scale_1, &sum_of_squares_1}) {
    check_shape(*each, Shape{1}, "a factor or sum");
    check_dtype(*each, DType::f64, "a factor or sum");
  }
  SY_ON_CUDA(ctx, cuda::clip_factor(grad_scale_1, sum_of_squares_1, clip_norm, ctx));
  grad_scale_1.as<double>()[0] = cpu::clip_factor(sum_of_squares_1.as<double>()[0], clip_norm);
}

void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, Tensor grad_scale_1,
                  const AdamWStep& step, Context& ctx, Tensor weight_P) {
  const auto check_like_param = [&](const Tensor& tensor, const char* name) {
    check_shape(tensor, param_P.shape(), name);
    check_dtype(tensor, param_P.dtype(), name);
    check_contiguous(tensor, name);
  };
  check_contiguous(param_P, "param_P");
  check_like_param(m_P, "m_P");
  check_like_param(v_P, "v_P");
  check_like_param(grad_P, "grad_P");
  check_shape(grad_scale_1, Shape{1}, "grad_scale_1");
  check_dtype(grad_scale_1, DType::f64, "grad_scale_1");
  SY_CHECK(step.step >= 1, "step {}: the first update is step 1", step.step);
  if (weight_P.defined()) check_shape(weight_P, param_P.shape(), "weight_P");
  SY_ON_CUDA(ctx, cuda::adamw_update(param_P, m_P, v_P, grad_P, grad_scale_1, step, ctx, weight_P));
  SY_CHECK(!weight_P.defined(), "weights are rounded on a device alone");
  const double grad_scale = grad_scale_1.as<double>()[0];
  if (std::isnan(grad_scale)) return;
  with_scalar(param_P.dtype(),
              [&]<class T>() { cpu::adamw_update<T>(param_P, m_P, v_P, grad_P, grad_scale, step); });
}

}  // namespace switchyard::ops
