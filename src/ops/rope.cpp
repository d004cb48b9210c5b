#include "ops/rope.h"

#include <algorithm>
#include <cmath>

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

template <class T>
struct Tables {
  Rows<T> cos_SP, sin_SP;
  std::int64_t seq_len, pairs;
};

// Of q or of k, here and below.
template <class T>
void forward(const Tensor& out_THN, const Tensor& rstd_TH, const Tensor& in_THN, const Tensor& weight_N,
             const Tables<T>& tables, double eps) {
  const Rows<T> out_rows(out_THN), rstd_rows(rstd_TH), in_rows(in_THN);
  const T* weight = weight_N.as<T>();
  const std::int64_t heads = rstd_TH.dim(1), pairs = tables.pairs, width = 2 * pairs;
#pragma omp parallel for schedule(static) if (in_THN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < in_THN.rows(); ++t) {
    const T* cos = tables.cos_SP[t % tables.seq_len];
    const T* sin = tables.sin_SP[t % tables.seq_len];
    for (std::int64_t h = 0; h < heads; ++h) {
      const T* in = in_rows[t] + h * width;
      T* out = out_rows[t] + h * width;
      const T rstd = reciprocal_rms(in, width, eps);
      rstd_rows[t][h] = rstd;
#pragma omp simd
      for (std::int64_t p = 0; p < pairs; ++p) {
        const T a = in[p] * rstd * weight[p], b = in[p + pairs] * rstd * weight[p + pairs];
        out[p] = a * cos[p] - b * sin[p];
        out[p + pairs] = b * cos[p] + a * sin[p];
      }
    }
  }
}

template <class T>
void backward(const Tensor& din_THN, const Tensor& dweight_N, const Tensor& dout_THN, const Tensor& in_THN,
              const Tensor& rstd_TH, const Tensor& weight_N, const Tables<T>& tables, Context& ctx) {
  const Rows<T> din_rows(din_THN), dout_rows(dout_THN), in_rows(in_THN), rstd_rows(rstd_TH);
  const T* weight = weight_N.as<T>();
  const std::int64_t n_rows = in_THN.rows(), heads = rstd_TH.dim(1), pairs = tables.pairs, width = 2 * pairs;
  const bool parallel = in_THN.numel() >= kParallelElements;

  ScratchScope scope(ctx.scratch);
  const RowBlocks blocks(n_rows);
  const Rows<T> partial_rows(ctx.scratch.take({blocks.count, width}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    T* partial = partial_rows[block];  // the block's part of dweight
    std::fill_n(partial, width, T(0));
    const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
    for (std::int64_t t = block * blocks.rows; t < last; ++t) {
      const T* cos = tables.cos_SP[t % tables.seq_len];
      const T* sin = tables.sin_SP[t % tables.seq_len];
      for (std::int64_t h = 0; h < heads; ++h) {
        const T* dout = dout_rows[t] + h * width;
        const T* in = in_rows[t] + h * width;
        T* din = din_rows[t] + h * width;  // dy first
        const T rstd = rstd_rows[t][h];
#pragma omp simd
        for (std::int64_t p = 0; p < pairs; ++p) {
          din[p] = dout[p] * cos[p] + dout[p + pairs] * sin[p];
          din[p + pairs] = dout[p + pairs] * cos[p] - dout[p] * sin[p];
        }
        const double sum =
            sum_in_lanes(width, [=](std::int64_t n) { return din[n] * weight[n] * (in[n] * rstd); });
        const T mean = static_cast<T>(sum / static_cast<double>(width));
#pragma omp simd
        for (std::int64_t n = 0; n < width; ++n) {
          const T x = in[n] * rstd, dy = din[n];
          din[n] = rstd * (dy * weight[n] - x * mean);
          partial[n] += dy * x;
        }
      }
    }
  }

  add_block_sums(dweight_N.as<T>(), partial_rows, blocks, 0, width, false);  // too little for a team
}

// q's and k's columns of a projection.
QueryKey columns_of(const Tensor& qkv_TM, const QueryKey& like) {
  return {qkv_TM.columns(0, like.q.dim(1)), qkv_TM.columns(like.q.dim(1), like.k.dim(1))};
}

template <class T>
Tables<T> tables_of(const Tensor& cos_SP, const Tensor& sin_SP, std::int64_t seq_len) {
  return {Rows<T>(cos_SP), Rows<T>(sin_SP), seq_len, cos_SP.dim(1)};
}

template <class T>
void qk_norm_rope_forward_on_cpu(QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
                                 Tensor sin_SP, std::int64_t seq_len, double eps) {
  const QueryKey in = columns_of(qkv_TM, out);
  const Tables<T> tables = tables_of<T>(cos_SP, sin_SP, seq_len);
  forward<T>(out.q, rstd.q, in.q, weight_N.q, tables, eps);
  forward<T>(out.k, rstd.k, in.k, weight_N.k, tables, eps);
}

template <class T>
void qk_norm_rope_backward_on_cpu(Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM,
                                  QueryKey rstd, QueryKey weight_N, Tensor cos_SP, Tensor sin_SP,
                                  std::int64_t seq_len, Context& ctx) {
  const QueryKey din = columns_of(dqkv_TM, dout), in = columns_of(qkv_TM, dout);
  const Tables<T> tables = tables_of<T>(cos_SP, sin_SP, seq_len);
  backward<T>(din.q, dweight_N.q, dout.q, in.q, rstd.q, weight_N.q, tables, ctx);
  backward<T>(din.k, dweight_N.k, dout.k, in.k, rstd.k, weight_N.k, tables, ctx);
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
