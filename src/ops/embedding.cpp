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
  args.also_moves([&] { return out_TD.nbytes() - weight_VD.nbytes(); });  // a row for each token
  run<&cuda::embedding_forward>(ctx, real, SY_CPU(embedding_forward_on_cpu), out_TD, token_T, weight_VD);
}

void embedding_backward(Tensor dweight_VD, Tensor dout_TD, Tensor token_T, Context& ctx) {
  const DType real = dout_TD.dtype();
  Signature args(ctx);
  args(SY_ARG(token_T), DType::i32)(SY_ARG(dout_TD), real)(SY_ARG(dweight_VD), accumulation_dtype(real));
  // The rows of these tokens alone, read and written.
  args.also_moves([&] { return 2 * dout_TD.numel() * size_of(dweight_VD.dtype()) - dweight_VD.nbytes(); });
  run<&cuda::embedding_backward>(ctx, real, SY_CPU(embedding_backward_on_cpu), dweight_VD, dout_TD, token_T);
}

namespace {

void shift_tokens_on_cpu(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T,
                         Tensor kv_begin_T, std::int64_t seq_len, std::int64_t ahead) {
  const auto* token = token_T.as<std::int32_t>();
  const auto* target = target_T.as<std::int32_t>();
  const auto* kv_begin = kv_begin_T.as<std::int32_t>();
  for (std::int64_t t = 0; t < token_T.rows(); ++t) {
    const bool has_target = has_shifted_target(token, target, kv_begin, t, seq_len, ahead);
    next_T.as<std::int32_t>()[t] = has_target ? token[t + ahead] : -1;
    next_target_T.as<std::int32_t>()[t] = has_target ? target[t + ahead] : -1;
  }
}

}  // namespace

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead, Context& ctx) {
  const DType i32 = DType::i32;
  Signature args(ctx);
  args(SY_ARG(token_T), i32)(SY_ARG(target_T), i32)(SY_ARG(kv_begin_T), i32)(SY_ARG(next_T), i32)(
      SY_ARG(next_target_T), i32);
  SY_CHECK(seq_len >= 1 && args['T'] % seq_len == 0 && ahead >= 1,
           "token_T is {}, for sequences of {} and {} ahead", token_T.shape().to_string(), seq_len, ahead);
  run<&cuda::shift_tokens>(ctx, shift_tokens_on_cpu, next_T, next_target_T, token_T, target_T, kv_begin_T,
                           seq_len, ahead);
}

}  // namespace switchyard::ops
