#include "ops/rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// Turns every pair by the table's angle times `direction`, 1 or -1. Neighbouring pairs are 2 elements apart and
// their halves 1, half-split ones 1 apart and their halves `pairs`.
template <class T>
void rotate(const Tensor& x_THN, const Tensor& cos_SP, const Tensor& sin_SP, std::int64_t seq_len,
            const RopeLayout& layout, T direction) {
  const Rows<T> x_rows(x_THN), cos_rows(cos_SP), sin_rows(sin_SP);
  const std::int64_t pairs = cos_SP.dim(1), heads = x_THN.dim(1) / layout.head_dim;
  const bool halves = layout.pairs == RopePairs::halves;
#pragma omp parallel for schedule(static) if (x_THN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < x_THN.rows(); ++t) {
    const T* cos = cos_rows[t % seq_len];
    const T* sin = sin_rows[t % seq_len];
    for (std::int64_t h = 0; h < heads; ++h) {
      T* x = x_rows[t] + (h + 1) * layout.head_dim - 2 * pairs;
      if (halves) {
        T* high = x + pairs;
#pragma omp simd
        for (std::int64_t i = 0; i < pairs; ++i) {
          const T a = x[i], b = high[i], s = direction * sin[i];
          x[i] = a * cos[i] - b * s;
          high[i] = b * cos[i] + a * s;
        }
      } else {
#pragma omp simd
        for (std::int64_t i = 0; i < pairs; ++i) {
          const T a = x[2 * i], b = x[2 * i + 1], s = direction * sin[i];
          x[2 * i] = a * cos[i] - b * s;
          x[2 * i + 1] = b * cos[i] + a * s;
        }
      }
    }
  }
}

template <class T>
void rope_table_on_cpu(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale) {
  const Rows<T> cos_rows(cos_SP), sin_rows(sin_SP);
  const double* frequency = frequency_P.as<double>();
  const std::int64_t pairs = cos_SP.dim(1);
#pragma omp parallel for schedule(static) if (cos_SP.numel() >= kParallelElements)
  for (std::int64_t s = 0; s < cos_SP.rows(); ++s) {
    for (std::int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(s) * frequency[i];
      cos_rows[s][i] = static_cast<T>(scale * std::cos(angle));
      sin_rows[s][i] = static_cast<T>(scale * std::sin(angle));
    }
  }
}

template <class T>
void rope_forward_on_cpu(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                         const RopeLayout& layout) {
  rotate(x_THN, cos_SP, sin_SP, seq_len, layout, T(1));
}

template <class T>
void rope_backward_on_cpu(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                          const RopeLayout& layout) {
  rotate(dx_THN, cos_SP, sin_SP, seq_len, layout, T(-1));
}

void check_table(Signature& args, const Tensor& cos_SP, const Tensor& sin_SP) {
  args(SY_ARG(cos_SP), cos_SP.dtype())(SY_ARG(sin_SP), cos_SP.dtype());
  SY_CHECK(args['P'] > 0, "a head has no pairs");
}

void check_rotation(Signature& args, const Tensor& x_THN, const Tensor& cos_SP, const Tensor& sin_SP,
                    std::int64_t seq_len, const RopeLayout& layout) {
  check_table(args, cos_SP, sin_SP);
  SY_CHECK(cos_SP.dtype() == accumulation_dtype(x_THN.dtype()), "the table is {} for rows of {}",
           name_of(cos_SP.dtype()), name_of(x_THN.dtype()));
  SY_CHECK(seq_len > 0 && seq_len <= args['S'], "sequences of {} positions, a table of {}", seq_len, args['S']);
  SY_CHECK(layout.head_dim >= 2 * args['P'], "{} pairs in a head of {}", args['P'], layout.head_dim);
  const std::int64_t heads = x_THN.dim(1) / layout.head_dim;
  args(SY_ARG(x_THN), Shape{x_THN.rows(), heads * layout.head_dim}, x_THN.dtype());
}

}  // namespace

void rope_table(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale, Context& ctx) {
  Signature args(ctx);
  check_table(args, cos_SP, sin_SP);
  args(SY_ARG(frequency_P), DType::f64, kAnywhere);
  run<&cuda::rope_table>(ctx, cos_SP.dtype(), SY_CPU(rope_table_on_cpu), cos_SP, sin_SP, frequency_P, scale);
}

void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                  Context& ctx) {
  Signature args(ctx);
  check_rotation(args, x_THN, cos_SP, sin_SP, seq_len, layout);
  run<&cuda::rope_forward>(ctx, x_THN.dtype(), SY_CPU(rope_forward_on_cpu), x_THN, cos_SP, sin_SP, seq_len,
                           layout);
}

void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                   Context& ctx) {
  Signature args(ctx);
  check_rotation(args, dx_THN, cos_SP, sin_SP, seq_len, layout);
  run<&cuda::rope_backward>(ctx, dx_THN.dtype(), SY_CPU(rope_backward_on_cpu), dx_THN, cos_SP, sin_SP, seq_len,
                            layout);
}

namespace {

using namespace cpu;

// f(pairs of a head): usual ones as constants, with which the loops over a head are a few vectors long and have
// no ends to look after. That is a third of the time where heads are short.
template <class F>
void with_pairs(std::int64_t pairs, F&& f) {
  switch (pairs) {
    case 16:
      return f(std::integral_constant<std::int64_t, 16>());
    case 32:
      return f(std::integral_constant<std::int64_t, 32>());
    case 64:
      return f(std::integral_constant<std::int64_t, 64>());
    default:
      return f(pairs);
  }
}

// q's heads, or k's: what is read, what is written, and what the forward pass has left.
template <class T>
struct Heads {
  Rows<T> in_THN, rstd_TH, out_THN;
  const T* weight_N;
  std::int64_t count;
};

// q's and k's columns of a projection.
QueryKey columns_of(const Tensor& qkv_TM, const QueryKey& like) {
  return {qkv_TM.columns(0, like.q.dim(1)), qkv_TM.columns(like.q.dim(1), like.k.dim(1))};
}

template <class T>
std::array<Heads<T>, 2> heads_of(const Tensor& qkv_TM, const QueryKey& rstd, const QueryKey& out,
                                 const QueryKey& weight_N) {
  const QueryKey in = columns_of(qkv_TM, out);
  return {Heads<T>{Rows<T>(in.q), Rows<T>(rstd.q), Rows<T>(out.q), weight_N.q.as<T>(), rstd.q.dim(1)},
          Heads<T>{Rows<T>(in.k), Rows<T>(rstd.k), Rows<T>(out.k), weight_N.k.as<T>(), rstd.k.dim(1)}};
}

// A token's q and k lie side by side and are read in one pass.
template <class T>
void qk_norm_rope_forward_on_cpu(QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
                                 Tensor sin_SP, std::int64_t seq_len, double eps) {
  const Rows<T> cos_rows(cos_SP), sin_rows(sin_SP);
  const std::array<Heads<T>, 2> parts = heads_of<T>(qkv_TM, rstd, out, weight_N);
  with_pairs(cos_SP.dim(1), [&](auto pairs_of_head) {
    const std::int64_t pairs = pairs_of_head, width = 2 * pairs;
#pragma omp parallel for schedule(static) if (qkv_TM.numel() >= kParallelElements)
    for (std::int64_t t = 0; t < qkv_TM.rows(); ++t) {
      const T *cos = cos_rows[t % seq_len], *sin = sin_rows[t % seq_len];
      for (const Heads<T>& heads : parts) {
        const T* weight = heads.weight_N;
        for (std::int64_t h = 0; h < heads.count; ++h) {
          const T* in_N = heads.in_THN[t] + h * width;
          T* out_N = heads.out_THN[t] + h * width;
          const T r = reciprocal_rms(in_N, width, eps);
          heads.rstd_TH[t][h] = r;
#pragma omp simd
          for (std::int64_t p = 0; p < pairs; ++p) {
            const T a = in_N[p] * r * weight[p], b = in_N[p + pairs] * r * weight[p + pairs];
            out_N[p] = a * cos[p] - b * sin[p];
            out_N[p + pairs] = b * cos[p] + a * sin[p];
          }
        }
      }
    }
  });
}

template <class T>
void qk_norm_rope_backward_on_cpu(Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM,
                                  QueryKey rstd, QueryKey weight_N, Tensor cos_SP, Tensor sin_SP,
                                  std::int64_t seq_len, Context& ctx) {
  const Rows<T> cos_rows(cos_SP), sin_rows(sin_SP);
  const std::array<Heads<T>, 2> parts = heads_of<T>(qkv_TM, rstd, dout, weight_N);
  const QueryKey din = columns_of(dqkv_TM, dout);
  const std::array<Rows<T>, 2> din_rows = {Rows<T>(din.q), Rows<T>(din.k)};
  const std::int64_t n_rows = qkv_TM.rows(), N = weight_N.q.dim(0);

  ScratchScope scope(ctx.scratch);
  const RowBlocks blocks(n_rows);
  const Rows<T> partial_rows(ctx.scratch.take({blocks.count, 2 * N}, DTypeOf<T>::value));
  with_pairs(cos_SP.dim(1), [&](auto pairs_of_head) {
    const std::int64_t pairs = pairs_of_head, width = 2 * pairs;
#pragma omp parallel for schedule(static) if (qkv_TM.numel() >= kParallelElements)
    for (std::int64_t block = 0; block < blocks.count; ++block) {
      std::fill_n(partial_rows[block], 2 * width, T(0));
      const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
      for (std::int64_t t = block * blocks.rows; t < last; ++t) {
        const T *cos = cos_rows[t % seq_len], *sin = sin_rows[t % seq_len];
        for (std::size_t part = 0; part < parts.size(); ++part) {
          const Heads<T>& heads = parts[part];
          const T* weight = heads.weight_N;
          T* partial = partial_rows[block] + static_cast<std::int64_t>(part) * width;  // of dweight
          for (std::int64_t h = 0; h < heads.count; ++h) {
            const T *dout_N = heads.out_THN[t] + h * width, *in_N = heads.in_THN[t] + h * width;
            T* din_N = din_rows[part][t] + h * width;  // dy first
            const T r = heads.rstd_TH[t][h];
#pragma omp simd
            for (std::int64_t p = 0; p < pairs; ++p) {
              din_N[p] = dout_N[p] * cos[p] + dout_N[p + pairs] * sin[p];
              din_N[p + pairs] = dout_N[p + pairs] * cos[p] - dout_N[p] * sin[p];
            }
            const double sum =
                sum_in_lanes(width, [=](std::int64_t n) { return din_N[n] * weight[n] * (in_N[n] * r); });
            const T mean = static_cast<T>(sum / static_cast<double>(width));
#pragma omp simd
            for (std::int64_t n = 0; n < width; ++n) {
              const T x = in_N[n] * r, dy = din_N[n];
              din_N[n] = r * (dy * weight[n] - x * mean);
              partial[n] += dy * x;
            }
          }
        }
      }
    }
  });

  // Too little for a team.
  add_block_sums(dweight_N.q.as<T>(), partial_rows, blocks, 0, N, false);
  add_block_sums(dweight_N.k.as<T>(), partial_rows, blocks, N, N, false);
}

void check_inputs(Signature& args, const QueryKey& out, const QueryKey& rstd, const Tensor& qkv_TM,
                  const QueryKey& weight, const Tensor& cos_SP, const Tensor& sin_SP, std::int64_t seq_len) {
  const DType real = qkv_TM.dtype(), statistic = accumulation_dtype(real);
  args(SY_ARG(qkv_TM), real)("q's weight_N", weight.q, real, kContiguous);
  args("k's weight_N", weight.k, real, kContiguous);
  args("q's rstd_TH", rstd.q, statistic)("k's rstd_TG", rstd.k, statistic);
  const std::int64_t T = args['T'], N = args['N'];
  args("q_THN", out.q, Shape{T, args['H'] * N}, real)("k_TGN", out.k, Shape{T, args['G'] * N}, real);
  SY_CHECK(args['M'] >= (args['H'] + args['G']) * N, "qkv_TM is {}, expected {} and {} heads of {}",
           qkv_TM.shape().to_string(), args['H'], args['G'], N);
  SY_CHECK(N > 0 && N % 2 == 0, "heads of {} have no halves", N);
  args.bind('P', N / 2)(SY_ARG(cos_SP), statistic)(SY_ARG(sin_SP), statistic);
  SY_CHECK(seq_len > 0 && seq_len <= args['S'], "sequences of {} positions, a table of {}", seq_len, args['S']);
}

}  // namespace

void qk_norm_rope_forward(QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
                          Tensor sin_SP, std::int64_t seq_len, double eps, Context& ctx) {
  Signature args(ctx);
  check_inputs(args, out, rstd, qkv_TM, weight_N, cos_SP, sin_SP, seq_len);
  run<&cuda::qk_norm_rope_forward>(ctx, qkv_TM.dtype(), SY_CPU(qk_norm_rope_forward_on_cpu), out, rstd, qkv_TM,
                                   weight_N, cos_SP, sin_SP, seq_len, eps);
}

void qk_norm_rope_backward(Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM, QueryKey rstd,
                           QueryKey weight_N, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                           Context& ctx) {
  const DType statistic = accumulation_dtype(qkv_TM.dtype());
  Signature args(ctx);
  check_inputs(args, dout, rstd, qkv_TM, weight_N, cos_SP, sin_SP, seq_len);
  args(SY_ARG(dqkv_TM), qkv_TM.dtype());
  args("q's dweight_N", dweight_N.q, statistic, kContiguous)("k's dweight_N", dweight_N.k, statistic,
                                                             kContiguous);
  run<&cuda::qk_norm_rope_backward>(ctx, qkv_TM.dtype(), SY_CPU(qk_norm_rope_backward_on_cpu), dqkv_TM,
                                    dweight_N, dout, qkv_TM, rstd, weight_N, cos_SP, sin_SP, seq_len);
}

}  // namespace switchyard::ops
