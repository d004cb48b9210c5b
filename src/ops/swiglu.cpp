#include "ops/swiglu.h"

#include "cpu/swiglu.h"
#include "cuda/swiglu.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_halves(const Tensor& row_RF, const Tensor& gate_up_R2F, const char* name) {
  check_shape(row_RF, Shape{row_RF.rows(), row_RF.dim(1)}, "the [R, F] rows");
  check_shape(gate_up_R2F, Shape{row_RF.rows(), 2 * row_RF.dim(1)}, name);
  check_dtype(gate_up_R2F, row_RF.dtype(), name);
}

void check_experts(const Tensor& weight_R, const Tensor& offset_Ep, const Tensor& gate_up_R2F) {
  check_shape(weight_R, Shape{gate_up_R2F.rows()}, "weight_R");
  check_statistics_of(weight_R, gate_up_R2F, "weight_R");
  check_shape(offset_Ep, Shape{offset_Ep.rows()}, "offset_Ep");
  check_dtype(offset_Ep, DType::i32, "offset_Ep");
}

}  // namespace

void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Context& ctx) {
  check_halves(out_RF, gate_up_R2F, "gate_up_R2F");
  SY_ON_CUDA(ctx, cuda::swiglu_forward(out_RF, gate_up_R2F, ctx));
  with_scalar(out_RF.dtype(), [&]<class T>() { cpu::swiglu_forward<T>(out_RF, gate_up_R2F); });
}

void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F, Context& ctx) {
  check_halves(dout_RF, gate_up_R2F, "gate_up_R2F");
  check_halves(dout_RF, dgate_up_R2F, "dgate_up_R2F");
  SY_ON_CUDA(ctx, cuda::swiglu_backward(dgate_up_R2F, dout_RF, gate_up_R2F, ctx));
  with_scalar(dout_RF.dtype(), [&]<class T>() { cpu::swiglu_backward<T>(dgate_up_R2F, dout_RF, gate_up_R2F); });
}

void expert_swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  check_halves(out_RF, gate_up_R2F, "gate_up_R2F");
  check_experts(weight_R, offset_Ep, gate_up_R2F);
  SY_ON_CUDA(ctx, cuda::expert_swiglu_forward(out_RF, gate_up_R2F, weight_R, offset_Ep, ctx));
  with_scalar(out_RF.dtype(),
              [&]<class T>() { cpu::expert_swiglu_forward<T>(out_RF, gate_up_R2F, weight_R, offset_Ep); });
}

void expert_swiglu_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RF, Tensor gate_up_R2F,
                            Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  check_halves(dout_RF, gate_up_R2F, "gate_up_R2F");
  check_halves(dout_RF, dgate_up_R2F, "dgate_up_R2F");
  check_experts(weight_R, offset_Ep, gate_up_R2F);
  check_like(dweight_R, weight_R, "dweight_R");
  SY_ON_CUDA(ctx, cuda::expert_swiglu_backward(dgate_up_R2F, dweight_R, dout_RF, gate_up_R2F, weight_R,
                                               offset_Ep, ctx));
  with_scalar(dout_RF.dtype(), [&]<class T>() {
    cpu::expert_swiglu_backward<T>(dgate_up_R2F, dweight_R, dout_RF, gate_up_R2F, weight_R, offset_Ep);
  });
}

}  // namespace switchyard::ops
