// The same Philox blocks as on the CPU, a thread an element, and the same formula in double: what the device's
// logarithm and cosine differ by, a unit or two in the last place, hardly ever survives the rounding to
// float32. In float32 the logarithm of a u close to one would be wrong in its third digit. x_TN is f32: noise
// is the router's.
#include "ops/noise.h"

#include <numbers>

#include "for_each_pack.h"

namespace switchyard::ops::cuda {

namespace {

struct AddNormal {
  Rows<float> x_TN;
  Rng rng;
  const std::int32_t* rng_offset_2;
  std::int64_t layer, seq_len, width;
  double sigma;

  __device__ void operator()(std::int64_t t, std::int64_t n) const {
    const std::int64_t row = first_noise_row(rng_offset_2[1], seq_len) + t;
    const auto words = rng.with_stream(noise_stream(rng_offset_2[0], layer))
                           .block(static_cast<std::uint64_t>(row * width + n));
    const double u = (static_cast<double>(words[0]) + 0.5) * 0x1.0p-32;
    const double v = (static_cast<double>(words[1]) + 0.5) * 0x1.0p-32;
    const double normal = sqrt(-2.0 * log(u)) * cos(2.0 * std::numbers::pi * v);
    x_TN[t][n] += static_cast<float>(sigma * normal);
  }
};

}  // namespace

void add_normal(Tensor x_TN, const Rng& rng, const NoiseOffset& offset, double sigma, Context& ctx) {
  for_each_pack<1>("add_normal", x_TN.rows(), x_TN.dim(1), ctx,
                   AddNormal{rows_of<float>(x_TN), rng, offset.rng_offset_2.as<std::int32_t>(), offset.layer,
                             offset.seq_len, x_TN.dim(1), sigma});
}

}  // namespace switchyard::ops::cuda
