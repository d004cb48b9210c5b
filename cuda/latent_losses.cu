// A few thousand numbers a layer: one block sums them, in an order that only their number decides. Keys are
// f32; nobody waits.
#include "ops/latent_losses.h"

#include "elements.h"
#include "for_each_pack.h"
#include "launch.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256;

const double* numbers(const Tensor& tensor) { return tensor.defined() ? tensor.as<double>() : nullptr; }

struct Sums {
  const double *gram_dd, *sum_d, *distance_1, *n_1;
  double n;
  int width;
  __device__ double rows() const { return n_1 ? *n_1 : n; }
};
Sums sums_of(const RowSums& rows) {
  return {numbers(rows.gram_dd),
          numbers(rows.sum_d),
          numbers(rows.distance_1),
          numbers(rows.n_1),
          rows.n,
          rows.sum_d.defined() ? static_cast<int>(rows.sum_d.rows()) : 0};
}

struct Factor {
  double coef;
  const double* tokens_1;
  __device__ double value() const { return tokens_1 ? coef * *tokens_1 : coef; }
};
Factor factor_of(const TermFactor& factor) { return {factor.coef, numbers(factor.tokens_1)}; }

__global__ void __launch_bounds__(kThreads)
    diversity_kernel(double* loss_1, Diversity kind, Sums rows, Factor factor) {
  double squares = 0, trace = 0;
  if (kind != Diversity::euclidean) {
    const std::int64_t width = rows.width;
    const bool of_gram = kind == Diversity::orthogonal;
    const double* const values = of_gram ? rows.gram_dd : rows.sum_d;
    const std::int64_t n_values = of_gram ? width * width : width;
    for (std::int64_t i = threadIdx.x; i < n_values; i += kThreads) squares += values[i] * values[i];
    for (std::int64_t i = threadIdx.x; i < width; i += kThreads) trace += rows.gram_dd[i * width + i];
    squares = reduce_block<Sum, kThreads>(squares);
    trace = reduce_block<Sum, kThreads>(trace);
  }
  if (threadIdx.x > 0) return;
  const double distance = kind == Diversity::euclidean ? *rows.distance_1 : 0;
  *loss_1 += factor.value() * diversity_value(kind, rows.rows(), squares, trace, distance);
}

// Row `width` is the offset's.
struct DiversityGradient {
  Rows<double> matrix_dd;
  double* offset_d;
  Diversity kind;
  Sums rows;
  Factor factor;

  __device__ void operator()(std::int64_t i, std::int64_t j) const {
    const DiversitySlopes slopes = diversity_slopes(kind, rows.rows());
    if (i < rows.width)
      matrix_dd[i][j] =
          factor.value() * (slopes.gram * rows.gram_dd[i * rows.width + j] + (i == j ? slopes.identity : 0));
    else
      offset_d[j] = factor.value() * slopes.sum * rows.sum_d[j];
  }
};

struct DistanceScale {
  double* scale_1;
  Sums rows;
  Factor factor;

  __device__ void operator()(std::int64_t, std::int64_t) const {
    *scale_1 = factor.value() * diversity_slopes(Diversity::euclidean, rows.rows()).distance;
  }
};

__global__ void __launch_bounds__(kThreads)
    alignment_kernel(double* loss_1, Rows<const float> key_Ed, Rows<const double> target_Ed, std::int64_t n,
                     int width, Factor factor) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
    const std::int64_t e = i / width, j = i % width;
    sum += fabs(static_cast<double>(key_Ed[e][j]) - target_Ed[e][j]);
  }
  sum = reduce_block<Sum, kThreads>(sum);
  if (threadIdx.x == 0) *loss_1 += factor.value() * sum / static_cast<double>(n);
}

struct AlignmentBackward {
  Rows<float> dkey_Ed;
  Rows<const float> key_Ed;
  Rows<const double> target_Ed;
  Factor factor;
  double n;

  __device__ void operator()(std::int64_t e, std::int64_t j) const {
    const double difference = static_cast<double>(key_Ed[e][j]) - target_Ed[e][j];
    const auto step = static_cast<float>(factor.value() / n);
    dkey_Ed[e][j] += difference > 0 ? step : difference < 0 ? -step : 0;
  }
};

}  // namespace

void add_diversity_loss(Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor,
                        Context& ctx) {
  launch("add_diversity_loss", diversity_kernel, {1, kThreads}, ctx, loss_1.as<double>(), kind, sums_of(rows),
         factor_of(factor));
}

void diversity_gradient(Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind, const RowSums& rows,
                        const TermFactor& factor, Context& ctx) {
  if (kind == Diversity::euclidean)
    return for_each_pack<1>("diversity_gradient", 1, 1, ctx,
                            DistanceScale{scale_1.as<double>(), sums_of(rows), factor_of(factor)});
  for_each_pack<1>("diversity_gradient", matrix_dd.rows() + 1, matrix_dd.dim(1), ctx,
                   DiversityGradient{rows_of<double>(matrix_dd), offset_d.as<double>(), kind, sums_of(rows),
                                     factor_of(factor)});
}

void add_alignment_loss(Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx) {
  launch("add_alignment_loss", alignment_kernel, {1, kThreads}, ctx, loss_1.as<double>(),
         rows_of<const float>(key_Ed), rows_of<const double>(target_Ed), key_Ed.numel(), key_Ed.dim(1),
         factor_of(factor));
}

void alignment_backward(Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx) {
  for_each_pack<1>(
      "alignment_backward", key_Ed.rows(), key_Ed.dim(1), ctx,
      AlignmentBackward{rows_of<float>(dkey_Ed), rows_of<const float>(key_Ed), rows_of<const double>(target_Ed),
                        factor_of(factor), static_cast<double>(key_Ed.numel())});
}

}  // namespace switchyard::ops::cuda
