#include "ops/attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cuda/attention_cudnn.h"
#include "ops/cpu/attention_tiles.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

constexpr std::int64_t kQueryTile = 64;
constexpr std::int64_t kKeyTile = 128;

// Attention has no products in FP8: they are in bfloat16 wherever the run's are not in float32.
MatmulType product_type(const Context& ctx) {
  return ctx.matmul == MatmulType::f32 ? MatmulType::f32 : MatmulType::bf16;
}

// The keys, within one tile of them, that the query at position i sees: [begin, end) relative to the tile's
// first.
struct Visible {
  std::int64_t begin, end;
};

Visible visible_keys(std::int64_t kv_begin, std::int64_t i, std::int64_t key0, std::int64_t n_keys) {
  const std::int64_t begin = std::clamp<std::int64_t>(kv_begin - key0, 0, n_keys);
  return {begin, std::clamp<std::int64_t>(i + 1 - key0, begin, n_keys)};
}

// Loops over a row run in whole lanes, from and to a multiple of them: what is not seen in between must not
// count.
constexpr std::int64_t kLanes = 16;

Visible in_lanes(Visible see, std::int64_t n_keys) {
  return {see.begin / kLanes * kLanes, std::min(n_keys, (see.end + kLanes - 1) / kLanes * kLanes)};
}

// init and all term(j) of a range under `both`, which must be associative but for rounding: term j goes to lane
// j mod kLanes, and halves of lanes are folded. So the compiler may vectorise it, and one order holds
// everywhere.
template <class T, class Term, class Both>
T fold(Visible range, T init, Term&& term, Both&& both) {
  T lane[kLanes];
  std::fill_n(lane, kLanes, init);
  std::int64_t j = range.begin;
  for (; j + kLanes <= range.end; j += kLanes) {
#pragma omp simd
    for (std::int64_t l = 0; l < kLanes; ++l) lane[l] = both(lane[l], term(j + l));
  }
  for (std::int64_t l = 0; j + l < range.end; ++l) lane[l] = both(lane[l], term(j + l));
  T four[4];
#pragma omp simd
  for (std::int64_t l = 0; l < 4; ++l)
    four[l] = both(both(lane[l], lane[l + 4]), both(lane[l + 8], lane[l + 12]));
  return both(both(four[0], four[1]), both(four[2], four[3]));
}

template <class T>
void fill_outside(T* row, std::int64_t n, Visible range, T value) {
  std::fill(row, row + range.begin, value);
  std::fill(row + range.end, row + n, value);
}

// One softmax row of a tile, online: scores -> exp(scale*score - new max), zero where not visible; the running
// maximum and sum move on, and, where asked for, the running sum of exp(s - max) s. Returns the factor by which
// what was accumulated before must shrink.
template <class T>
T softmax_tile_row(T* score, std::int64_t n, Visible see, T scale, T* running_max, T* running_sum,
                   T* running_product) {
  if (see.begin == see.end) {
    std::fill_n(score, n, T(0));
    return T(1);
  }
  const Visible range = in_lanes(see, n);
  fill_outside(score, n, see, -std::numeric_limits<T>::infinity());
  const T max = fold(
      range, *running_max, [&](std::int64_t j) { return score[j] *= scale; },
      [](T a, T b) { return a < b ? b : a; });
  const T shrink = exp_of(*running_max - max);  // 0 on a row's first tile: its maximum was minus infinity
  const auto plus = [](T a, T b) { return a + b; };
  if (running_product != nullptr)
    *running_product = *running_product * shrink +
                       fold(
                           see, T(0), [&](std::int64_t j) { return exp_of(score[j] - max) * score[j]; }, plus);
  fill_outside(score, n, range, T(0));
  *running_sum = *running_sum * shrink +
                 fold(
                     range, T(0), [&](std::int64_t j) { return score[j] = exp_of(score[j] - max); }, plus);
  *running_max = max;
  return shrink;
}

std::int64_t smallest(const std::int32_t* values, std::int64_t n) {
  return *std::min_element(values, values + n);
}

template <class T>
void attention_forward_on_cpu(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                              Tensor kv_begin_T, const AttentionShape& shape, Tensor entropy_TH, Context& ctx) {
  const auto [n_seq, S, H, G, N, M, scale, before, window] = shape;
  if constexpr (std::is_same_v<T, float>) {
    if (has_attention_tiles(shape))
      return attention_forward_tiles(packed_word(ctx.matmul), out_THM, lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T,
                                     shape, entropy_TH, ctx);
  }
  const bool with_entropy = entropy_TH.defined();
  const MatmulType type = product_type(ctx);
  const std::int64_t tiles = (S + kQueryTile - 1) / kQueryTile;
  ScratchScope scope(ctx.scratch);
  const Tensor score_XBC = ctx.scratch.take(Shape{omp_get_max_threads(), kQueryTile, kKeyTile}, q_THN.dtype());
  if (ctx.measures()) return;

#pragma omp parallel for collapse(3) schedule(dynamic, 1)
  for (std::int64_t seq = 0; seq < n_seq; ++seq) {
    for (std::int64_t h = 0; h < H; ++h) {
      for (std::int64_t reversed = 0; reversed < tiles; ++reversed) {
        const std::int64_t i0 = (tiles - 1 - reversed) * kQueryTile;  // the tiles with most keys first
        const std::int64_t n_queries = std::min(kQueryTile, S - i0);
        const std::int64_t token0 = seq * S, key_row0 = seq * (before + S);
        const std::int64_t last_key = before + i0 + n_queries;
        const std::int64_t g = h / (H / G);
        const std::int32_t* kv_begin = kv_begin_T.as<std::int32_t>() + token0 + i0;
        T* score_BC = score_XBC.row<T>(omp_get_thread_num());
        const T* q = q_THN.row<T>(token0 + i0) + h * N;
        T* out = out_THM.row<T>(token0 + i0) + h * M;
        T running_max[kQueryTile], running_sum[kQueryTile], running_product[kQueryTile];
        std::fill_n(running_max, n_queries, -std::numeric_limits<T>::infinity());
        std::fill_n(running_sum, n_queries, T(0));
        std::fill_n(running_product, n_queries, T(0));
        for (std::int64_t i = 0; i < n_queries; ++i) std::fill_n(out + i * out_THM.row_stride(), M, T(0));

        for (std::int64_t key0 = smallest(kv_begin, n_queries); key0 < last_key; key0 += kKeyTile) {
          const std::int64_t n_keys = std::min(kKeyTile, last_key - key0);
          const T* k = k_TGN.row<T>(key_row0 + key0) + g * N;
          const T* v = v_TGM.row<T>(key_row0 + key0) + g * M;
          multiply<T>(type, Trans::no, Trans::yes, n_queries, n_keys, N, q, q_THN.row_stride(), k,
                      k_TGN.row_stride(), false, score_BC, kKeyTile);
          for (std::int64_t i = 0; i < n_queries; ++i) {
            const Visible see = visible_keys(kv_begin[i], before + i0 + i, key0, n_keys);
            const T shrink =
                softmax_tile_row(score_BC + i * kKeyTile, n_keys, see, static_cast<T>(scale), &running_max[i],
                                 &running_sum[i], with_entropy ? &running_product[i] : nullptr);
            T* out_M = out + i * out_THM.row_stride();
#pragma omp simd
            for (std::int64_t c = 0; c < M; ++c) out_M[c] *= shrink;
          }
          multiply<T>(type, Trans::no, Trans::no, n_queries, M, n_keys, score_BC, kKeyTile, v,
                      v_TGM.row_stride(), true, out, out_THM.row_stride());
        }
        for (std::int64_t i = 0; i < n_queries; ++i) {
          T* out_M = out + i * out_THM.row_stride();
          const T inverse = T(1) / running_sum[i];
#pragma omp simd
          for (std::int64_t c = 0; c < M; ++c) out_M[c] *= inverse;
          const T lse = running_max[i] + std::log(running_sum[i]);
          lse_TH.row<T>(token0 + i0 + i)[h] = lse;
          // -sum P log P with log P = s - lse
          if (with_entropy) entropy_TH.row<T>(token0 + i0 + i)[h] = lse - running_product[i] * inverse;
        }
      }
    }
  }
}

template <class T>
void attention_row_entropy_on_cpu(Tensor entropy_T, Tensor entropy_TH, Tensor kv_begin_T, std::int64_t seq_len,
                                  std::int64_t n_past) {
  const std::int64_t H = entropy_TH.dim(1);
  const std::int32_t* kv_begin = kv_begin_T.as<std::int32_t>();
  for (std::int64_t t = 0; t < entropy_TH.rows(); ++t) {
    const T* entropy = entropy_TH.row<T>(t);
    double sum = 0;
    for (std::int64_t h = 0; h < H; ++h) sum += static_cast<double>(entropy[h]);
    const auto length = static_cast<double>(n_past + t % seq_len + 1 - kv_begin[t]);
    entropy_T.as<T>()[t] = length > 1 ? static_cast<T>(sum / static_cast<double>(H) / std::log(length)) : T(0);
  }
}

// One task owns a key-value head of one sequence and all query heads that read it, so that dq, dk and dv are
// each written by one thread, in a fixed order.
template <class T>
void attention_backward_on_cpu(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                               Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
                               const AttentionShape& shape, Context& ctx) {
  const auto [n_seq, S, H, G, N, M, scale_double, before, window] = shape;
  SY_CHECK(before == 0, "gradients need the queries of all {} keys before", before);
  if constexpr (std::is_same_v<T, float>) {
    if (has_attention_tiles(shape))
      return attention_backward_tiles(packed_word(ctx.matmul), dq_THN, dk_TGN, dv_TGM, dout_THM, out_THM,
                                      lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape, ctx);
  }
  const T scale = static_cast<T>(scale_double);
  const MatmulType type = product_type(ctx);
  ScratchScope scope(ctx.scratch);
  const std::int64_t threads = omp_get_max_threads();
  const Tensor prob_XBC = ctx.scratch.take(Shape{threads, kQueryTile, kKeyTile}, q_THN.dtype());
  const Tensor dscore_XBC = ctx.scratch.take(Shape{threads, kQueryTile, kKeyTile}, q_THN.dtype());
  if (ctx.measures()) return;

#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (std::int64_t seq = 0; seq < n_seq; ++seq) {
    for (std::int64_t g = 0; g < G; ++g) {
      const std::int64_t token0 = seq * S;
      T* prob_BC = prob_XBC.row<T>(omp_get_thread_num());
      T* dscore_BC = dscore_XBC.row<T>(omp_get_thread_num());
      for (std::int64_t t = token0; t < token0 + S; ++t) {
        std::fill_n(dk_TGN.row<T>(t) + g * N, N, T(0));
        std::fill_n(dv_TGM.row<T>(t) + g * M, M, T(0));
      }
      for (std::int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
        for (std::int64_t i0 = 0; i0 < S; i0 += kQueryTile) {
          const std::int64_t n_queries = std::min(kQueryTile, S - i0);
          const std::int32_t* kv_begin = kv_begin_T.as<std::int32_t>() + token0 + i0;
          const T* q = q_THN.row<T>(token0 + i0) + h * N;
          const T* dout = dout_THM.row<T>(token0 + i0) + h * M;
          T* dq = dq_THN.row<T>(token0 + i0) + h * N;
          T delta[kQueryTile], lse[kQueryTile];
          for (std::int64_t i = 0; i < n_queries; ++i) {
            const T* out_M = out_THM.row<T>(token0 + i0 + i) + h * M;
            const T* dout_M = dout + i * dout_THM.row_stride();
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::int64_t c = 0; c < M; ++c) sum += dout_M[c] * out_M[c];
            delta[i] = sum;
            lse[i] = lse_TH.row<T>(token0 + i0 + i)[h];
            std::fill_n(dq + i * dq_THN.row_stride(), N, T(0));
          }
          for (std::int64_t key0 = smallest(kv_begin, n_queries); key0 < i0 + n_queries; key0 += kKeyTile) {
            const std::int64_t n_keys = std::min(kKeyTile, i0 + n_queries - key0);
            const T* k = k_TGN.row<T>(token0 + key0) + g * N;
            const T* v = v_TGM.row<T>(token0 + key0) + g * M;
            T* dk = dk_TGN.row<T>(token0 + key0) + g * N;
            T* dv = dv_TGM.row<T>(token0 + key0) + g * M;
            multiply<T>(type, Trans::no, Trans::yes, n_queries, n_keys, N, q, q_THN.row_stride(), k,
                        k_TGN.row_stride(), false, prob_BC, kKeyTile);
            multiply<T>(type, Trans::no, Trans::yes, n_queries, n_keys, M, dout, dout_THM.row_stride(), v,
                        v_TGM.row_stride(), false, dscore_BC, kKeyTile);
            for (std::int64_t i = 0; i < n_queries; ++i) {
              const Visible see = visible_keys(kv_begin[i], i0 + i, key0, n_keys);
              T* prob = prob_BC + i * kKeyTile;
              T* dscore = dscore_BC + i * kKeyTile;
              const T row_lse = lse[i], row_delta = delta[i];
              const Visible range = in_lanes(see, n_keys);
#pragma omp simd
              for (std::int64_t j = range.begin; j < range.end; ++j) {
                prob[j] = exp_of(scale * prob[j] - row_lse);
                dscore[j] = scale * prob[j] * (dscore[j] - row_delta);
              }
              fill_outside(prob, n_keys, see, T(0));
              fill_outside(dscore, n_keys, see, T(0));
            }
            multiply<T>(type, Trans::yes, Trans::no, n_keys, M, n_queries, prob_BC, kKeyTile, dout,
                        dout_THM.row_stride(), true, dv, dv_TGM.row_stride());
            multiply<T>(type, Trans::no, Trans::no, n_queries, N, n_keys, dscore_BC, kKeyTile, k,
                        k_TGN.row_stride(), true, dq, dq_THN.row_stride());
            multiply<T>(type, Trans::yes, Trans::no, n_keys, N, n_queries, dscore_BC, kKeyTile, q,
                        q_THN.row_stride(), true, dk, dk_TGN.row_stride());
          }
        }
      }
    }
  }
}

// What forward and backward have in common. Heads lie side by side in a row.
void check_inputs(Signature& args, const Tensor& out_THM, const Tensor& lse_TH, const Tensor& q_THN,
                  const Tensor& k_TGN, const Tensor& v_TGM, const Tensor& kv_begin_T,
                  const AttentionShape& shape) {
  SY_CHECK(shape.n_kv_heads > 0 && shape.n_heads % shape.n_kv_heads == 0, "{} heads do not divide over {}",
           shape.n_heads, shape.n_kv_heads);
  const std::int64_t n_tokens = shape.n_seq * shape.seq_len, n_keys = n_tokens + shape.n_seq * shape.n_past;
  const DType real = q_THN.dtype();
  args.bind('T', n_tokens).bind('H', shape.n_heads);
  args(SY_ARG(q_THN), Shape{n_tokens, shape.n_heads * shape.head_dim}, real);
  args(SY_ARG(k_TGN), Shape{n_keys, shape.n_kv_heads * shape.head_dim}, real);
  args(SY_ARG(v_TGM), Shape{n_keys, shape.n_kv_heads * shape.v_head_dim}, real);
  args(SY_ARG(out_THM), Shape{n_tokens, shape.n_heads * shape.v_head_dim}, real);
  args(SY_ARG(lse_TH), accumulation_dtype(real))(SY_ARG(kv_begin_T), DType::i32);
}

// Pairs of a query and a key that it sees, of one head; for profiles. Waits for a device.
double visible_pairs(const Tensor& kv_begin_T, const AttentionShape& shape) {
  const HostCopy begin_T(kv_begin_T);
  double pairs = 0;
  for (std::int64_t t = 0; t < kv_begin_T.rows(); ++t)
    pairs += static_cast<double>(shape.n_past + t % shape.seq_len + 1 - begin_T->as<std::int32_t>()[t]);
  return pairs;
}

}  // namespace

void attention_forward(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                       Tensor kv_begin_T, const AttentionShape& shape, Tensor entropy_TH, Context& ctx) {
  Signature args(ctx);
  check_inputs(args, out_THM, lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape);
  args(SY_ARG(entropy_TH), lse_TH.dtype(), kOptional);
  args.multiplies([&] {  // q k^T and P v
    return visible_pairs(kv_begin_T, shape) *
           static_cast<double>(2 * shape.n_heads * (shape.head_dim + shape.v_head_dim));
  });
  measure(ctx, out_THM.dtype(), SY_CPU(attention_forward_on_cpu), out_THM, lse_TH, q_THN, k_TGN, v_TGM,
          kv_begin_T, shape, entropy_TH);
  run<&cuda::attention_forward>(ctx, out_THM.dtype(), SY_CPU(attention_forward_on_cpu), out_THM, lse_TH, q_THN,
                                k_TGN, v_TGM, kv_begin_T, shape, entropy_TH);
}

void attention_row_entropy(Tensor entropy_T, Tensor entropy_TH, Tensor kv_begin_T, std::int64_t seq_len,
                           std::int64_t n_past, Context& ctx) {
  const DType real = entropy_TH.dtype();
  Signature args(ctx);
  args(SY_ARG(entropy_TH), real)(SY_ARG(entropy_T), real)(SY_ARG(kv_begin_T), DType::i32);
  run<&cuda::attention_row_entropy>(ctx, real, SY_CPU(attention_row_entropy_on_cpu), entropy_T, entropy_TH,
                                    kv_begin_T, seq_len, n_past);
}

void attention_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                        Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
                        const AttentionShape& shape, Context& ctx) {
  Signature args(ctx);
  check_inputs(args, out_THM, lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape);
  args.like(q_THN, SY_ARG(dq_THN)).like(k_TGN, SY_ARG(dk_TGN)).like(v_TGM, SY_ARG(dv_TGM));
  args.like(out_THM, SY_ARG(dout_THM));
  args.multiplies([&] {  // q k^T once more, dout v^T, and those of dq, dk and dv
    return visible_pairs(kv_begin_T, shape) *
           static_cast<double>(2 * shape.n_heads * (3 * shape.head_dim + 2 * shape.v_head_dim));
  });
  measure(ctx, dq_THN.dtype(), SY_CPU(attention_backward_on_cpu), dq_THN, dk_TGN, dv_TGM, dout_THM, out_THM,
          lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape);
  run<&cuda::attention_backward>(ctx, dq_THN.dtype(), SY_CPU(attention_backward_on_cpu), dq_THN, dk_TGN, dv_TGM,
                                 dout_THM, out_THM, lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape);
}

std::string cudnn_attention_unavailable_reason(const AttentionShape& shape, Device device) {
  if (device == Device::cpu) return "the run computes on the CPU (--device), and cuDNN on a CUDA device alone";
  if constexpr (kHasCuda && cuda::kHasCudnn) return cuda::attention_cudnn_unavailable_reason(shape);
  return "this program was built without cuDNN: install cuDNN 9 and its headers and cudnn-frontend (pip "
         "install nvidia-cudnn-frontend), and build with -DSWITCHYARD_CUDNN=ON (docs/cuda.md)";
}

}  // namespace switchyard::ops
