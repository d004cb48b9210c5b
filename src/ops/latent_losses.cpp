#include "ops/latent_losses.h"

#include <cmath>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

double number(const Tensor& value_1) { return *value_1.as<double>(); }
double rows_of(const RowSums& rows) { return rows.n_1.defined() ? number(rows.n_1) : rows.n; }
double value_of(const TermFactor& factor) {
  return factor.tokens_1.defined() ? factor.coef * number(factor.tokens_1) : factor.coef;
}
double square_sum(const Tensor& tensor) {
  const double* value = tensor.as<double>();
  double sum = 0;
  for (std::int64_t i = 0; i < tensor.numel(); ++i) sum += value[i] * value[i];
  return sum;
}

void add_diversity_loss_on_cpu(Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor) {
  double squares = 0, trace = 0, distance = 0;
  if (kind == Diversity::euclidean) {
    distance = number(rows.distance_1);
  } else {
    squares = square_sum(kind == Diversity::orthogonal ? rows.gram_dd : rows.sum_d);
    for (std::int64_t i = 0; i < rows.gram_dd.rows(); ++i) trace += rows.gram_dd.row<double>(i)[i];
  }
  *loss_1.as<double>() += value_of(factor) * diversity_value(kind, rows_of(rows), squares, trace, distance);
}

void diversity_gradient_on_cpu(Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind,
                               const RowSums& rows, const TermFactor& factor) {
  const double scale = value_of(factor);
  const DiversitySlopes slopes = diversity_slopes(kind, rows_of(rows));
  if (kind == Diversity::euclidean) {
    *scale_1.as<double>() = scale * slopes.distance;
    return;
  }
  const std::int64_t d = matrix_dd.rows();
  const double *gram = rows.gram_dd.as<double>(), *sum = rows.sum_d.as<double>();
  for (std::int64_t i = 0; i < d; ++i) {
    for (std::int64_t j = 0; j < d; ++j)
      matrix_dd.row<double>(i)[j] = scale * (slopes.gram * gram[i * d + j] + (i == j ? slopes.identity : 0));
    offset_d.as<double>()[i] = scale * slopes.sum * sum[i];
  }
}

template <class T>
void add_alignment_loss_on_cpu(Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor) {
  const Rows<T> key(key_Ed);
  const Rows<double> target(target_Ed);
  double sum = 0;
  for (std::int64_t e = 0; e < key_Ed.rows(); ++e)
    for (std::int64_t j = 0; j < key_Ed.dim(1); ++j)
      sum += std::abs(static_cast<double>(key[e][j]) - target[e][j]);
  *loss_1.as<double>() += value_of(factor) * sum / static_cast<double>(key_Ed.numel());
}

template <class T>
void alignment_backward_on_cpu(Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor) {
  const Rows<T> dkey(dkey_Ed), key(key_Ed);
  const Rows<double> target(target_Ed);
  const T step = static_cast<T>(value_of(factor) / static_cast<double>(key_Ed.numel()));
  for (std::int64_t e = 0; e < key_Ed.rows(); ++e)
    for (std::int64_t j = 0; j < key_Ed.dim(1); ++j) {
      const double difference = static_cast<double>(key[e][j]) - target[e][j];
      dkey[e][j] += difference > 0 ? step : difference < 0 ? -step : T(0);
    }
}

void check_term(Signature& args, Diversity kind, const RowSums& rows, const TermFactor& factor) {
  constexpr unsigned kMaybe = kOptional | kContiguous;
  args("tokens_1", factor.tokens_1, DType::f64, kMaybe)("n_1", rows.n_1, DType::f64, kMaybe);
  if (kind == Diversity::euclidean)
    args("distance_1", rows.distance_1, DType::f64, kContiguous);
  else
    args("gram_dd", rows.gram_dd, DType::f64, kContiguous)("sum_d", rows.sum_d, DType::f64, kContiguous);
}

void check_alignment(Signature& args, const Tensor& key_Ed, const Tensor& target_Ed, const TermFactor& factor) {
  args(SY_ARG(key_Ed), key_Ed.dtype())(SY_ARG(target_Ed), DType::f64, kContiguous);
  args("tokens_1", factor.tokens_1, DType::f64, kOptional | kContiguous);
}

}  // namespace

void add_diversity_loss(Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor,
                        Context& ctx) {
  Signature args(ctx);
  check_term(args, kind, rows, factor);
  args(SY_ARG(loss_1), DType::f64, kContiguous);
  run<&cuda::add_diversity_loss>(ctx, add_diversity_loss_on_cpu, loss_1, kind, rows, factor);
}

void diversity_gradient(Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind, const RowSums& rows,
                        const TermFactor& factor, Context& ctx) {
  Signature args(ctx);
  check_term(args, kind, rows, factor);
  if (kind == Diversity::euclidean)
    args(SY_ARG(scale_1), DType::f64, kContiguous);
  else
    args(SY_ARG(matrix_dd), DType::f64, kContiguous)(SY_ARG(offset_d), DType::f64, kContiguous);
  run<&cuda::diversity_gradient>(ctx, diversity_gradient_on_cpu, matrix_dd, offset_d, scale_1, kind, rows,
                                 factor);
}

void add_alignment_loss(Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx) {
  Signature args(ctx);
  check_alignment(args, key_Ed, target_Ed, factor);
  args(SY_ARG(loss_1), DType::f64, kContiguous);
  run<&cuda::add_alignment_loss>(ctx, key_Ed.dtype(), SY_CPU(add_alignment_loss_on_cpu), loss_1, key_Ed,
                                 target_Ed, factor);
}

void alignment_backward(Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx) {
  Signature args(ctx);
  check_alignment(args, key_Ed, target_Ed, factor);
  args(SY_ARG(dkey_Ed), key_Ed.dtype());
  run<&cuda::alignment_backward>(ctx, key_Ed.dtype(), SY_CPU(alignment_backward_on_cpu), dkey_Ed, key_Ed,
                                 target_Ed, factor);
}

}  // namespace switchyard::ops
