#include "ops/noise.h"

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void add_normal_on_cpu(Tensor x_TN, const Rng& rng, const NoiseOffset& offset, double sigma) {
  const Rows<T> x(x_TN);
  const std::int64_t N = x_TN.dim(1);
  const auto* at = offset.rng_offset_2.as<std::int32_t>();
  const Rng stream = rng.with_stream(noise_stream(at[0], offset.layer));
  const std::int64_t first_row = first_noise_row(at[1], offset.seq_len);
#pragma omp parallel for schedule(static) if (x_TN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < x_TN.rows(); ++t)
    for (std::int64_t n = 0; n < N; ++n)
      x[t][n] += static_cast<T>(sigma * stream.normal(static_cast<std::uint64_t>((first_row + t) * N + n)));
}

}  // namespace

void add_normal(Tensor x_TN, const Rng& rng, const NoiseOffset& offset, double sigma, Context& ctx) {
  const DType real = x_TN.dtype();
  Signature args(ctx);
  args(SY_ARG(x_TN), real)("rng_offset_2", offset.rng_offset_2, DType::i32);
  run<&cuda::add_normal>(ctx, real, SY_CPU(add_normal_on_cpu), x_TN, rng, offset, sigma);
}

}  // namespace switchyard::ops
