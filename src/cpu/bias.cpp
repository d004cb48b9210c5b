#include "cpu/bias.h"

#include "ops/cpu/reduce.h"

namespace switchyard::ops::cpu {

template <class T>
void bias_forward(Tensor out_TN, Tensor bias_N) {
  const Rows<T> out_rows(out_TN);
  const T* bias = bias_N.as<T>();
  const std::int64_t N = bias_N.dim(0);
#pragma omp parallel for schedule(static) if (out_TN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < out_TN.rows(); ++t) {
    T* out = out_rows[t];
#pragma omp simd
    for (std::int64_t n = 0; n < N; ++n) out[n] += bias[n];
  }
}

template <class T>
void bias_backward(Tensor dbias_N, Tensor dout_TN, Scratch& scratch) {
  const Rows<T> dout_rows(dout_TN);
  const std::int64_t n_rows = dout_TN.rows(), N = dbias_N.dim(0);
  ScratchScope scope(scratch);
  const RowBlocks blocks(n_rows);
  const Rows<T> partial_rows(scratch.take({blocks.count, N}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (dout_TN.numel() >= kParallelElements)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    T* partial = partial_rows[block];
    std::fill_n(partial, N, T(0));
    const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
    for (std::int64_t t = block * blocks.rows; t < last; ++t) {
#pragma omp simd
      for (std::int64_t n = 0; n < N; ++n) partial[n] += dout_rows[t][n];
    }
  }
  add_block_sums(dbias_N.as<T>(), partial_rows, blocks, 0, N, false);
}

template void bias_forward<float>(Tensor, Tensor);
template void bias_forward<double>(Tensor, Tensor);
template void bias_backward<float>(Tensor, Tensor, Scratch&);
template void bias_backward<double>(Tensor, Tensor, Scratch&);

}  // namespace switchyard::ops::cpu
