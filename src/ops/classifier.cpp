#include "ops/classifier.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/gemm.h"
#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// The sum of term(v), v < V: in T over each block, the blocks in double. One float32 sum over a large
// vocabulary would be off by 1e-5 of itself.
template <class T, class F>
double sum_in_blocks(std::int64_t V, F&& term) {
  constexpr std::int64_t kBlock = 1024;
  double sum = 0;
  for (std::int64_t first = 0; first < V; first += kBlock) {
    const T block_sum =
        sum_in_lanes<T>(std::min(kBlock, V - first), [&](std::int64_t v) { return term(first + v); });
    sum += static_cast<double>(block_sum);
  }
  return sum;
}

// -log softmax(z)[target]. If `gradient`, z becomes dloss * (softmax(z) - onehot(target)).
template <class T>
T cross_entropy_row(T* z, std::int64_t V, std::int32_t target, bool gradient, T dloss) {
  if (target < 0) {
    if (gradient) std::fill_n(z, V, T(0));
    return T(0);
  }
  T max = z[0];
#pragma omp simd reduction(max : max)
  for (std::int64_t v = 0; v < V; ++v) max = z[v] > max ? z[v] : max;  // std::max is not vectorised
  const T target_logit = z[target];
  double sum = 0;
  if (!gradient) {
    sum = sum_in_blocks<T>(V, [&](std::int64_t v) { return exp_of(z[v] - max); });
  } else {
    sum = sum_in_blocks<T>(V, [&](std::int64_t v) { return z[v] = exp_of(z[v] - max); });
    const T scale = static_cast<T>(static_cast<double>(dloss) / sum);
#pragma omp simd
    for (std::int64_t v = 0; v < V; ++v) z[v] *= scale;
    z[target] -= dloss;
  }
  return static_cast<T>(std::log(sum) + (static_cast<double>(max) - static_cast<double>(target_logit)));
}

// Calls `use(first row, rows, logits of those rows)` for each chunk, after `loss_T` of the chunk is set.
template <class T, class Use>
void for_each_chunk(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, bool gradient, T dloss,
                    std::int64_t chunk_rows, Context& ctx, Use&& use) {
  const std::int64_t n_tokens = x_TD.rows(), D = x_TD.dim(1), V = weight_VD.rows();
  ScratchScope scope(ctx.scratch);
  const Tensor z_CV = ctx.scratch.take(Shape{chunk_rows, V}, x_TD.dtype());
  if (ctx.measures()) return;
  const std::int32_t* target = target_T.as<std::int32_t>();
  for (std::int64_t first = 0; first < n_tokens; first += chunk_rows) {
    const std::int64_t rows = std::min(chunk_rows, n_tokens - first);
    multiply<T>(ctx.matmul, Trans::no, Trans::yes, rows, V, D, x_TD.row<T>(first), x_TD.row_stride(),
                weight_VD.as<T>(), weight_VD.row_stride(), false, z_CV.as<T>(), V);
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < rows; ++i)
      loss_T.as<T>()[first + i] = cross_entropy_row(z_CV.row<T>(i), V, target[first + i], gradient, dloss);
    use(first, rows, z_CV.as<T>());
  }
}

void forward_on_cpu(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx) {
  const std::int64_t chunk_rows = classifier_chunk_rows(x_TD.rows(), weight_VD.rows());
  classifier_forward_in_chunks(loss_T, x_TD, weight_VD, target_T, chunk_rows, ctx);
}

void forward_backward_on_cpu(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD, Tensor weight_VD,
                             Tensor target_T, double dloss, Context& ctx) {
  const std::int64_t chunk_rows = classifier_chunk_rows(x_TD.rows(), weight_VD.rows());
  classifier_forward_backward_in_chunks(loss_T, dx_TD, dweight_VD, x_TD, weight_VD, target_T, dloss, chunk_rows,
                                        ctx);
}

// Of the logits; of profiles.
double product_flops(const Tensor& x_TD, const Tensor& weight_VD) {
  return 2.0 * static_cast<double>(x_TD.rows()) * static_cast<double>(weight_VD.numel());
}

}  // namespace

namespace cpu {

std::int64_t classifier_chunk_rows(std::int64_t n_tokens, std::int64_t vocab_size) {
  // About 16 million logits (64 MB in float32), and enough rows for the products to run at full speed.
  constexpr std::int64_t kRows = 128, kLogits = std::int64_t{1} << 24;
  return std::min(n_tokens, std::max(kRows, kLogits / vocab_size));
}

void classifier_forward_in_chunks(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T,
                                  std::int64_t chunk_rows, Context& ctx) {
  with_scalar(loss_T.dtype(), [&]<class T>() {
    for_each_chunk<T>(loss_T, x_TD, weight_VD, target_T, false, T(0), chunk_rows, ctx,
                      [](std::int64_t, std::int64_t, T*) {});
  });
}

void classifier_forward_backward_in_chunks(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD,
                                           Tensor weight_VD, Tensor target_T, double dloss,
                                           std::int64_t chunk_rows, Context& ctx) {
  const std::int64_t D = x_TD.dim(1), V = weight_VD.rows();
  with_scalar(loss_T.dtype(), [&]<class T>() {
    for_each_chunk<T>(loss_T, x_TD, weight_VD, target_T, true, static_cast<T>(dloss), chunk_rows, ctx,
                      [&](std::int64_t first, std::int64_t rows, T* dz_CV) {
                        multiply<T>(ctx.matmul, Trans::no, Trans::no, rows, D, V, dz_CV, V, weight_VD.as<T>(),
                                    weight_VD.row_stride(), false, dx_TD.row<T>(first), dx_TD.row_stride());
                        multiply<T>(ctx.matmul, Trans::yes, Trans::no, V, D, rows, dz_CV, V, x_TD.row<T>(first),
                                    x_TD.row_stride(), true, dweight_VD.as<T>(), dweight_VD.row_stride());
                      });
  });
}

}  // namespace cpu

void classifier_forward(Tensor loss_T, Tensor x_TD, Tensor weight_VD, Tensor target_T, Context& ctx) {
  const DType real = x_TD.dtype();
  Signature args(ctx);
  args(SY_ARG(x_TD), real)(SY_ARG(weight_VD), real)(SY_ARG(target_T), DType::i32);
  args(SY_ARG(loss_T), accumulation_dtype(real));
  args.multiplies([&] { return product_flops(x_TD, weight_VD); });
  if (ctx.measures()) forward_on_cpu(loss_T, x_TD, weight_VD, target_T, ctx);
  run<&cuda::classifier_forward>(ctx, forward_on_cpu, loss_T, x_TD, weight_VD, target_T);
}

void classifier_forward_backward(Tensor loss_T, Tensor dx_TD, Tensor dweight_VD, Tensor x_TD, Tensor weight_VD,
                                 Tensor target_T, double dloss, Context& ctx) {
  const DType real = x_TD.dtype(), sums = accumulation_dtype(real);
  Signature args(ctx);
  args(SY_ARG(x_TD), real)(SY_ARG(weight_VD), real)(SY_ARG(target_T), DType::i32);
  args(SY_ARG(loss_T), sums)(SY_ARG(dx_TD), real)(SY_ARG(dweight_VD), sums);
  args.multiplies([&] { return 3 * product_flops(x_TD, weight_VD); });
  args.also_moves([&] { return dweight_VD.nbytes(); });
  if (ctx.measures()) forward_backward_on_cpu(loss_T, dx_TD, dweight_VD, x_TD, weight_VD, target_T, dloss, ctx);
  run<&cuda::classifier_forward_backward>(ctx, forward_backward_on_cpu, loss_T, dx_TD, dweight_VD, x_TD,
                                          weight_VD, target_T, dloss);
}

}  // namespace switchyard::ops
