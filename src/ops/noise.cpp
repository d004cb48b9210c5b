#include "ops/noise.h"

#include "cpu/noise.h"
#include "cuda/noise.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void add_normal(Tensor x_TN, const Rng& rng, std::int64_t first_row, double sigma, Context& ctx) {
  SY_CHECK(x_TN.shape().rank() == 2 && first_row >= 0, "noise for {} from row {}", x_TN.shape().to_string(),
           first_row);
  SY_ON_CUDA(ctx, cuda::add_normal(x_TN, rng, first_row, sigma, ctx));
  with_scalar(x_TN.dtype(), [&]<class T>() { cpu::add_normal<T>(x_TN, rng, first_row, sigma); });
}

}  // namespace switchyard::ops
