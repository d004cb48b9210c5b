#include "ops/noise.h"

#include "cpu/noise.h"
#include "cuda/noise.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void add_normal(Tensor x_TN, const Rng& rng, const NoisePlace& place, double sigma, Context& ctx) {
  SY_CHECK(x_TN.shape().rank() == 2, "noise for {}", x_TN.shape().to_string());
  check_shape(place.place_2, Shape{2}, "place_2");
  check_dtype(place.place_2, DType::i32, "place_2");
  SY_ON_CUDA(ctx, cuda::add_normal(x_TN, rng, place, sigma, ctx));
  with_scalar(x_TN.dtype(), [&]<class T>() { cpu::add_normal<T>(x_TN, rng, place, sigma); });
}

}  // namespace switchyard::ops
