#include "ops/adamw.h"

#include "cpu/adamw.h"
#include "cuda/adamw.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, const AdamWStep& step, Context& ctx,
                  Tensor weight_P) {
  const auto check_like_param = [&](const Tensor& tensor, const char* name) {
    check_shape(tensor, param_P.shape(), name);
    check_dtype(tensor, param_P.dtype(), name);
    check_contiguous(tensor, name);
  };
  check_contiguous(param_P, "param_P");
  check_like_param(m_P, "m_P");
  check_like_param(v_P, "v_P");
  check_like_param(grad_P, "grad_P");
  SY_CHECK(step.step >= 1, "step {}: the first update is step 1", step.step);
  if (weight_P.defined()) check_shape(weight_P, param_P.shape(), "weight_P");
  SY_ON_CUDA(ctx, cuda::adamw_update(param_P, m_P, v_P, grad_P, step, ctx, weight_P));
  SY_CHECK(!weight_P.defined(), "weights are rounded on a device alone");
  with_scalar(param_P.dtype(), [&]<class T>() { cpu::adamw_update<T>(param_P, m_P, v_P, grad_P, step); });
}

}  // namespace switchyard::ops
