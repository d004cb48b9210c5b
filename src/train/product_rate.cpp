#include "train/product_rate.h"

#include <algorithm>
#include <chrono>

#include "core/device_memory.h"
#include "ops/linear.h"

namespace switchyard::train {

double measure_product_rate(Context& ctx) {
  if (ctx.device != Device::cpu) return 0;
  constexpr std::int64_t kSize = 512;
  constexpr int kTries = 6;  // the first of them makes oneDNN's kernel
  const std::int64_t bytes = kSize * kSize * size_of(DType::f32);
  const AlignedBuffer memory = allocate_aligned(3 * bytes, "a product to measure", Device::cpu);
  const auto square = [&](int index) {
    return Tensor(memory.get() + index * bytes, Shape{kSize, kSize}, DType::f32, Device::cpu);
  };
  std::fill_n(square(0).as<float>(), 2 * kSize * kSize, 1.0f);
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ops::linear_forward(square(2), square(0), square(1), ops::Write::set, ctx);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * kSize * kSize * kSize / std::max(seconds, 1e-9));
  }
  return best;
}

}  // namespace switchyard::train
