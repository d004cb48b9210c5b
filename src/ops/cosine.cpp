#include "ops/cosine.h"

#include "cpu/cosine.h"
#include "cuda/cosine.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_norms(const Tensor& norm_R, const Tensor& x_RD) {
  check_shape(norm_R, Shape{x_RD.rows()}, "norm_R");
  check_dtype(norm_R, x_RD.dtype(), "norm_R");
}

void check_cosine(const Tensor& score_TE, const Tensor& x_norm_T, const Tensor& mean_norm_E) {
  check_shape(x_norm_T, Shape{score_TE.rows()}, "x_norm_T");
  check_shape(mean_norm_E, Shape{score_TE.dim(1)}, "mean_norm_E");
  check_dtype(x_norm_T, score_TE.dtype(), "x_norm_T");
  check_dtype(mean_norm_E, score_TE.dtype(), "mean_norm_E");
}

}  // namespace

void row_norm_l1(Tensor norm_R, Tensor x_RD, Context& ctx) {
  check_norms(norm_R, x_RD);
  SY_ON_CUDA(ctx, cuda::row_norm_l1(norm_R, x_RD, ctx));
  with_scalar(x_RD.dtype(), [&]<class T>() { cpu::row_norm_l1<T>(norm_R, x_RD); });
}

void row_norm_l2(Tensor norm_R, Tensor x_RD, Context& ctx) {
  check_norms(norm_R, x_RD);
  SY_ON_CUDA(ctx, cuda::row_norm_l2(norm_R, x_RD, ctx));
  with_scalar(x_RD.dtype(), [&]<class T>() { cpu::row_norm_l2<T>(norm_R, x_RD); });
}

void cosine_forward(Tensor score_TE, Tensor x_norm_T, Tensor mean_norm_E, Context& ctx) {
  check_cosine(score_TE, x_norm_T, mean_norm_E);
  SY_ON_CUDA(ctx, cuda::cosine_forward(score_TE, x_norm_T, mean_norm_E, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() { cpu::cosine_forward<T>(score_TE, x_norm_T, mean_norm_E); });
}

void cosine_backward(Tensor dscore_TE, Tensor dx_TD, Tensor score_TE, Tensor x_TD, Tensor x_norm_T,
                     Tensor mean_norm_E, Context& ctx) {
  check_cosine(score_TE, x_norm_T, mean_norm_E);
  check_like(dscore_TE, score_TE, "dscore_TE");
  check_like(dx_TD, x_TD, "dx_TD");
  check_shape(x_TD, Shape{score_TE.rows(), x_TD.dim(1)}, "x_TD");
  check_dtype(x_TD, score_TE.dtype(), "x_TD");
  SY_ON_CUDA(ctx, cuda::cosine_backward(dscore_TE, dx_TD, score_TE, x_TD, x_norm_T, mean_norm_E, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() {
    cpu::cosine_backward<T>(dscore_TE, dx_TD, score_TE, x_TD, x_norm_T, mean_norm_E);
  });
}

void expert_sums(Tensor sum_ED, Tensor count_E, Tensor x_TD, Tensor expert_TK, Context& ctx) {
  check_shape(sum_ED, Shape{count_E.rows(), x_TD.dim(1)}, "sum_ED");
  check_shape(expert_TK, Shape{x_TD.rows(), expert_TK.dim(1)}, "expert_TK");
  check_dtype(sum_ED, DType::f64, "sum_ED");
  check_dtype(count_E, DType::f64, "count_E");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  SY_ON_CUDA(ctx, cuda::expert_sums(sum_ED, count_E, x_TD, expert_TK, ctx));
  with_scalar(x_TD.dtype(), [&]<class T>() { cpu::expert_sums<T>(sum_ED, count_E, x_TD, expert_TK); });
}

}  // namespace switchyard::ops
