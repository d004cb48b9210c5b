#include "ops/complexity.h"

#include "cpu/complexity.h"
#include "cuda/complexity.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void complexity_calibrated(Tensor c_T, Tensor raw_T, double mean, double variance, Context& ctx) {
  check_like(c_T, raw_T, "c_T");
  SY_ON_CUDA(ctx, cuda::complexity_calibrated(c_T, raw_T, mean, variance, ctx));
  with_scalar(raw_T.dtype(), [&]<class T>() { cpu::complexity_calibrated<T>(c_T, raw_T, mean, variance); });
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

std::array<double, 3> token_moments(Tensor raw_T, Tensor skip_T, Context&) {
  check_shape(raw_T, skip_T.shape(), "raw_T");
  check_dtype(skip_T, DType::i32, "skip_T");
  std::array<double, 3> moments{};
  with_scalar(raw_T.dtype(), [&]<class T>() { moments = cpu::token_moments<T>(raw_T, skip_T); });
  return moments;
}

}  // namespace switchyard::ops
