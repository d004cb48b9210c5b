#include "ops/swiglu.h"

#include "ops/cpu/reduce.h"
#include "ops/cpu/swiglu_row.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

std::int64_t routed_rows(const Tensor& offset_Ep) { return offset_Ep.as<std::int32_t>()[offset_Ep.rows() - 1]; }

template <class T>
void swiglu_forward_on_cpu(Tensor out_RF, Tensor gate_up_R2F) {
  const Rows<T> out(out_RF), gate_up(gate_up_R2F);
  const std::int64_t width = out_RF.row_size();
#pragma omp parallel for schedule(static) if (out_RF.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < out_RF.rows(); ++r) swiglu_forward_row(out[r], gate_up[r], width, T(1));
}

template <class T>
void swiglu_backward_on_cpu(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F) {
  const Rows<T> dgate_up(dgate_up_R2F), dout(dout_RF), gate_up(gate_up_R2F);
  const std::int64_t width = dout_RF.row_size();
#pragma omp parallel for schedule(static) if (dout_RF.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < dout_RF.rows(); ++r)
    swiglu_backward_row(dgate_up[r], dout[r], gate_up[r], width, T(1));
}

template <class T>
void expert_swiglu_forward_on_cpu(Tensor out_RF, Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep) {
  const Rows<T> out(out_RF), gate_up(gate_up_R2F), weight(weight_R);
  const std::int64_t n_rows = routed_rows(offset_Ep), width = out_RF.row_size();
#pragma omp parallel for schedule(static) if (n_rows * width >= kParallelElements)
  for (std::int64_t r = 0; r < n_rows; ++r) swiglu_forward_row(out[r], gate_up[r], width, *weight[r]);
}

template <class T>
void expert_swiglu_backward_on_cpu(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RF, Tensor gate_up_R2F,
                                   Tensor weight_R, Tensor offset_Ep) {
  const Rows<T> dgate_up(dgate_up_R2F), dweight(dweight_R), dout(dout_RF), gate_up(gate_up_R2F),
      weight(weight_R);
  const std::int64_t n_rows = routed_rows(offset_Ep), width = dout_RF.row_size();
#pragma omp parallel for schedule(static) if (n_rows * width >= kParallelElements)
  for (std::int64_t r = 0; r < n_rows; ++r)
    *dweight[r] = swiglu_backward_row(dgate_up[r], dout[r], gate_up[r], width, *weight[r]);
}

}  // namespace

void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Context& ctx) {
  const DType real = out_RF.dtype();
  Signature args(ctx);
  args(SY_ARG(out_RF), real)(SY_ARG(gate_up_R2F), real);
  run<&cuda::swiglu_forward>(ctx, real, SY_CPU(swiglu_forward_on_cpu), out_RF, gate_up_R2F);
}

void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F, Context& ctx) {
  const DType real = dout_RF.dtype();
  Signature args(ctx);
  args(SY_ARG(dout_RF), real)(SY_ARG(gate_up_R2F), real)(SY_ARG(dgate_up_R2F), real);
  run<&cuda::swiglu_backward>(ctx, real, SY_CPU(swiglu_backward_on_cpu), dgate_up_R2F, dout_RF, gate_up_R2F);
}

void expert_swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const DType real = out_RF.dtype();
  Signature args(ctx);
  args(SY_ARG(out_RF), real)(SY_ARG(gate_up_R2F), real)(SY_ARG(weight_R), accumulation_dtype(real));
  args(SY_ARG(offset_Ep), DType::i32);
  run<&cuda::expert_swiglu_forward>(ctx, real, SY_CPU(expert_swiglu_forward_on_cpu), out_RF, gate_up_R2F,
                                    weight_R, offset_Ep);
}

void expert_swiglu_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RF, Tensor gate_up_R2F,
                            Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const DType real = dout_RF.dtype(), statistic = accumulation_dtype(real);
  Signature args(ctx);
  args(SY_ARG(dout_RF), real)(SY_ARG(gate_up_R2F), real)(SY_ARG(dgate_up_R2F), real);
  args(SY_ARG(weight_R), statistic)(SY_ARG(dweight_R), statistic)(SY_ARG(offset_Ep), DType::i32);
  run<&cuda::expert_swiglu_backward>(ctx, real, SY_CPU(expert_swiglu_backward_on_cpu), dgate_up_R2F, dweight_R,
                                     dout_RF, gate_up_R2F, weight_R, offset_Ep);
}

}  // namespace switchyard::ops
