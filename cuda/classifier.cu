// As on the CPU a chunk of rows is taken through logits, softmax and both products before the next one. One
// block takes the softmax of a row: it reads the logits once for maximum and sum together and once more for the
// gradient. Chunks are larger, so that the products and not the weight's traffic take the time. x, weight and
// dx f32, or all bf16; loss_T and dweight_VD f32 always. Logits and softmaxes are f32; their gradient dz is
// rounded to the type of x.
#include "ops/classifier.h"

#include <algorithm>
#include <cfloat>

#include "device.h"
#include "elements.h"
#include "launch.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "reduce.h"

// Legend: T tokens, D width, V vocabulary, C rows of a chunk.

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 8;  // logits that a thread reads at once; rows are padded to a multiple of them

// The row's maximum and the sum of exp(z - max) of what was added so far.
struct SoftmaxSum {
  float max = -FLT_MAX, sum = 0;  // finite, so that a start has a distance to any logit

  __device__ __forceinline__ void add(const float* z, int count) {
    float new_max = max;
    for (int i = 0; i < count; ++i) new_max = fmaxf(new_max, z[i]);
    sum *= expf(max - new_max);
    for (int i = 0; i < count; ++i) sum += expf(z[i] - new_max);
    max = new_max;
  }
  // That of the whole block.
  __device__ __forceinline__ SoftmaxSum over_block() const {
    SoftmaxSum all;
    all.max = reduce_block<Max, kThreads>(max);
    all.sum = reduce_block<Sum, kThreads>(sum * expf(max - all.max));
    return all;
  }
};

// loss_C[c] = logsumexp(z_CV[c]) - z_CV[c, target]. kGradient: dz_CV = dloss (softmax(z) - onehot(target)),
// which may lie where z does. A target < 0 gives zeros, whatever the logits are.
template <class T, bool kGradient>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(float* loss_C, Rows<T> dz_CV, Rows<const float> z_CV, const int* target_C,
                         int vocab_size, float dloss) {
  const int c = static_cast<int>(blockIdx.x), first = static_cast<int>(threadIdx.x) * kAtOnce;
  constexpr int kStep = kThreads * kAtOnce;
  const float* const z_V = z_CV[c];
  T* const dz_V = dz_CV[c];
  const int target = target_C[c];
  if (target < 0) {  // the whole block
    if (threadIdx.x == 0) loss_C[c] = 0;
    if constexpr (kGradient) {
      for (int v = first; v < vocab_size; v += kStep) store<kAtOnce>(dz_V + v, Elements<T, kAtOnce>{});
    }
    return;
  }
  const float target_logit = z_V[target];
  SoftmaxSum softmax;
  for (int v = first; v < vocab_size; v += kStep) {
    const auto z = load<kAtOnce>(z_V + v);
    if (v + kAtOnce <= vocab_size) {
      softmax.add(z.element, kAtOnce);
    } else {
      softmax.add(z.element, vocab_size - v);
    }
  }
  softmax = softmax.over_block();  // all have read the target's logit
  if (threadIdx.x == 0) loss_C[c] = logf(softmax.sum) + (softmax.max - target_logit);
  if constexpr (kGradient) {
    const float scale = dloss / softmax.sum;
    for (int v = first; v < vocab_size; v += kStep) {
      const auto z = load<kAtOnce>(z_V + v);
      Elements<T, kAtOnce> dz;
      for (int i = 0; i < kAtOnce; ++i) {
        const float probability = scale * expf(z.element[i] - softmax.max);
        dz.element[i] = from_float<T>(v + i == target ? probability - dloss : probability);
      }
      store<kAtOnce>(dz_V + v, dz);  // the padding too
    }
  }
}

// A [rows, V] matrix whose rows start at multiples of kAtOnce. What lies between them is zero: it is read.
Tensor take_padded(std::int64_t rows, std::int64_t V, DType dtype, Context& ctx) {
  const std::int64_t width = ceil_div(V, kAtOnce) * kAtOnce;
  const Tensor padded = ctx.scratch.take({rows, width}, dtype);
  if (width > V) cuda::fill_zero(padded.columns(V, width - V), ctx);
  return padded.columns(0, V);
}

// Calls use(first row, rows, dz of those rows) for each chunk; without a gradient there is no dz.
template <class T, bool kGradient, class Use>
void for_each_chunk(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, float dloss,
                    std::int64_t chunk_rows, Context& ctx, Use&& use) {
  const std::int64_t n_tokens = x_TD.rows(), V = weight_VD.rows();
  ScratchScope scope(ctx.scratch);
  const Tensor z_CV = take_padded(chunk_rows, V, DType::f32, ctx);
  Tensor dz_CV = z_CV;  // of the same type it takes the logits' place
  if constexpr (kGradient && !std::is_same_v<T, float>)
    dz_CV = take_padded(chunk_rows, V, DTypeOf<T>::value, ctx);
  for (std::int64_t first = 0; first < n_tokens; first += chunk_rows) {
    const std::int64_t rows = std::min(chunk_rows, n_tokens - first);
    const Tensor z = z_CV.slice(0, rows), dz = dz_CV.slice(0, rows);
    cuda::linear_forward(z, x_TD.slice(first, rows), weight_VD, Write::set, ctx);
    launch("classifier", cross_entropy_kernel<T, kGradient>, {blocks(rows), kThreads}, ctx,
           loss_T.as<float>() + first, kGradient ? rows_of<T>(dz) : Rows<T>{nullptr, 0},
           rows_of<const float>(z), target_T.as<std::int32_t>() + first, V, dloss);
    use(first, rows, dz);
  }
}

}  // namespace

std::int64_t classifier_chunk_rows(std::int64_t n_tokens, std::int64_t vocab_size, std::int64_t memory_bytes) {
  // Each chunk reads the weight twice and reads and writes its gradient in float32. With 1024 rows the products
  // take longer than that, with 4096 four times as long: so many where their logits take a thirty-second of the
  // device's memory at most. All of it, not what is free: the same card chunks alike in every run, and so sums
  // alike. Small vocabularies: about 64 million logits.
  constexpr std::int64_t kFewest = 1024, kMost = 4096, kLogits = std::int64_t{1} << 26;
  const std::int64_t room = memory_bytes / 32 / (static_cast<std::int64_t>(sizeof(float)) * vocab_size);
  std::int64_t rows = kMost;
  while (rows > kFewest && rows > room) rows /= 2;
  return std::min(n_tokens, std::max(rows, kLogits / vocab_size));
}

void classifier_forward_in_chunks(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T,
                                  std::int64_t chunk_rows, Context& ctx) {
  with_element(x_TD.dtype(), [&]<class T>() {
    for_each_chunk<T, false>(loss_T, x_TD, weight_VD, target_T, 0, chunk_rows, ctx,
                             [](std::int64_t, std::int64_t, const Tensor&) {});
  });
}

void classifier_forward_backward_in_chunks(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD,
                                           Tensor weight_VD, Tensor target_T, double dloss,
                                           std::int64_t chunk_rows, Context& ctx) {
  with_element(x_TD.dtype(), [&]<class T>() {
    for_each_chunk<T, true>(loss_T, x_TD, weight_VD, target_T, static_cast<float>(dloss), chunk_rows, ctx,
                            [&](std::int64_t first, std::int64_t rows, const Tensor& dz_CV) {
                              cuda::linear_backward_input(dx_TD.slice(first, rows), dz_CV, weight_VD,
                                                          Write::set, ctx);
                              cuda::linear_backward_weight(dweight_VD, dz_CV, x_TD.slice(first, rows), ctx);
                            });
  });
}

void classifier_forward(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx) {
  classifier_forward_in_chunks(loss_T, x_TD, weight_VD, target_T,
                               classifier_chunk_rows(x_TD.rows(), weight_VD.rows(), total_memory()), ctx);
}

void classifier_forward_backward(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD, Tensor weight_VD,
                                 Tensor target_T, double dloss, Context& ctx) {
  classifier_forward_backward_in_chunks(loss_T, dx_TD, dweight_VD, x_TD, weight_VD, target_T, dloss,
                                        classifier_chunk_rows(x_TD.rows(), weight_VD.rows(), total_memory()),
                                        ctx);
}

}  // namespace switchyard::ops::cuda
