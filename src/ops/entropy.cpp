#include "ops/entropy.h"

#include "cpu/entropy.h"
#include "cuda/entropy.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_softmax(const Tensor& entropy_T, const Tensor& logit_TE, const Tensor& prob_TE,
                   const Tensor& lse_T) {
  check_like(prob_TE, logit_TE, "prob_TE");
  check_shape(lse_T, Shape{logit_TE.rows()}, "lse_T");
  check_dtype(lse_T, logit_TE.dtype(), "lse_T");
  check_like(entropy_T, lse_T, "entropy_T");
}

}  // namespace

void softmax_entropy_forward(Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T, Context& ctx) {
  check_softmax(entropy_T, logit_TE, prob_TE, lse_T);
  SY_ON_CUDA(ctx, cuda::softmax_entropy_forward(entropy_T, logit_TE, prob_TE, lse_T, ctx));
  with_scalar(logit_TE.dtype(),
              [&]<class T>() { cpu::softmax_entropy_forward<T>(entropy_T, logit_TE, prob_TE, lse_T); });
}

void softmax_entropy_backward(Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T,
                              Tensor skip_T, double dentropy, Context& ctx) {
  check_softmax(entropy_T, logit_TE, prob_TE, lse_T);
  check_like(dlogit_TE, logit_TE, "dlogit_TE");
  check_shape(skip_T, lse_T.shape(), "skip_T");
  check_dtype(skip_T, DType::i32, "skip_T");
  SY_ON_CUDA(ctx, cuda::softmax_entropy_backward(dlogit_TE, entropy_T, logit_TE, prob_TE, lse_T, skip_T,
                                                 dentropy, ctx));
  with_scalar(logit_TE.dtype(), [&]<class T>() {
    cpu::softmax_entropy_backward<T>(dlogit_TE, entropy_T, logit_TE, prob_TE, lse_T, skip_T, dentropy);
  });
}

void sum_of_tokens(Tensor sum_1, Tensor x_T, Tensor skip_T, Context& ctx) {
  check_f64(sum_1, Shape{1}, "sum_1");
  check_shape(x_T, skip_T.shape(), "x_T");
  check_dtype(skip_T, DType::i32, "skip_T");
  SY_ON_CUDA(ctx, cuda::sum_of_tokens(sum_1, x_T, skip_T, ctx));
  with_scalar(x_T.dtype(), [&]<class T>() { *sum_1.as<double>() = cpu::sum_of_tokens<T>(x_T, skip_T); });
}

}  // namespace switchyard::ops
