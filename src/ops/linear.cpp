#include "ops/linear.h"

#include "cpu/linear.h"
#include "cuda/linear.h"
#include "ops/cpu/gemm_bf16.h"
#include "ops/dispatch.h"
#include "ops/elementwise.h"
#include "ops/swiglu.h"

namespace switchyard::ops {

bool has_fast_matmul(MatmulType type, Device device) {
  switch (device) {
    case Device::cpu:
      return type != MatmulType::bf16 || cpu::has_bf16_products();
    case Device::cuda:
      return true;
  }
  return false;
}

namespace {

// Both operands are of one type, and the product of it too, or of the type of their sums.
void check_product(const Tensor& product, const Tensor& a, const Tensor& b) {
  SY_CHECK(a.dtype() == b.dtype(), "operands are {} and {}", name_of(a.dtype()), name_of(b.dtype()));
  if (product.dtype() != a.dtype()) check_statistics_of(product, a, "the product");
}

void check_forward(const Tensor& out_TN, const Tensor& in_TK, const Tensor& weight_NK) {
  check_shape(out_TN, Shape{in_TK.rows(), weight_NK.dim(0)}, "out_TN");
  check_shape(weight_NK, Shape{out_TN.dim(1), in_TK.dim(1)}, "weight_NK");
  check_product(out_TN, in_TK, weight_NK);
}

}  // namespace

void linear_forward(Tensor out_TN, Tensor in_TK, Tensor weight_NK, Write write, Context& ctx) {
  check_forward(out_TN, in_TK, weight_NK);
  SY_ON_CUDA(ctx, cuda::linear_forward(out_TN, in_TK, weight_NK, write, ctx));
  with_scalar(out_TN.dtype(), [&]<class T>() {
    cpu::linear_forward<T>(out_TN, in_TK, weight_NK, write == Write::add, ctx.matmul);
  });
}

void linear_forward_add(Tensor out_TN, Tensor addend_TN, Tensor in_TK, Tensor weight_NK, Context& ctx) {
  check_forward(out_TN, in_TK, weight_NK);
  check_like(addend_TN, out_TN, "addend_TN");
  SY_ON_CUDA(ctx, cuda::linear_forward_add(out_TN, addend_TN, in_TK, weight_NK, ctx));
  if (addend_TN.raw() != out_TN.raw()) copy(out_TN, addend_TN, ctx);
  linear_forward(out_TN, in_TK, weight_NK, Write::add, ctx);
}

void linear_backward_input(Tensor din_TK, Tensor dout_TN, Tensor weight_NK, Write write, Context& ctx) {
  check_shape(din_TK, Shape{dout_TN.rows(), weight_NK.dim(1)}, "din_TK");
  check_shape(weight_NK, Shape{dout_TN.dim(1), din_TK.dim(1)}, "weight_NK");
  check_product(din_TK, dout_TN, weight_NK);
  SY_ON_CUDA(ctx, cuda::linear_backward_input(din_TK, dout_TN, weight_NK, write, ctx));
  with_scalar(din_TK.dtype(), [&]<class T>() {
    cpu::linear_backward_input<T>(din_TK, dout_TN, weight_NK, write == Write::add, ctx.matmul);
  });
}

void linear_backward_weight(Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, Context& ctx) {
  check_shape(dweight_NK, Shape{dout_TN.dim(1), in_TK.dim(1)}, "dweight_NK");
  check_shape(in_TK, Shape{dout_TN.rows(), dweight_NK.dim(1)}, "in_TK");
  check_product(dweight_NK, dout_TN, in_TK);
  check_statistics_of(dweight_NK, in_TK, "dweight_NK");
  SY_ON_CUDA(ctx, cuda::linear_backward_weight(dweight_NK, dout_TN, in_TK, ctx));
  with_scalar(dweight_NK.dtype(),
              [&]<class T>() { cpu::linear_backward_weight<T>(dweight_NK, dout_TN, in_TK, ctx.matmul); });
}

namespace {

// `rows_N` has the weight's N columns, `rows_K` its K columns.
void check_grouped(const Tensor& rows_N, const Tensor& rows_K, const Tensor& weight_ENK,
                   const Tensor& offset_Ep) {
  SY_CHECK(weight_ENK.shape().rank() == 3 && weight_ENK.contiguous(), "weight_ENK is {}",
           weight_ENK.shape().to_string());
  check_shape(rows_N, Shape{rows_K.rows(), weight_ENK.dim(1)}, "rows of N");
  check_shape(rows_K, Shape{rows_N.rows(), weight_ENK.dim(2)}, "rows of K");
  check_shape(offset_Ep, Shape{weight_ENK.dim(0) + 1}, "offset_Ep");
  check_dtype(offset_Ep, DType::i32, "offset_Ep");
}

void check_row_weights(const Tensor& weight_R, const Tensor& rows) {
  check_shape(weight_R, Shape{rows.rows()}, "weight_R");
  check_statistics_of(weight_R, rows, "weight_R");
}

}  // namespace

void grouped_linear_forward(Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep, Context& ctx) {
  check_grouped(out_RN, in_RK, weight_ENK, offset_Ep);
  check_product(out_RN, in_RK, weight_ENK);
  SY_ON_CUDA(ctx, cuda::grouped_linear_forward(out_RN, in_RK, weight_ENK, offset_Ep, ctx));
  with_scalar(out_RN.dtype(),
              [&]<class T>() { cpu::grouped_linear_forward<T>(out_RN, in_RK, weight_ENK, offset_Ep, ctx); });
}

void grouped_gate_up_forward(Tensor act_RF, Tensor gate_up_R2F, Tensor in_RK, Tensor weight_E2FK,
                             Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  check_grouped(gate_up_R2F, in_RK, weight_E2FK, offset_Ep);
  check_shape(act_RF, Shape{gate_up_R2F.rows(), act_RF.dim(1)}, "act_RF");
  check_shape(gate_up_R2F, Shape{act_RF.rows(), 2 * act_RF.dim(1)}, "gate_up_R2F");
  check_dtype(act_RF, gate_up_R2F.dtype(), "act_RF");
  check_row_weights(weight_R, act_RF);
  SY_ON_CUDA(ctx,
             cuda::grouped_gate_up_forward(act_RF, gate_up_R2F, in_RK, weight_E2FK, weight_R, offset_Ep, ctx));
  grouped_linear_forward(gate_up_R2F, in_RK, weight_E2FK, offset_Ep, ctx);
  expert_swiglu_forward(act_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
}

void grouped_linear_backward_input(Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
                                   Context& ctx) {
  check_grouped(dout_RN, din_RK, weight_ENK, offset_Ep);
  check_product(din_RK, dout_RN, weight_ENK);
  SY_ON_CUDA(ctx, cuda::grouped_linear_backward_input(din_RK, dout_RN, weight_ENK, offset_Ep, ctx));
  with_scalar(din_RK.dtype(), [&]<class T>() {
    cpu::grouped_linear_backward_input<T>(din_RK, dout_RN, weight_ENK, offset_Ep, ctx);
  });
}

void grouped_down_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RN, Tensor weight_ENF,
                           Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const std::int64_t n_rows = dout_RN.rows(), width = weight_ENF.dim(2);
  check_shape(gate_up_R2F, Shape{n_rows, 2 * width}, "gate_up_R2F");
  check_grouped(dout_RN, gate_up_R2F.columns(0, width), weight_ENF, offset_Ep);
  check_like(dgate_up_R2F, gate_up_R2F, "dgate_up_R2F");
  check_row_weights(weight_R, dout_RN);
  check_like(dweight_R, weight_R, "dweight_R");
  SY_ON_CUDA(ctx, cuda::grouped_down_backward(dgate_up_R2F, dweight_R, dout_RN, weight_ENF, gate_up_R2F,
                                              weight_R, offset_Ep, ctx));
  ScratchScope scope(ctx.scratch);
  const Tensor dact_RF = ctx.scratch.take(Shape{n_rows, width}, dout_RN.dtype());
  grouped_linear_backward_input(dact_RF, dout_RN, weight_ENF, offset_Ep, ctx);
  expert_swiglu_backward(dgate_up_R2F, dweight_R, dact_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
}

void grouped_linear_backward_weight(Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
                                    Context& ctx) {
  check_grouped(dout_RN, in_RK, dweight_ENK, offset_Ep);
  check_product(dweight_ENK, dout_RN, in_RK);
  check_statistics_of(dweight_ENK, in_RK, "dweight_ENK");
  SY_ON_CUDA(ctx, cuda::grouped_linear_backward_weight(dweight_ENK, dout_RN, in_RK, offset_Ep, ctx));
  with_scalar(dweight_ENK.dtype(), [&]<class T>() {
    cpu::grouped_linear_backward_weight<T>(dweight_ENK, dout_RN, in_RK, offset_Ep, ctx);
  });
}

}  // namespace switchyard::ops
