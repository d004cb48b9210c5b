// FlashAttention (Dao et al., arXiv 2205.14135, 2307.08691). One block holds a tile of query rows and goes over
// the keys that they see (output, dq), or a tile of keys and goes over the rows that see them (dk, dv): each
// result is written by one block, in a fixed order, at the price of computing the scores twice in backward.
//   The kernels of this file compute in float32 and take any head sizes: they serve f32, and the bf16 heads
// that those of the tensor cores (attention_mma.cu, attention_wgmma.cu) do not, such as absorbed latent
// attention's of 576 values. Legend: as ops/attention.h; R rows of a query tile (attention_tiles.h), C keys of
// a key tile, X a head's width. q, k, v, out and their gradients f32, or all bf16; lse and entropies f32
// always, kv_begin_T i32. scale > 0.
#include "ops/attention.h"

#include <cmath>

#include "attention_cudnn.h"
#include "attention_tiles.h"
#include "elements.h"
#include "launch.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kTile = 32;  // rows and keys
constexpr int kThreads = 128;
constexpr int kMaxWidths = 1536;  // of the head sums that a block holds in shared memory: 192 KiB

// A tile of kTile x kTile; the pad keeps a column's elements in different banks.
struct Square {
  float at[kTile][kTile + 1];
};
struct Shared {
  Square left, right, prob, dscore;
};

// A thread's share of a tile: rows y + 16 i and columns x + 8 j. The 8 threads of a row are neighbours.
struct Share {
  static constexpr int kRows = 2, kColumns = 4;
  float at[kRows][kColumns];
  static __device__ __forceinline__ int row(int i) { return static_cast<int>(threadIdx.x) / 8 + 16 * i; }
  static __device__ __forceinline__ int column(int j) { return static_cast<int>(threadIdx.x) % 8 + 8 * j; }
};
template <class Op>
__device__ __forceinline__ float reduce_row(float value) {
  for (int lanes = 4; lanes > 0; lanes /= 2) value = Op::of(value, __shfl_xor_sync(kFullWarp, value, lanes));
  return value;
}

// Columns [x0, x0 + kTile) of rows [row0, row0 + kTile), zero from n_rows and width on.
template <class R>
__device__ __forceinline__ void load_square(Square& to, const R& rows, int row0, int n_rows, int x0,
                                            int width) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kThreads) {
    const int row = i / kTile, x = i % kTile;
    to.at[row][x] = row0 + row < n_rows && x0 + x < width ? to_float(rows[row0 + row][x0 + x]) : 0;
  }
}

// a b^T for the tiles of rows of a and b that begin at a0 and b0. All threads of the block.
template <class A, class B>
__device__ __forceinline__ Share scores_of(Shared& shared, const A& a, int a0, int n_a, const B& b, int b0,
                                           int n_b, int width) {
  Share sum{};
  for (int x0 = 0; x0 < width; x0 += kTile) {
    __syncthreads();
    load_square(shared.left, a, a0, n_a, x0, width);
    load_square(shared.right, b, b0, n_b, x0, width);
    __syncthreads();
    for (int x = 0; x < kTile; ++x) {
      for (int i = 0; i < Share::kRows; ++i) {
        for (int j = 0; j < Share::kColumns; ++j)
          sum.at[i][j] += shared.left.at[Share::row(i)][x] * shared.right.at[Share::column(j)][x];
      }
    }
  }
  return sum;
}

__device__ __forceinline__ void store_square(Square& to, const Share& share) {
  for (int i = 0; i < Share::kRows; ++i) {
    for (int j = 0; j < Share::kColumns; ++j) to.at[Share::row(i)][Share::column(j)] = share.at[i][j];
  }
}

// sum = shrink sum + weight b, for sums [kTile][width] in shared memory of which each thread has its own. All
// threads of the block.
template <class B>
__device__ __forceinline__ void accumulate(float* sum_X, const float (&shrink)[Share::kRows], Square& weight,
                                           const B& b, int b0, int n_b, int width, Square& piece) {
  for (int x0 = 0; x0 < width; x0 += kTile) {
    __syncthreads();
    load_square(piece, b, b0, n_b, x0, width);
    __syncthreads();
    for (int i = 0; i < Share::kRows; ++i) {
      for (int j = 0; j < Share::kColumns; ++j) {
        const int row = Share::row(i), x = Share::column(j);
        if (x0 + x >= width) continue;
        float sum = sum_X[row * width + x0 + x] * shrink[i];
        for (int c = 0; c < kTile; ++c) sum += weight.at[row][c] * piece.at[c][x];
        sum_X[row * width + x0 + x] = sum;
      }
    }
  }
}
__device__ __forceinline__ void clear(float* sum_X, int width) {
  for (int i = 0; i < Share::kRows; ++i) {
    for (int x = Share::column(0); x < width; x += 8) sum_X[Share::row(i) * width + x] = 0;
  }
}
// rows[row0 + row] = factor[row] sum[row], up to n_rows.
template <class R, class T>
__device__ __forceinline__ void write_sums(const R& rows, int row0, int n_rows, const float* sum_X, int width,
                                           const float (&factor)[Share::kRows], T) {
  for (int i = 0; i < Share::kRows; ++i) {
    const int row = Share::row(i);
    if (row0 + row >= n_rows) continue;
    for (int x = Share::column(0); x < width; x += 8)
      rows[row0 + row][x] = from_float<T>(sum_X[row * width + x] * factor[i]);
  }
}

template <class T>
struct Operands {
  Rows<const T> q_THN, k_TGN, v_TGM;
  const int* kv_begin_T;
  AttentionSizes sizes;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Rows<T> out_THM, Rows<float> lse_TH, Rows<float> entropy_TH, Operands<T> in, int n_tiles) {
  auto& shared = static_shared<Shared>();
  auto* const sum_RM = static_cast<float*>(dynamic_shared());
  const AttentionSizes& sizes = in.sizes;
  AttentionPlace place = attention_place(sizes, n_tiles);
  place.tile = n_tiles - 1 - place.tile;  // those with most keys first
  const auto q = query_rows(in.q_THN, sizes, place, sizes.width_N);
  const auto k = key_rows(in.k_TGN, sizes, place, sizes.width_N);
  const auto v = key_rows(in.v_TGM, sizes, place, sizes.width_M);
  const int* const kv_begin_S = in.kv_begin_T + std::int64_t{place.seq} * sizes.seq_len;
  const int row0 = place.tile * kTile, n_rows = sizes.rows();

  KeyRange seen[Share::kRows];
  float max[Share::kRows], sum[Share::kRows], product[Share::kRows];  // product: of exp(s - max) s
  for (int i = 0; i < Share::kRows; ++i) {
    seen[i] = keys_of_row(kv_begin_S, sizes, row0 + Share::row(i));
    max[i] = -INFINITY;
    sum[i] = product[i] = 0;
  }
  clear(sum_RM, sizes.width_M);
  const KeyRange keys = keys_of_tile<kTile>(kv_begin_S, sizes, row0).some;
  for (int key0 = keys.begin; key0 < keys.end; key0 += kTile) {
    Share s = scores_of(shared, q, row0, n_rows, k, key0, keys.end, sizes.width_N);
    float shrink[Share::kRows];
    for (int i = 0; i < Share::kRows; ++i) {
      float tile_max = -INFINITY, tile_sum = 0, tile_product = 0;
      for (int j = 0; j < Share::kColumns; ++j) {
        s.at[i][j] = seen[i].has(key0 + Share::column(j)) ? s.at[i][j] * sizes.scale : -INFINITY;
        tile_max = std::max(tile_max, s.at[i][j]);
      }
      const float new_max = std::max(max[i], reduce_row<Max>(tile_max));
      const float shift = new_max == -INFINITY ? 0 : new_max;  // nothing seen so far
      for (int j = 0; j < Share::kColumns; ++j) {
        const float p = expf(s.at[i][j] - shift);
        if (p > 0) tile_product += p * s.at[i][j];
        tile_sum += p;
        s.at[i][j] = p;
      }
      shrink[i] = expf(max[i] - shift);
      sum[i] = sum[i] * shrink[i] + reduce_row<Sum>(tile_sum);
      product[i] = product[i] * shrink[i] + reduce_row<Sum>(tile_product);
      max[i] = new_max;
    }
    store_square(shared.prob, s);
    accumulate(sum_RM, shrink, shared.prob, v, key0, keys.end, sizes.width_M, shared.right);
  }
  float inverse[Share::kRows];
  for (int i = 0; i < Share::kRows; ++i) {
    const int r = row0 + Share::row(i);
    inverse[i] = 1 / sum[i];
    if (r >= n_rows || Share::column(0) != 0) continue;
    const float lse = max[i] + logf(sum[i]);
    *query_rows(lse_TH, sizes, place, 1)[r] = lse;
    // -sum P log P with log P = s - lse
    if (entropy_TH.data != nullptr) *query_rows(entropy_TH, sizes, place, 1)[r] = lse - product[i] * inverse[i];
  }
  write_sums(query_rows(out_THM, sizes, place, sizes.width_M), row0, n_rows, sum_RM, sizes.width_M, inverse,
             T{});
}

// One warp a head's row: delta = sum of dout * out.
template <class T, int kSize>
__global__ void __launch_bounds__(256)
    delta_kernel(Rows<float> delta_TH, Rows<const T> dout_THM, Rows<const T> out_THM, std::int64_t n_heads_rows,
                 int n_heads, int width) {
  const std::int64_t row = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  if (row >= n_heads_rows) return;  // the whole warp
  const std::int64_t t = row / n_heads, h = row % n_heads;
  const T *const dout = dout_THM[t] + h * width, *const out = out_THM[t] + h * width;
  float sum = 0;
  for (int m = static_cast<int>(threadIdx.x) % kWarp * kSize; m < width; m += kWarp * kSize) {
    const auto dy = load<kSize>(dout + m), y = load<kSize>(out + m);
    for (int i = 0; i < kSize; ++i) sum += to_float(dy.element[i]) * to_float(y.element[i]);
  }
  sum = reduce_warp<Sum>(sum);
  if (threadIdx.x % kWarp == 0) delta_TH[t][h] = sum;
}

template <class T>
struct Gradients {
  Rows<const T> dout_THM;
  Rows<const float> lse_TH, delta_TH;
};

// P = exp(scale s - lse) and dS = scale P (dP - delta) of one element.
struct Derivative {
  float prob, dscore;
};
__device__ __forceinline__ Derivative derivative(float score, float dprob, float lse, float delta, bool seen,
                                                 float scale) {
  const float p = seen ? expf(score * scale - lse) : 0;
  return {p, p * (dprob - delta) * scale};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dq_kernel(Rows<T> dq_THN, Operands<T> in, Gradients<T> gradients, int n_tiles) {
  auto& shared = static_shared<Shared>();
  auto* const sum_RN = static_cast<float*>(dynamic_shared());
  const AttentionSizes& sizes = in.sizes;
  AttentionPlace place = attention_place(sizes, n_tiles);
  place.tile = n_tiles - 1 - place.tile;  // those with most keys first
  const auto q = query_rows(in.q_THN, sizes, place, sizes.width_N);
  const auto k = key_rows(in.k_TGN, sizes, place, sizes.width_N);
  const auto v = key_rows(in.v_TGM, sizes, place, sizes.width_M);
  const auto dout = query_rows(gradients.dout_THM, sizes, place, sizes.width_M);
  const int* const kv_begin_S = in.kv_begin_T + std::int64_t{place.seq} * sizes.seq_len;
  const int row0 = place.tile * kTile, n_rows = sizes.rows();

  KeyRange seen[Share::kRows];
  float lse[Share::kRows], delta[Share::kRows];
  for (int i = 0; i < Share::kRows; ++i) {
    const int r = std::min(row0 + Share::row(i), n_rows - 1);
    seen[i] = keys_of_row(kv_begin_S, sizes, row0 + Share::row(i));
    lse[i] = *query_rows(gradients.lse_TH, sizes, place, 1)[r];
    delta[i] = *query_rows(gradients.delta_TH, sizes, place, 1)[r];
  }
  clear(sum_RN, sizes.width_N);
  const KeyRange keys = keys_of_tile<kTile>(kv_begin_S, sizes, row0).some;
  for (int key0 = keys.begin; key0 < keys.end; key0 += kTile) {
    Share s = scores_of(shared, q, row0, n_rows, k, key0, keys.end, sizes.width_N);
    const Share dprob = scores_of(shared, dout, row0, n_rows, v, key0, keys.end, sizes.width_M);
    for (int i = 0; i < Share::kRows; ++i) {
      for (int j = 0; j < Share::kColumns; ++j)
        s.at[i][j] = derivative(s.at[i][j], dprob.at[i][j], lse[i], delta[i],
                                seen[i].has(key0 + Share::column(j)), sizes.scale)
                         .dscore;
    }
    store_square(shared.dscore, s);
    accumulate(sum_RN, {1, 1}, shared.dscore, k, key0, keys.end, sizes.width_N, shared.right);
  }
  write_sums(query_rows(dq_THN, sizes, place, sizes.width_N), row0, n_rows, sum_RN, sizes.width_N, {1, 1}, T{});
}

// Scores are transposed here: a tile's rows are keys, its columns query rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dkv_kernel(Rows<T> dk_TGN, Rows<T> dv_TGM, Operands<T> in, Gradients<T> gradients, int n_tiles) {
  auto& shared = static_shared<Shared>();
  const AttentionSizes& sizes = in.sizes;
  auto* const dk_CN = static_cast<float*>(dynamic_shared());
  auto* const dv_CM = dk_CN + kTile * sizes.width_N;
  const AttentionPlace place = attention_place(sizes, n_tiles);
  const auto q = query_rows(in.q_THN, sizes, place, sizes.width_N);
  const auto k = key_rows(in.k_TGN, sizes, place, sizes.width_N);
  const auto v = key_rows(in.v_TGM, sizes, place, sizes.width_M);
  const auto dout = query_rows(gradients.dout_THM, sizes, place, sizes.width_M);
  const int* const kv_begin_S = in.kv_begin_T + std::int64_t{place.seq} * sizes.seq_len;
  const int key0 = place.tile * kTile, n_keys = sizes.keys();

  clear(dk_CN, sizes.width_N);
  clear(dv_CM, sizes.width_M);
  const TileRows rows = rows_of_keys<kThreads>(kv_begin_S, sizes, key0, key0 + kTile);
  for (int row0 = rows.begin; row0 < rows.end; row0 += kTile) {
    Share s = scores_of(shared, k, key0, n_keys, q, row0, rows.end, sizes.width_N);
    Share dprob = scores_of(shared, v, key0, n_keys, dout, row0, rows.end, sizes.width_M);
    for (int j = 0; j < Share::kColumns; ++j) {
      const int r = row0 + Share::column(j), inside = std::min(r, rows.end - 1);
      const KeyRange seen = keys_of_row(kv_begin_S, sizes, r);
      const float lse = *query_rows(gradients.lse_TH, sizes, place, 1)[inside];
      const float delta = *query_rows(gradients.delta_TH, sizes, place, 1)[inside];
      for (int i = 0; i < Share::kRows; ++i) {
        const auto [p, dscore] = derivative(s.at[i][j], dprob.at[i][j], lse, delta,
                                            seen.has(key0 + Share::row(i)) && r < rows.end, sizes.scale);
        s.at[i][j] = p;
        dprob.at[i][j] = dscore;
      }
    }
    store_square(shared.prob, s);
    store_square(shared.dscore, dprob);
    accumulate(dv_CM, {1, 1}, shared.prob, dout, row0, rows.end, sizes.width_M, shared.right);
    accumulate(dk_CN, {1, 1}, shared.dscore, q, row0, rows.end, sizes.width_N, shared.right);
  }
  write_sums(key_rows(dk_TGN, sizes, place, sizes.width_N), key0, n_keys, dk_CN, sizes.width_N, {1, 1}, T{});
  write_sums(key_rows(dv_TGM, sizes, place, sizes.width_M), key0, n_keys, dv_CM, sizes.width_M, {1, 1}, T{});
}

__global__ void __launch_bounds__(256)
    row_entropy_kernel(float* entropy_T, Rows<const float> entropy_TH, const int* kv_begin_T,
                       std::int64_t n_tokens, int n_heads, int seq_len, int n_past) {
  const std::int64_t t = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t >= n_tokens) return;
  float sum = 0;
  for (int h = 0; h < n_heads; ++h) sum += entropy_TH[t][h];
  const int length = n_past + static_cast<int>(t % seq_len) + 1 - kv_begin_T[t];
  entropy_T[t] = length > 1 ? sum / static_cast<float>(n_heads) / logf(static_cast<float>(length)) : 0;
}

__global__ void __launch_bounds__(256)
    lse_by_head_kernel(float* lse_BHS, Rows<const float> lse_TH, std::int64_t n, std::int64_t n_heads,
                       std::int64_t seq_len) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const std::int64_t s = i % seq_len, h = i / seq_len % n_heads, b = i / seq_len / n_heads;
  lse_BHS[i] = lse_TH[b * seq_len + s][h];
}

AttentionSizes sizes_of(const AttentionShape& shape) {
  const std::int64_t group = shape.n_heads / shape.n_kv_heads;
  SY_CHECK(shape.scale > 0, "scores scaled by {}", shape.scale);
  SY_CHECK((shape.n_past + shape.seq_len) * group < (std::int64_t{1} << 30),
           "attention over {} positions for {} heads a key: beyond what the kernels index",
           shape.n_past + shape.seq_len, group);
  return {static_cast<int>(shape.seq_len), static_cast<int>(shape.n_past),   static_cast<int>(shape.n_kv_heads),
          static_cast<int>(group),         static_cast<int>(shape.head_dim), static_cast<int>(shape.v_head_dim),
          static_cast<float>(shape.scale)};
}

std::size_t shared_bytes(std::int64_t width) {
  SY_CHECK(width <= kMaxWidths, "heads of {} values together; the kernel has room for {}", width, kMaxWidths);
  return static_cast<std::size_t>(width * kTile) * sizeof(float);
}

template <class T, class Call>
Operands<T> operands_of(const Call& x) {
  return {rows_of<const T>(x.q_THN), rows_of<const T>(x.k_TGN), rows_of<const T>(x.v_TGM),
          x.kv_begin_T.template as<std::int32_t>(), x.sizes};
}

template <class T>
void forward_any(const AttentionForward& x, Context& ctx) {
  const std::int64_t n_tiles = ceil_div(x.sizes.rows(), kTile);
  launch("attention_forward", forward_kernel<T>,
         {blocks(x.n_seq * x.sizes.n_kv_heads * n_tiles), kThreads, shared_bytes(x.sizes.width_M)}, ctx,
         rows_of<T>(x.out_THM), rows_of<float>(x.lse_TH), entropy_rows(x), operands_of<T>(x), n_tiles);
}

template <class T>
void backward_any(const AttentionBackward& x, Context& ctx) {
  const std::int64_t heads = x.n_seq * x.sizes.n_kv_heads;
  const std::int64_t row_tiles = ceil_div(x.sizes.rows(), kTile), key_tiles = ceil_div(x.sizes.keys(), kTile);
  const Gradients<T> gradients{rows_of<const T>(x.dout_THM), rows_of<const float>(x.lse_TH),
                               rows_of<const float>(x.delta_TH)};
  launch("attention_backward: dq", dq_kernel<T>,
         {blocks(heads * row_tiles), kThreads, shared_bytes(x.sizes.width_N)}, ctx, rows_of<T>(x.dq_THN),
         operands_of<T>(x), gradients, row_tiles);
  launch("attention_backward: dk, dv", dkv_kernel<T>,
         {blocks(heads * key_tiles), kThreads, shared_bytes(x.sizes.width_N + x.sizes.width_M)}, ctx,
         rows_of<T>(x.dk_TGN), rows_of<T>(x.dv_TGM), operands_of<T>(x), gradients, key_tiles);
}

template <class T>
void delta(const Tensor& delta_TH, const Tensor& dout_THM, const Tensor& out_THM, Context& ctx) {
  const std::int64_t n_heads = delta_TH.dim(1), width = dout_THM.row_size() / n_heads;
  const bool packs = rows_are_packs<T>(dout_THM) && rows_are_packs<T>(out_THM) && width % kPack<T> == 0;
  with_pack<T>(packs, [&]<int kSize>() {
    launch("attention_backward: delta", delta_kernel<T, kSize>,
           {blocks(ceil_div(delta_TH.numel() * kWarp, 256)), 256}, ctx, rows_of<float>(delta_TH),
           rows_of<const T>(dout_THM), rows_of<const T>(out_THM), delta_TH.numel(), n_heads, width);
  });
}

}  // namespace

void attention_forward(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                       Tensor kv_begin_T, const AttentionShape& shape, Tensor entropy_TH, Context& ctx) {
  if constexpr (kHasCudnn) {
    if (ctx.attention == AttentionBackend::cudnn) {
      SY_CHECK(!entropy_TH.defined(), "cuDNN does not give the entropy of attention");
      return attention_cudnn_forward(out_THM, lse_TH, q_THN, k_TGN, v_TGM, shape, ctx);
    }
  }
  SY_CHECK(ctx.attention == AttentionBackend::flash, "this program was built without cuDNN");
  const AttentionForward x{out_THM, lse_TH,     entropy_TH,      q_THN,      k_TGN,
                           v_TGM,   kv_begin_T, sizes_of(shape), shape.n_seq};
  if (attention_wgmma(x, ctx)) return;
  if (attention_mma_serves(x)) return attention_mma(x, ctx);
  with_element(q_THN.dtype(), [&]<class T>() { forward_any<T>(x, ctx); });
}

void attention_row_entropy(Tensor entropy_T, Tensor entropy_TH, Tensor kv_begin_T, std::int64_t seq_len,
                           std::int64_t n_past, Context& ctx) {
  launch("attention_row_entropy", row_entropy_kernel, {blocks(ceil_div(entropy_TH.rows(), 256)), 256}, ctx,
         entropy_T.as<float>(), rows_of<const float>(entropy_TH), kv_begin_T.as<std::int32_t>(),
         entropy_TH.rows(), entropy_TH.dim(1), seq_len, n_past);
}

void attention_lse_by_head(Tensor lse_BHS, Tensor lse_TH, Context& ctx) {
  launch("attention_lse_by_head", lse_by_head_kernel, {blocks(ceil_div(lse_BHS.numel(), 256)), 256}, ctx,
         lse_BHS.as<float>(), rows_of<const float>(lse_TH), lse_BHS.numel(), lse_BHS.dim(1), lse_BHS.dim(2));
}

void attention_backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM,
                        Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
                        const AttentionShape& shape, Context& ctx) {
  SY_CHECK(shape.n_past == 0, "gradients need the queries of all {} keys before", shape.n_past);
  if constexpr (kHasCudnn) {
    if (ctx.attention == AttentionBackend::cudnn)
      return attention_cudnn_backward(dq_THN, dk_TGN, dv_TGM, dout_THM, out_THM, lse_TH, q_THN, k_TGN, v_TGM,
                                      shape, ctx);
  }
  SY_CHECK(ctx.attention == AttentionBackend::flash, "this program was built without cuDNN");
  ScratchScope scope(ctx.scratch);
  const Tensor delta_TH = ctx.scratch.take(lse_TH.shape(), DType::f32);
  const AttentionBackward x{dq_THN, dk_TGN, dv_TGM, dout_THM,   delta_TH,        lse_TH,
                            q_THN,  k_TGN,  v_TGM,  kv_begin_T, sizes_of(shape), shape.n_seq};
  with_element(q_THN.dtype(), [&]<class T>() {
    delta<T>(delta_TH, dout_THM, out_THM, ctx);
    if (attention_wgmma(x, ctx)) return;
    if (attention_mma_serves(x)) return attention_mma(x, ctx);
    backward_any<T>(x, ctx);
  });
}

}  // namespace switchyard::ops::cuda
