#include "cpu/noise.h"

#include "cpu/reduce.h"

// Legend: T rows of N elements.

namespace switchyard::cpu {

template <class T>
void add_normal(Tensor x_TN, const Rng& rng, std::int64_t first_row, double sigma) {
  const Rows<T> x(x_TN);
  const std::int64_t N = x_TN.dim(1);
#pragma omp parallel for schedule(static) if (x_TN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < x_TN.rows(); ++t)
    for (std::int64_t n = 0; n < N; ++n)
      x[t][n] += static_cast<T>(sigma * rng.normal(static_cast<std::uint64_t>((first_row + t) * N + n)));
}

template void add_normal<float>(Tensor, const Rng&, std::int64_t, double);
template void add_normal<double>(Tensor, const Rng&, std::int64_t, double);

}  // namespace switchyard::cpu
