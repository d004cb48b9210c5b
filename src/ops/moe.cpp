#include "ops/moe.h"

#include <limits>

#include "cpu/moe.h"
#include "cuda/moe.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void moe_permutation(Tensor count_E, Tensor offset_Ep, Tensor slot_row_TK, Tensor expert_TK, Context& ctx) {
  check_shape(offset_Ep, Shape{count_E.rows() + 1}, "offset_Ep");
  check_shape(slot_row_TK, expert_TK.shape(), "slot_row_TK");
  check_dtype(count_E, DType::i32, "count_E");
  check_dtype(offset_Ep, DType::i32, "offset_Ep");
  check_dtype(slot_row_TK, DType::i32, "slot_row_TK");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  SY_CHECK(expert_TK.numel() <= std::numeric_limits<std::int32_t>::max(), "{} slots do not fit 32-bit rows",
           expert_TK.numel());
  SY_ON_CUDA(ctx, cuda::moe_permutation(count_E, offset_Ep, slot_row_TK, expert_TK, ctx));
  cpu::moe_permutation(count_E, offset_Ep, slot_row_TK, expert_TK, ctx);
}

namespace {

void check_rows(const Tensor& row_RD, const Tensor& token_TD, const Tensor& slot_row_TK) {
  SY_CHECK(slot_row_TK.shape().rank() == 2 && slot_row_TK.rows() == token_TD.rows(), "slot_row_TK is {}",
           slot_row_TK.shape().to_string());
  check_shape(row_RD, Shape{slot_row_TK.numel(), token_TD.dim(1)}, "row_RD");
  check_dtype(slot_row_TK, DType::i32, "slot_row_TK");
  check_dtype(row_RD, token_TD.dtype(), "row_RD");
}

void check_weights(const Tensor& weight_R, const Tensor& weight_TK, const Tensor& row_RD,
                   const Tensor& slot_row_TK) {
  check_shape(weight_TK, slot_row_TK.shape(), "the weights of slots");
  check_statistics_of(weight_TK, row_RD, "the weights of slots");
  check_shape(weight_R, Shape{row_RD.rows()}, "the weights of rows");
  check_dtype(weight_R, weight_TK.dtype(), "the weights of rows");
}

}  // namespace

void moe_dispatch_forward(Tensor row_RD, Tensor weight_R, Tensor x_TD, Tensor weight_TK, Tensor slot_row_TK,
                          Context& ctx) {
  check_rows(row_RD, x_TD, slot_row_TK);
  check_weights(weight_R, weight_TK, row_RD, slot_row_TK);
  SY_ON_CUDA(ctx, cuda::moe_dispatch_forward(row_RD, weight_R, x_TD, weight_TK, slot_row_TK, ctx));
  with_scalar(x_TD.dtype(),
              [&]<class T>() { cpu::moe_dispatch_forward<T>(row_RD, weight_R, x_TD, weight_TK, slot_row_TK); });
}

void moe_dispatch_backward(Tensor dx_TD, Tensor dweight_TK, Tensor drow_RD, Tensor dweight_R,
                           Tensor slot_row_TK, Context& ctx) {
  check_rows(drow_RD, dx_TD, slot_row_TK);
  check_weights(dweight_R, dweight_TK, drow_RD, slot_row_TK);
  SY_ON_CUDA(ctx, cuda::moe_dispatch_backward(dx_TD, dweight_TK, drow_RD, dweight_R, slot_row_TK, ctx));
  with_scalar(dx_TD.dtype(), [&]<class T>() {
    cpu::moe_dispatch_backward<T>(dx_TD, dweight_TK, drow_RD, dweight_R, slot_row_TK);
  });
}

void moe_combine_forward(Tensor out_TD, Tensor addend_TD, Tensor row_RD, Tensor slot_row_TK, Context& ctx) {
  check_rows(row_RD, out_TD, slot_row_TK);
  check_like(addend_TD, out_TD, "addend_TD");
  SY_ON_CUDA(ctx, cuda::moe_combine_forward(out_TD, addend_TD, row_RD, slot_row_TK, ctx));
  with_scalar(out_TD.dtype(),
              [&]<class T>() { cpu::moe_combine_forward<T>(out_TD, addend_TD, row_RD, slot_row_TK); });
}

void moe_combine_backward(Tensor drow_RD, Tensor dout_TD, Tensor slot_row_TK, Context& ctx) {
  check_rows(drow_RD, dout_TD, slot_row_TK);
  SY_ON_CUDA(ctx, cuda::moe_combine_backward(drow_RD, dout_TD, slot_row_TK, ctx));
  with_scalar(dout_TD.dtype(), [&]<class T>() { cpu::moe_combine_backward<T>(drow_RD, dout_TD, slot_row_TK); });
}

}  // namespace switchyard::ops
