#include "ops/histogram.h"

#include "cpu/histogram.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_histogram(const Tensor& count_EN, const Tensor& score_TE, const Tensor& skip_T, double low,
                     double high) {
  check_shape(count_EN, Shape{score_TE.dim(1), count_EN.dim(1)}, "count_EN");
  check_contiguous(count_EN, "count_EN");
  check_dtype(count_EN, DType::f64, "count_EN");
  check_shape(skip_T, Shape{score_TE.rows()}, "skip_T");
  check_dtype(skip_T, DType::i32, "skip_T");
  SY_CHECK(low < high, "bins from {} to {}", low, high);
}

}  // namespace

void score_histogram(Tensor count_EN, Tensor score_TE, Tensor skip_T, double low, double high, Context& ctx) {
  check_histogram(count_EN, score_TE, skip_T, low, high);
  with_scalar(score_TE.dtype(),
              [&]<class T>() { cpu::score_histogram<T>(count_EN, score_TE, skip_T, low, high, ctx); });
}

void margin_histogram(Tensor count_EN, Tensor score_TE, Tensor cutoff_T, Tensor skip_T, double low, double high,
                      Context& ctx) {
  check_histogram(count_EN, score_TE, skip_T, low, high);
  check_shape(cutoff_T, skip_T.shape(), "cutoff_T");
  check_dtype(cutoff_T, score_TE.dtype(), "cutoff_T");
  with_scalar(score_TE.dtype(), [&]<class T>() {
    cpu::margin_histogram<T>(count_EN, score_TE, cutoff_T, skip_T, low, high, ctx);
  });
}

}  // namespace switchyard::ops
