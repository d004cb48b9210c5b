#include "cpu/rmsnorm.h"

#include <algorithm>

#include "ops/cpu/reduce.h"

namespace switchyard::ops::cpu {

template <class T>
void rmsnorm_forward(Tensor out_TGN, Tensor rstd_TG, Tensor in_TGN, Tensor weight_N, double eps) {
  const Rows<T> out_rows(out_TGN), rstd_rows(rstd_TG), in_rows(in_TGN);
  const T* weight = weight_N.as<T>();
  const std::int64_t groups = rstd_TG.dim(1), width = weight_N.dim(0);
#pragma omp parallel for schedule(static) if (in_TGN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < in_TGN.rows(); ++t) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const T* in = in_rows[t] + g * width;
      T* out = out_rows[t] + g * width;
      const T rstd = reciprocal_rms(in, width, eps);
      rstd_rows[t][g] = rstd;
#pragma omp simd
      for (std::int64_t n = 0; n < width; ++n) out[n] = in[n] * rstd * weight[n];
    }
  }
}

template <class T>
void rmsnorm_backward(Tensor din_TGN, Tensor dweight_N, Tensor dout_TGN, Tensor in_TGN, Tensor rstd_TG,
                      Tensor weight_N, Scratch& scratch) {
  const Rows<T> din_rows(din_TGN), dout_rows(dout_TGN), in_rows(in_TGN), rstd_rows(rstd_TG);
  const T* weight = weight_N.as<T>();
  const std::int64_t n_rows = in_TGN.rows(), groups = rstd_TG.dim(1), width = weight_N.dim(0);
  const bool parallel = in_TGN.numel() >= kParallelElements;

  ScratchScope scope(scratch);
  const RowBlocks blocks(n_rows);
  const Rows<T> partial_rows(scratch.take({blocks.count, width}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    T* partial = partial_rows[block];  // the block's part of dweight
    std::fill_n(partial, width, T(0));
    const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
    for (std::int64_t t = block * blocks.rows; t < last; ++t) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const T* dout = dout_rows[t] + g * width;
        const T* in = in_rows[t] + g * width;
        T* din = din_rows[t] + g * width;
        const T rstd = rstd_rows[t][g];
        const double sum =
            sum_in_lanes(width, [=](std::int64_t n) { return dout[n] * weight[n] * (in[n] * rstd); });
        const T mean = static_cast<T>(sum / static_cast<double>(width));
#pragma omp simd
        for (std::int64_t n = 0; n < width; ++n) {
          const T x = in[n] * rstd;
          din[n] += rstd * (dout[n] * weight[n] - x * mean);
          partial[n] += dout[n] * x;
        }
      }
    }
  }

  add_block_sums(dweight_N.as<T>(), partial_rows, blocks, 0, width, parallel);
}

template void rmsnorm_forward<float>(Tensor, Tensor, Tensor, Tensor, double);
template void rmsnorm_forward<double>(Tensor, Tensor, Tensor, Tensor, double);
template void rmsnorm_backward<float>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Scratch&);
template void rmsnorm_backward<double>(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Scratch&);

}  // namespace switchyard::ops::cpu
