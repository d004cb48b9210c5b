#include "ops/embedding.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

template <class T>
void embedding_forward_on_cpu(Tensor out_TD, Tensor token_T, Tensor weight_VD) {
  const Rows<T> out(out_TD), weight(weight_VD);
  const Rows<std::int32_t> token(token_T);
  const auto row_bytes = static_cast<std::size_t>(out_TD.row_size()) * sizeof(T);
#pragma omp parallel for schedule(static) if (out_TD.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < out_TD.rows(); ++t) {
    const std::int32_t v = *token[t];
    if (v >= 0) {
      std::memcpy(out[t], weight[v], row_bytes);
    } else {
      std::memset(out[t], 0, row_bytes);
    }
  }
}

template <class T>
void embedding_backward_on_cpu(Tensor dweight_VD, Tensor dout_TD, Tensor token_T) {
  const Rows<T> dweight(dweight_VD), dout(dout_TD);
  const Rows<std::int32_t> token(token_T);
  // Each thread owns a range of columns and walks all tokens: two tokens of one kind never meet, and every
  // element's sum runs over t in ascending order. Ranges are whole cache lines, so that no line has two
  // writers.
  constexpr std::int64_t kLine = kAlignment / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t n_tokens = dout_TD.rows(), width = dout_TD.row_size(), threads = omp_get_max_threads();
  const std::int64_t lines = (width + kLine - 1) / kLine, range = (lines + threads - 1) / threads * kLine;
#pragma omp parallel for schedule(static) if (dout_TD.numel() >= kParallelElements)
  for (std::int64_t first = 0; first < width; first += range) {
    const std::int64_t last = std::min(first + range, width);
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      const std::int32_t v = *token[t];
      if (v < 0) continue;
      T* sum = dweight[v];
      const T* term = dout[t];
#pragma omp simd
      for (std::int64_t d = first; d < last; ++d) sum[d] += term[d];
    }
  }
}

}  // namespace

void embedding_forward(Tensor out_TD, Tensor token_T, Tensor weight_VD, Context& ctx) {
  const DType real = weight_VD.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(weight_VD), real)(SY_ARG(out_TD), real);
  run<&cuda::embedding_forward>(ctx, real, SY_CPU(embedding_forward_on_cpu), out_TD, token_T, weight_VD);
}

void embedding_backward(Tensor dweight_VD, Tensor dout_TD, Tensor token_T, Context& ctx) {
  const DType real = dout_TD.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(dout_TD), real)(SY_ARG(dweight_VD), accumulation_dtype(real));
  run<&cuda::embedding_backward>(ctx, real, SY_CPU(embedding_backward_on_cpu), dweight_VD, dout_TD, token_T);
}

}  // namespace switchyard::ops
