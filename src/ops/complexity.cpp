#include "ops/complexity.h"

#include <algorithm>

#include "cpu/complexity.h"
#include "cuda/complexity.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void complexity_calibrated(Tensor c_T, Tensor raw_T, Tensor mean_1, Tensor variance_1, Context& ctx) {
  check_like(c_T, raw_T, "c_T");
  for (const Tensor* each : {&mean_1, &variance_1}) {
    check_shape(*each, Shape{1}, "mean_1 or variance_1");
    check_dtype(*each, raw_T.dtype(), "mean_1 or variance_1");
  }
  SY_ON_CUDA(ctx, cuda::complexity_calibrated(c_T, raw_T, mean_1, variance_1, ctx));
  with_scalar(raw_T.dtype(), [&]<class T>() {
    cpu::complexity_calibrated<T>(c_T, raw_T, static_cast<double>(*mean_1.as<T>()),
                                  static_cast<double>(*variance_1.as<T>()));
  });
}

void complexity_above(Tensor c_T, Tensor raw_T, double threshold, Context& ctx) {
  check_like(c_T, raw_T, "c_T");
  SY_ON_CUDA(ctx, cuda::complexity_above(c_T, raw_T, threshold, ctx));
  with_scalar(raw_T.dtype(), [&]<class T>() { cpu::complexity_above<T>(c_T, raw_T, threshold); });
}

void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most, Context& ctx) {
  check_shape(count_T, c_T.shape(), "count_T");
  check_dtype(count_T, DType::i32, "count_T");
  SY_CHECK(0 <= least && least <= most, "{} to {} experts", least, most);
  SY_ON_CUDA(ctx, cuda::slot_count(count_T, c_T, least, most, ctx));
  with_scalar(c_T.dtype(), [&]<class T>() { cpu::slot_count<T>(count_T, c_T, least, most); });
}

void token_moments(Tensor moments_3, Tensor raw_T, Tensor skip_T, Context& ctx) {
  check_f64(moments_3, Shape{3}, "moments_3");
  check_shape(raw_T, skip_T.shape(), "raw_T");
  check_dtype(skip_T, DType::i32, "skip_T");
  SY_ON_CUDA(ctx, cuda::token_moments(moments_3, raw_T, skip_T, ctx));
  with_scalar(raw_T.dtype(), [&]<class T>() {
    const auto moments = cpu::token_moments<T>(raw_T, skip_T);
    std::copy(moments.begin(), moments.end(), moments_3.as<double>());
  });
}

}  // namespace switchyard::ops
