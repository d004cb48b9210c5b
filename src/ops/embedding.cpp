#include "ops/embedding.h"

#include "cpu/embedding.h"
#include "cuda/embedding.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_embedding(const Tensor& row_TD, const Tensor& token_T, const Tensor& table_VD) {
  check_shape(table_VD, Shape{table_VD.rows(), table_VD.dim(1)}, "the [V, D] table");
  check_shape(row_TD, Shape{token_T.rows(), table_VD.dim(1)}, "the [T, D] rows");
  check_shape(token_T, Shape{token_T.rows()}, "token_T");
  check_dtype(token_T, DType::i32, "token_T");
}

}  // namespace

void embedding_forward(Tensor out_TD, Tensor token_T, Tensor weight_VD, Context& ctx) {
  check_embedding(out_TD, token_T, weight_VD);
  check_dtype(out_TD, weight_VD.dtype(), "out_TD");
  SY_ON_CUDA(ctx, cuda::embedding_forward(out_TD, token_T, weight_VD, ctx));
  with_scalar(out_TD.dtype(), [&]<class T>() { cpu::embedding_forward<T>(out_TD, token_T, weight_VD); });
}

void embedding_backward(Tensor dweight_VD, Tensor dout_TD, Tensor token_T, Context& ctx) {
  check_embedding(dout_TD, token_T, dweight_VD);
  check_statistics_of(dweight_VD, dout_TD, "dweight_VD");
  SY_ON_CUDA(ctx, cuda::embedding_backward(dweight_VD, dout_TD, token_T, ctx));
  with_scalar(dout_TD.dtype(), [&]<class T>() { cpu::embedding_backward<T>(dweight_VD, dout_TD, token_T); });
}

}  // namespace switchyard::ops
