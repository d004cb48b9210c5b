#include "ops/balance_loss.h"

#include "cpu/balance_loss.h"
#include "cuda/balance_loss.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_counts(const Tensor& count_LE, const Tensor& count_LBE) {
  check_shape(count_LE, Shape{count_LBE.dim(0), count_LBE.dim(2)}, "count_LE");
  check_dtype(count_LE, DType::f64, "count_LE");
  check_contiguous(count_LE, "count_LE");
}

}  // namespace

void add_counts(Tensor count_LE, Tensor count_LBE, Context& ctx) {
  check_dtype(count_LBE, DType::i32, "count_LBE");
  check_contiguous(count_LBE, "count_LBE");
  check_counts(count_LE, count_LBE);
  SY_ON_CUDA(ctx, cuda::add_counts(count_LE, count_LBE, ctx));
  cpu::add_counts(count_LE, count_LBE);
}

void balance_loss(Tensor dprob_LBE, Tensor value_2, Tensor count_LBE, Tensor prob_sum_LBE, Tensor lse2_sum_LB,
                  Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss, Context& ctx) {
  const std::int64_t L = count_LBE.dim(0), B = count_LBE.dim(1);
  check_dtype(count_LBE, DType::i32, "count_LBE");
  check_shape(dprob_LBE, count_LBE.shape(), "dprob_LBE");
  check_shape(prob_sum_LBE, count_LBE.shape(), "prob_sum_LBE");
  check_shape(lse2_sum_LB, Shape{L, B}, "lse2_sum_LB");
  check_shape(tokens_B, Shape{B}, "tokens_B");
  check_dtype(tokens_B, DType::i32, "tokens_B");
  check_shape(value_2, Shape{2}, "value_2");
  for (const Tensor* each : {&dprob_LBE, &prob_sum_LBE, &lse2_sum_LB, &value_2}) {
    check_dtype(*each, DType::f64, "a sum");
    check_contiguous(*each, "a sum");
  }
  check_contiguous(count_LBE, "count_LBE");
  if (loss.scope == BalanceScope::global_batch && loss.balance_coef != 0) check_counts(count_LE, count_LBE);
  SY_ON_CUDA(ctx, cuda::balance_loss(dprob_LBE, value_2, count_LBE, prob_sum_LBE, lse2_sum_LB, tokens_B,
                                     count_LE, loss, ctx));
  cpu::balance_loss(dprob_LBE, value_2, count_LBE, prob_sum_LBE, lse2_sum_LB, tokens_B, count_LE, loss);
}

}  // namespace switchyard::ops
