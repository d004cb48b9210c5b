#include "ops/histogram.h"

#include "cpu/histogram.h"
#include "cuda/histogram.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_histogram(const Tensor& count_EN, const Tensor& score_TE, const Tensor& skip_T) {
  check_shape(count_EN, Shape{score_TE.dim(1), 2 * kGapBins}, "count_EN");
  check_contiguous(count_EN, "count_EN");
  check_dtype(count_EN, DType::f64, "count_EN");
  check_shape(skip_T, Shape{score_TE.rows()}, "skip_T");
  check_dtype(skip_T, DType::i32, "skip_T");
}

}  // namespace

void score_gap_histogram(Tensor count_EN, Tensor score_TE, Tensor value_E, Tensor skip_T, Context& ctx) {
  check_histogram(count_EN, score_TE, skip_T);
  check_shape(value_E, Shape{score_TE.dim(1)}, "value_E");
  check_dtype(value_E, score_TE.dtype(), "value_E");
  SY_ON_CUDA(ctx, cuda::score_gap_histogram(count_EN, score_TE, value_E, skip_T, ctx));
  with_scalar(score_TE.dtype(),
              [&]<class T>() { cpu::score_gap_histogram<T>(count_EN, score_TE, value_E, skip_T, ctx); });
}

void cutoff_gap_histogram(Tensor count_EN, Tensor choice_TE, Tensor cutoff_T, Tensor skip_T, Context& ctx) {
  check_histogram(count_EN, choice_TE, skip_T);
  check_shape(cutoff_T, skip_T.shape(), "cutoff_T");
  check_dtype(cutoff_T, choice_TE.dtype(), "cutoff_T");
  SY_ON_CUDA(ctx, cuda::cutoff_gap_histogram(count_EN, choice_TE, cutoff_T, skip_T, ctx));
  with_scalar(choice_TE.dtype(),
              [&]<class T>() { cpu::cutoff_gap_histogram<T>(count_EN, choice_TE, cutoff_T, skip_T, ctx); });
}

}  // namespace switchyard::ops
