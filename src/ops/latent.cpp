#include "ops/latent.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

constexpr double kLeastLength = 1e-12;
constexpr std::int64_t kDistanceRows = 64;  // rows whose distances to all others exist at one time

bool skipped(const Tensor& token_R, std::int64_t r) {
  return token_R.defined() && token_R.as<std::int32_t>()[r] < 0;
}

// sum_N (set) = the sum over rows of what add(row, partial_N) adds, in at most 16 blocks, a function of the
// number of rows alone.
template <class F>
void sum_rows(double* sum_N, std::int64_t N, std::int64_t n_rows, Context& ctx, F&& add) {
  ScratchScope scope(ctx.scratch);
  const std::int64_t per_block = std::max<std::int64_t>(32, (n_rows + 15) / 16);
  const std::int64_t n_blocks = (n_rows + per_block - 1) / per_block;
  std::fill_n(sum_N, N, 0.0);
  const Rows<double> partial(ctx.scratch.take({std::max<std::int64_t>(n_blocks, 1), N}, DType::f64));
#pragma omp parallel for schedule(static) if (n_blocks > 4)
  for (std::int64_t block = 0; block < n_blocks; ++block) {
    std::fill_n(partial[block], N, 0.0);
    for (std::int64_t r = block * per_block; r < std::min((block + 1) * per_block, n_rows); ++r)
      add(r, partial[block]);
  }
  for (std::int64_t block = 0; block < n_blocks; ++block)
    for (std::int64_t i = 0; i < N; ++i) sum_N[i] += partial[block][i];
}

// The rows that count, transposed to [d, count], so that loops run over rows.
template <class T>
struct Columns {
  std::int64_t count = 0;
  Tensor value_dR, row_R;

  Columns(const Tensor& Y_Rd, const Tensor& token_R, Context& ctx)
      : value_dR(ctx.scratch.take({Y_Rd.dim(1), Y_Rd.rows()}, DTypeOf<T>::value)),
        row_R(ctx.scratch.take({Y_Rd.rows()}, DType::i32)) {
    for (std::int64_t r = 0; r < Y_Rd.rows(); ++r) {
      if (skipped(token_R, r)) continue;
      for (std::int64_t j = 0; j < Y_Rd.dim(1); ++j) value_dR.row<T>(j)[count] = Y_Rd.row<T>(r)[j];
      row_R.as<std::int32_t>()[count++] = static_cast<std::int32_t>(r);
    }
  }

  // distance_R[k] = |Y_i - Y_k|
  void distances(T* distance_R, std::int64_t i) const {
    std::fill_n(distance_R, count, T(0));
    for (std::int64_t j = 0; j < value_dR.rows(); ++j) {
      const T* value = value_dR.row<T>(j);
      const T own = value[i];
#pragma omp simd
      for (std::int64_t k = 0; k < count; ++k) distance_R[k] += (own - value[k]) * (own - value[k]);
    }
#pragma omp simd
    for (std::int64_t k = 0; k < count; ++k) distance_R[k] = std::sqrt(distance_R[k]);
  }
};

template <class T>
void unit_rows_forward_on_cpu(Tensor unit_Rd, Tensor norm_R, Tensor in_Rd) {
  const Rows<T> unit(unit_Rd), norm(norm_R), in(in_Rd);
  const std::int64_t d = in_Rd.dim(1);
#pragma omp parallel for schedule(static) if (in_Rd.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < in_Rd.rows(); ++r) {
    double squares = 0;
    for (std::int64_t j = 0; j < d; ++j)
      squares += static_cast<double>(in[r][j]) * static_cast<double>(in[r][j]);
    const double length = std::sqrt(squares);
    *norm[r] = static_cast<T>(length);
    const T inverse = length < kLeastLength ? T(0) : static_cast<T>(1 / length);
    for (std::int64_t j = 0; j < d; ++j) unit[r][j] = in[r][j] * inverse;
  }
}

template <class T>
void unit_rows_backward_on_cpu(Tensor din_Rd, Tensor dunit_Rd, Tensor unit_Rd, Tensor norm_R) {
  const Rows<T> din(din_Rd), dunit(dunit_Rd), unit(unit_Rd), norm(norm_R);
  const std::int64_t d = unit_Rd.dim(1);
#pragma omp parallel for schedule(static) if (unit_Rd.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < unit_Rd.rows(); ++r) {
    if (static_cast<double>(*norm[r]) < kLeastLength) continue;
    const T inverse = 1 / *norm[r];
    T along = 0;
    for (std::int64_t j = 0; j < d; ++j) along += unit[r][j] * dunit[r][j];
    for (std::int64_t j = 0; j < d; ++j) din[r][j] += (dunit[r][j] - unit[r][j] * along) * inverse;
  }
}

template <class T>
void row_moments_on_cpu(Tensor gram_dd, Tensor sum_d, Tensor unit_Rd, Tensor token_R, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const std::int64_t d = unit_Rd.dim(1), N = d * d + d;
  const Tensor sum_N = ctx.scratch.take({N}, DType::f64);
  const Rows<T> unit(unit_Rd);
  double* sum = sum_N.as<double>();
  sum_rows(sum, N, unit_Rd.rows(), ctx, [&](std::int64_t r, double* partial) {
    if (skipped(token_R, r)) return;
    const T* row = unit[r];
    for (std::int64_t i = 0; i < d; ++i) {
      const auto own = static_cast<double>(row[i]);
#pragma omp simd
      for (std::int64_t j = 0; j < d; ++j) partial[i * d + j] += own * static_cast<double>(row[j]);
      partial[d * d + i] += own;
    }
  });
  std::copy_n(sum, d * d, gram_dd.as<double>());
  std::copy_n(sum + d * d, d, sum_d.as<double>());
}

template <class T>
void add_affine_rows_on_cpu(Tensor dunit_Rd, Tensor unit_Rd, Tensor matrix_dd, Tensor offset_d, Tensor token_R,
                            Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Rows<T> dunit_rows(dunit_Rd), unit_rows(unit_Rd);
  const double *matrix = matrix_dd.as<double>(), *offset = offset_d.as<double>();
  const std::int64_t d = unit_Rd.dim(1);
  constexpr std::int64_t kWidth = 16;
  // Transposed, so that the sums of a row are made side by side.
  const Tensor turned_dd = ctx.scratch.take({d, d}, DType::f64);
  double* turned = turned_dd.as<double>();
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j < d; ++j) turned[j * d + i] = matrix[i * d + j];
#pragma omp parallel for schedule(static) if (unit_Rd.numel() * d >= kParallelElements)
  for (std::int64_t r = 0; r < unit_Rd.rows(); ++r) {
    if (skipped(token_R, r)) continue;
    const T* unit = unit_rows[r];
    T* dunit = dunit_rows[r];
    for (std::int64_t first = 0; first < d; first += kWidth) {
      const std::int64_t width = std::min(kWidth, d - first);
      double sum[kWidth] = {};
      std::copy_n(offset + first, width, sum);
      for (std::int64_t j = 0; j < d; ++j) {
        const auto own = static_cast<double>(unit[j]);
        const double* column = turned + j * d + first;
#pragma omp simd
        for (std::int64_t w = 0; w < width; ++w) sum[w] += column[w] * own;
      }
      for (std::int64_t w = 0; w < width; ++w) dunit[first + w] += static_cast<T>(sum[w]);
    }
  }
}

void count_rows_on_cpu(Tensor count_1, Tensor token_R) {
  const auto* skip = token_R.as<std::int32_t>();
  const auto count = std::count_if(skip, skip + token_R.rows(), [](std::int32_t id) { return id >= 0; });
  *count_1.as<double>() = static_cast<double>(count);
}

template <class T>
void pair_distance_sum_on_cpu(Tensor sum_1, Tensor Y_Rd, Tensor token_R, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Columns<T> columns(Y_Rd, token_R, ctx);
  const std::int64_t n = columns.count;
  const Tensor row_sum_R = ctx.scratch.take({Y_Rd.rows()}, DType::f64);
  const Tensor distance_RR = ctx.scratch.take({kDistanceRows, Y_Rd.rows()}, DTypeOf<T>::value);
  double sum = 0;
  for (std::int64_t first = 0; first < n; first += kDistanceRows) {
    const std::int64_t rows = std::min(kDistanceRows, n - first);
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < rows; ++i) {
      T* distance = distance_RR.row<T>(i);
      columns.distances(distance, first + i);
      row_sum_R.as<double>()[first + i] = sum_in_lanes(n, [distance](std::int64_t k) { return distance[k]; });
    }
  }
  for (std::int64_t i = 0; i < n; ++i) sum += row_sum_R.as<double>()[i];
  *sum_1.as<double>() = sum;
}

template <class T>
void pair_distance_backward_on_cpu(Tensor dY_Rd, Tensor Y_Rd, Tensor token_R, Tensor scale_1, Context& ctx) {
  const double scale = *scale_1.as<double>();
  ScratchScope scope(ctx.scratch);
  const Columns<T> columns(Y_Rd, token_R, ctx);
  const std::int64_t n = columns.count, d = Y_Rd.dim(1);
  const Tensor distance_RR = ctx.scratch.take({kDistanceRows, Y_Rd.rows()}, DTypeOf<T>::value);
  for (std::int64_t first = 0; first < n; first += kDistanceRows) {
    const std::int64_t rows = std::min(kDistanceRows, n - first);
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < rows; ++i) {
      T* inverse = distance_RR.row<T>(i);
      columns.distances(inverse, first + i);
#pragma omp simd
      for (std::int64_t k = 0; k < n; ++k) inverse[k] = inverse[k] > T(0) ? 1 / inverse[k] : T(0);
      T* dY = dY_Rd.row<T>(columns.row_R.template as<std::int32_t>()[first + i]);
      for (std::int64_t j = 0; j < d; ++j) {
        const T* value = columns.value_dR.template row<T>(j);
        const T own = value[first + i];
        const double sum = sum_in_lanes(n, [=](std::int64_t k) { return (own - value[k]) * inverse[k]; });
        dY[j] += static_cast<T>(2 * scale * sum);  // the pair counts in both orders
      }
    }
  }
}

template <class T>
void sample_latent_on_cpu(Tensor z_Td, Tensor mean_Td, Tensor log_var_Td, Tensor epsilon_Td) {
  const Rows<T> z(z_Td), mean(mean_Td), log_var(log_var_Td), epsilon(epsilon_Td);
  const std::int64_t d = mean_Td.dim(1);
#pragma omp parallel for schedule(static) if (mean_Td.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < mean_Td.rows(); ++t)
#pragma omp simd
    for (std::int64_t j = 0; j < d; ++j) z[t][j] = mean[t][j] + epsilon[t][j] * exp_of(log_var[t][j] / 2);
}

template <class T>
void standard_kl_sum_on_cpu(Tensor sum_1, Tensor mean_Td, Tensor log_var_Td, Tensor token_T, Context& ctx) {
  const Rows<T> mean(mean_Td), log_var(log_var_Td);
  const std::int64_t d = mean_Td.dim(1);
  double sum = 0;
  sum_rows(&sum, 1, mean_Td.rows(), ctx, [&](std::int64_t t, double* partial) {
    if (skipped(token_T, t)) return;
    const T *m = mean[t], *l = log_var[t];
    T row = 0;
#pragma omp simd reduction(+ : row)
    for (std::int64_t j = 0; j < d; ++j) row += m[j] * m[j] + (exp_of(l[j]) - 1 - l[j]);
    *partial += static_cast<double>(row) / 2;
  });
  *sum_1.as<double>() = sum;
}

template <class T>
void standard_kl_backward_on_cpu(Tensor dmean_Td, Tensor dlog_var_Td, Tensor mean_Td, Tensor log_var_Td,
                                 Tensor token_T, double scale) {
  const Rows<T> dmean(dmean_Td), dlog_var(dlog_var_Td), mean(mean_Td), log_var(log_var_Td);
  const std::int64_t d = mean_Td.dim(1);
  const T whole = static_cast<T>(scale), half = static_cast<T>(scale / 2);
#pragma omp parallel for schedule(static) if (mean_Td.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < mean_Td.rows(); ++t) {
    if (skipped(token_T, t)) continue;
#pragma omp simd
    for (std::int64_t j = 0; j < d; ++j) {
      dmean[t][j] += whole * mean[t][j];
      dlog_var[t][j] += half * (exp_of(log_var[t][j]) - 1);
    }
  }
}

// R[t,e] = (exp(s_e - m) for the chosen, exp(-m) for the others) / their sum, m = max(s, and 0 where
// there are others). The sum over
// tokens of z exp(-m) / sum is the same for all experts; the chosen get the rest beside it.
template <class T>
void routed_sums_on_cpu(Tensor sum_Ed, Tensor count_E, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK,
                        Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const std::int64_t E = count_E.rows(), K = expert_TK.dim(1), d = z_Td.dim(1), row = d + 1, N = (E + 1) * row;
  const Tensor sum_N = ctx.scratch.take({N}, DType::f64);
  double* sum = sum_N.as<double>();  // [E + 1, d + 1]: of z and of 1; the last row is everyone's
  const Rows<T> z(z_Td), chosen_rows(chosen_TK);
  const Rows<double> share_rows(ctx.scratch.take(expert_TK.shape(), DType::f64));
  const Rows<std::int32_t> expert_rows(expert_TK);
  sum_rows(sum, N, z_Td.rows(), ctx, [&](std::int64_t t, double* partial) {
    const std::int32_t* expert = expert_rows[t];
    const T* chosen = chosen_rows[t];
    double greatest = -std::numeric_limits<double>::infinity();
    std::int64_t filled = 0;
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) greatest = std::max(greatest, static_cast<double>(chosen[k])), ++filled;
    if (filled == 0) return;
    if (filled < E) greatest = std::max(greatest, 0.0);
    const double other = filled < E ? std::exp(-greatest) : 0;
    double total = static_cast<double>(E - filled) * other;
    double* share = share_rows[t];
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) total += share[k] = std::exp(static_cast<double>(chosen[k]) - greatest);
    const auto add = [&](std::int64_t e, double weight) {
      double* to = partial + e * row;
      const T* from = z[t];
#pragma omp simd
      for (std::int64_t j = 0; j < d; ++j) to[j] += weight * static_cast<double>(from[j]);
      to[d] += weight;
    };
    add(E, other / total);
    for (std::int64_t k = 0; k < K; ++k)
      if (expert[k] >= 0) add(expert[k], (share[k] - other) / total);
  });
  const double* everyone = sum + E * row;
  for (std::int64_t e = 0; e < E; ++e) {
    for (std::int64_t j = 0; j < d; ++j) sum_Ed.row<double>(e)[j] = everyone[j] + sum[e * row + j];
    count_E.as<double>()[e] = everyone[d] + sum[e * row + d];
  }
}

template <class T>
void clear_skipped_rows_on_cpu(Tensor x_RD, Tensor token_R) {
  const Rows<T> x(x_RD);
  for (std::int64_t r = 0; r < x_RD.rows(); ++r)
    if (skipped(token_R, r)) std::fill_n(x[r], x_RD.dim(1), T(0));
}

template <class T>
void scale_rows_on_cpu(Tensor out_Rd, Tensor in_Rd, double factor) {
  const Rows<T> out(out_Rd), in(in_Rd);
  const std::int64_t d = in_Rd.dim(1);
  const T scale = static_cast<T>(factor);
#pragma omp parallel for schedule(static) if (in_Rd.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < in_Rd.rows(); ++r)
    for (std::int64_t j = 0; j < d; ++j) out[r][j] = scale * in[r][j];
}

constexpr unsigned kSums = kContiguous | kAnywhere;  // what is asked of f64 sums and factors

}  // namespace

void unit_rows_forward(Tensor unit_Rd, Tensor norm_R, Tensor in_Rd, Context& ctx) {
  const DType real = in_Rd.dtype();
  Signature args(ctx);
  args(SY_ARG(in_Rd), real)(SY_ARG(unit_Rd), real)(SY_ARG(norm_R), real);
  run<&cuda::unit_rows_forward>(ctx, real, SY_CPU(unit_rows_forward_on_cpu), unit_Rd, norm_R, in_Rd);
}

void unit_rows_backward(Tensor din_Rd, Tensor dunit_Rd, Tensor unit_Rd, Tensor norm_R, Context& ctx) {
  const DType real = unit_Rd.dtype();
  Signature args(ctx);
  args(SY_ARG(unit_Rd), real)(SY_ARG(norm_R), real)(SY_ARG(dunit_Rd), real)(SY_ARG(din_Rd), real);
  run<&cuda::unit_rows_backward>(ctx, real, SY_CPU(unit_rows_backward_on_cpu), din_Rd, dunit_Rd, unit_Rd,
                                 norm_R);
}

void row_moments(Tensor gram_dd, Tensor sum_d, Tensor unit_Rd, Tensor token_R, Context& ctx) {
  const DType real = unit_Rd.dtype();
  Signature args(ctx);
  args(SY_ARG(unit_Rd), real)(SY_ARG(token_R), DType::i32, kOptional);
  args(SY_ARG(gram_dd), DType::f64, kSums)(SY_ARG(sum_d), DType::f64, kSums);
  run<&cuda::row_moments>(ctx, real, SY_CPU(row_moments_on_cpu), gram_dd, sum_d, unit_Rd, token_R);
}

void add_affine_rows(Tensor dunit_Rd, Tensor unit_Rd, Tensor matrix_dd, Tensor offset_d, Tensor token_R,
                     Context& ctx) {
  const DType real = unit_Rd.dtype();
  Signature args(ctx);
  args(SY_ARG(unit_Rd), real)(SY_ARG(dunit_Rd), real)(SY_ARG(token_R), DType::i32, kOptional);
  args(SY_ARG(matrix_dd), DType::f64, kSums)(SY_ARG(offset_d), DType::f64, kSums);
  run<&cuda::add_affine_rows>(ctx, real, SY_CPU(add_affine_rows_on_cpu), dunit_Rd, unit_Rd, matrix_dd, offset_d,
                              token_R);
}

void count_rows(Tensor count_1, Tensor token_R, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(count_1), DType::f64, kSums)(SY_ARG(token_R), DType::i32);
  run<&cuda::count_rows>(ctx, count_rows_on_cpu, count_1, token_R);
}

void pair_distance_sum(Tensor sum_1, Tensor Y_Rd, Tensor token_R, Context& ctx) {
  const DType real = Y_Rd.dtype();
  Signature args(ctx);
  args(SY_ARG(sum_1), DType::f64, kSums)(SY_ARG(Y_Rd), real)(SY_ARG(token_R), DType::i32, kOptional);
  run<&cuda::pair_distance_sum>(ctx, real, SY_CPU(pair_distance_sum_on_cpu), sum_1, Y_Rd, token_R);
}

void pair_distance_backward(Tensor dY_Rd, Tensor Y_Rd, Tensor token_R, Tensor scale_1, Context& ctx) {
  const DType real = Y_Rd.dtype();
  Signature args(ctx);
  args(SY_ARG(Y_Rd), real)(SY_ARG(dY_Rd), real)(SY_ARG(token_R), DType::i32, kOptional);
  args(SY_ARG(scale_1), DType::f64, kSums);
  run<&cuda::pair_distance_backward>(ctx, real, SY_CPU(pair_distance_backward_on_cpu), dY_Rd, Y_Rd, token_R,
                                     scale_1);
}

void sample_latent(Tensor z_Td, Tensor mean_Td, Tensor log_var_Td, Tensor epsilon_Td, Context& ctx) {
  const DType real = mean_Td.dtype();
  Signature args(ctx);
  args(SY_ARG(mean_Td), real)(SY_ARG(log_var_Td), real)(SY_ARG(epsilon_Td), real)(SY_ARG(z_Td), real);
  run<&cuda::sample_latent>(ctx, real, SY_CPU(sample_latent_on_cpu), z_Td, mean_Td, log_var_Td, epsilon_Td);
}

void standard_kl_sum(Tensor sum_1, Tensor mean_Td, Tensor log_var_Td, Tensor token_T, Context& ctx) {
  const DType real = mean_Td.dtype();
  Signature args(ctx);
  args(SY_ARG(sum_1), DType::f64, kSums)(SY_ARG(mean_Td), real)(SY_ARG(log_var_Td), real);
  args(SY_ARG(token_T), DType::i32, kOptional);
  run<&cuda::standard_kl_sum>(ctx, real, SY_CPU(standard_kl_sum_on_cpu), sum_1, mean_Td, log_var_Td, token_T);
}

void standard_kl_backward(Tensor dmean_Td, Tensor dlog_var_Td, Tensor mean_Td, Tensor log_var_Td,
                          Tensor token_T, double scale, Context& ctx) {
  const DType real = mean_Td.dtype();
  Signature args(ctx);
  args(SY_ARG(mean_Td), real)(SY_ARG(log_var_Td), real)(SY_ARG(dmean_Td), real)(SY_ARG(dlog_var_Td), real);
  args(SY_ARG(token_T), DType::i32, kOptional);
  run<&cuda::standard_kl_backward>(ctx, real, SY_CPU(standard_kl_backward_on_cpu), dmean_Td, dlog_var_Td,
                                   mean_Td, log_var_Td, token_T, scale);
}

void routed_sums(Tensor sum_Ed, Tensor count_E, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK, Context& ctx) {
  const DType real = z_Td.dtype();
  Signature args(ctx);
  args(SY_ARG(z_Td), real)(SY_ARG(chosen_TK), real)(SY_ARG(expert_TK), DType::i32);
  args(SY_ARG(sum_Ed), DType::f64, kSums)(SY_ARG(count_E), DType::f64, kSums);
  run<&cuda::routed_sums>(ctx, real, SY_CPU(routed_sums_on_cpu), sum_Ed, count_E, z_Td, chosen_TK, expert_TK);
}

void clear_skipped_rows(Tensor x_RD, Tensor token_R, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(x_RD), x_RD.dtype())(SY_ARG(token_R), DType::i32, kOptional);
  run<&cuda::clear_skipped_rows>(ctx, x_RD.dtype(), SY_CPU(clear_skipped_rows_on_cpu), x_RD, token_R);
}

void scale_rows(Tensor out_Rd, Tensor in_Rd, double factor, Context& ctx) {
  const DType real = in_Rd.dtype();
  Signature args(ctx);
  args(SY_ARG(in_Rd), real)(SY_ARG(out_Rd), real);
  run<&cuda::scale_rows>(ctx, real, SY_CPU(scale_rows_on_cpu), out_Rd, in_Rd, factor);
}

}  // namespace switchyard::ops
