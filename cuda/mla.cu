// Splitting moves packs of 16 bytes, each written once. The products with absorbed weights are for generating,
// with few tokens at a time: reading the weights is all the cost, so they are read once for every kTokens
// tokens, by enough warps to keep many loads in flight, and no tensor core is asked. All tensors of a call f32
// or all bf16; sums in f32.
#include "ops/mla.h"

#include <algorithm>

#include "elements.h"
#include "launch.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTokens = 4;  // that share a read of the weights

struct Widths {
  int heads, nope, rope, value;
};
Widths narrow(const MlaWidths& w) {
  return {static_cast<int>(w.heads), static_cast<int>(w.nope), static_cast<int>(w.rope),
          static_cast<int>(w.value)};
}

// A block does all pieces (packs, or what sums them) of tokens_a_block tokens.
struct Pieces {
  std::int64_t tokens;
  int tokens_a_block, a_token;
};
Pieces cut(std::int64_t tokens, std::int64_t pieces_a_token) {
  return {tokens,
          static_cast<int>(std::max<std::int64_t>(1, kThreads / std::max<std::int64_t>(1, pieces_a_token))),
          static_cast<int>(pieces_a_token)};
}
Launch grid_of(const Pieces& pieces) {
  return {blocks(ceil_div(pieces.tokens, pieces.tokens_a_block)), kThreads};
}
// Calls f(token, piece) for the thread's share.
template <class F>
__device__ __forceinline__ void for_pieces(const Pieces& pieces, F&& f) {
  for (int i = static_cast<int>(threadIdx.x); i < pieces.tokens_a_block * pieces.a_token; i += kThreads) {
    const std::int64_t t = std::int64_t{blockIdx.x} * pieces.tokens_a_block + i / pieces.a_token;
    if (t < pieces.tokens) f(t, i % pieces.a_token);
  }
}

template <class T, int kSize>
__global__ void __launch_bounds__(kThreads)
    split_forward_kernel(Rows<T> k_THN, Rows<T> v_THV, Rows<const T> kv_TM, Rows<const T> k_rope_TR, Widths w,
                         Pieces pieces) {
  const int pieces_a_head = (w.nope + w.rope + w.value) / kSize;
  for_pieces(pieces, [&](std::int64_t t, int piece) {
    const int head = piece / pieces_a_head, n = piece % pieces_a_head * kSize;
    const T* const kv = kv_TM[t] + head * (w.nope + w.value);
    T* const k = k_THN[t] + head * (w.nope + w.rope);
    if (n < w.nope) {
      store<kSize>(k + n, load<kSize>(kv + n));
    } else if (n < w.nope + w.rope) {
      store<kSize>(k + n, load<kSize>(k_rope_TR[t] + n - w.nope));
    } else {
      store<kSize>(v_THV[t] + head * w.value + n - w.nope - w.rope, load<kSize>(kv + n - w.rope));
    }
  });
}

// The first pieces of a token are the sums over heads, which take longest.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads)
    split_backward_kernel(Rows<T> dkv_TM, Rows<T> dk_rope_TR, Rows<const T> dk_THN, Rows<const T> dv_THV,
                          Widths w, Pieces pieces) {
  const int sums = w.rope / kSize, pieces_a_head = (w.nope + w.value) / kSize;
  for_pieces(pieces, [&](std::int64_t t, int piece) {
    if (piece < sums) {
      const T* const dk = dk_THN[t] + w.nope + piece * kSize;
      float sum[kSize] = {};
      for (int h = 0; h < w.heads; ++h) {
        const auto of_head = load<kSize>(dk + h * (w.nope + w.rope));
        for (int i = 0; i < kSize; ++i) sum[i] += to_float(of_head.element[i]);
      }
      Elements<T, kSize> out;
      for (int i = 0; i < kSize; ++i) out.element[i] = from_float<T>(sum[i]);
      store<kSize>(dk_rope_TR[t] + piece * kSize, out);
      return;
    }
    const int head = (piece - sums) / pieces_a_head, n = (piece - sums) % pieces_a_head * kSize;
    const T* const from =
        n < w.nope ? dk_THN[t] + head * (w.nope + w.rope) + n : dv_THV[t] + head * w.value + n - w.nope;
    store<kSize>(dkv_TM[t] + head * (w.nope + w.value) + n, load<kSize>(from));
  });
}

// What a block of the absorbed products works on: a piece of head blockIdx.y's outputs, of kTokens tokens.
struct Piece {
  int head, piece, first, count;  // tokens first to first + count
};
__device__ __forceinline__ Piece piece_of_block(int pieces, int tokens) {
  const int first = static_cast<int>(blockIdx.x) / pieces * kTokens;
  return {static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x) % pieces, first,
          tokens - first < kTokens ? tokens - first : kTokens};
}
Launch grid_of_pieces(std::int64_t pieces, std::int64_t tokens, std::int64_t heads) {
  return {{blocks(pieces * ceil_div(tokens, kTokens)), blocks_across(heads), 1}, kThreads};
}

template <int kSize>
struct QuerySums {
  float sum[kWarps][kTokens][kWarp * kSize];
};

// A lane has kSize columns of the latent, a warp the rows p = warp, warp + kWarps, ... of W_k; the warps' sums
// are added in ascending order.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads)
    absorb_query_kernel(Rows<T> q_latent_THL, Rows<const T> q_THN, Rows<const T> kv_b_MC, Widths w, int latent,
                        int pieces, int tokens) {
  const Piece own = piece_of_block(pieces, tokens);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_column = own.piece * kWarp * kSize, column = first_column + lane * kSize;
  const T* q_N[kTokens];  // behind the last token, the first again: its sums are not used
  for (int t = 0; t < kTokens; ++t)
    q_N[t] = q_THN[own.first + (t < own.count ? t : 0)] + own.head * (w.nope + w.rope);
  float sum[kTokens][kSize] = {};
  if (column < latent) {
    for (int p = warp; p < w.nope; p += kWarps) {
      const auto weight = load<kSize>(kv_b_MC[own.head * (w.nope + w.value) + p] + column);
      for (int t = 0; t < kTokens; ++t) {
        const float q = to_float(q_N[t][p]);
        for (int i = 0; i < kSize; ++i) sum[t][i] += q * to_float(weight.element[i]);
      }
    }
  }
  auto& shared = static_shared<QuerySums<kSize>>();
  for (int t = 0; t < kTokens; ++t)
    for (int i = 0; i < kSize; ++i) shared.sum[warp][t][lane * kSize + i] = sum[t][i];
  __syncthreads();
  T* const out_L = q_latent_THL[own.first] + own.head * (latent + w.rope);
  const int columns = latent - first_column < kWarp * kSize ? latent - first_column : kWarp * kSize;
  for (int i = static_cast<int>(threadIdx.x); i < own.count * columns; i += kThreads) {
    const int t = i / columns, c = i % columns;
    float total = 0;
    for (int from = 0; from < kWarps; ++from) total += shared.sum[from][t][c];
    out_L[t * q_latent_THL.stride + first_column + c] = from_float<T>(total);
  }
  if (own.piece > 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < own.count * w.rope; i += kThreads) {
    const int t = i / w.rope, r = i % w.rope;
    out_L[t * q_latent_THL.stride + latent + r] =
        q_THN[own.first + t][own.head * (w.nope + w.rope) + w.nope + r];
  }
}

// A warp has one row of W_v; the warps of a block are of one head, whose latents they find in the L1 cache.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads)
    expand_value_kernel(Rows<T> out_THV, Rows<const T> latent_THC, Rows<const T> kv_b_MC, Widths w, int latent,
                        int pieces, int tokens) {
  const Piece own = piece_of_block(pieces, tokens);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int v = own.piece * kWarps + warp;
  if (v >= w.value) return;  // the whole warp
  const T* const weight_C = kv_b_MC[own.head * (w.nope + w.value) + w.nope + v];
  const T* latent_C[kTokens];
  for (int t = 0; t < kTokens; ++t)
    latent_C[t] = latent_THC[own.first + (t < own.count ? t : 0)] + own.head * latent;
  float sum[kTokens] = {};
  for (int c = lane * kSize; c < latent; c += kWarp * kSize) {
    const auto weight = load<kSize>(weight_C + c);
    for (int t = 0; t < kTokens; ++t) {
      const auto x = load<kSize>(latent_C[t] + c);
      for (int i = 0; i < kSize; ++i) sum[t] += to_float(weight.element[i]) * to_float(x.element[i]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const float total = reduce_warp<Sum>(sum[t]);
    if (lane == 0 && t < own.count) out_THV[own.first + t][own.head * w.value + v] = from_float<T>(total);
  }
}

template <class T>
bool are_packs(const MlaWidths& w, std::initializer_list<Tensor> tensors) {
  return w.nope % kPack<T> == 0 && w.rope % kPack<T> == 0 && w.value % kPack<T> == 0 &&
         std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& tensor) { return rows_are_packs<T>(tensor); });
}

}  // namespace

void mla_split_forward(Tensor k_THN, Tensor v_THV, Tensor kv_TM, Tensor k_rope_TR, const MlaWidths& widths,
                       Context& ctx) {
  with_element(k_THN.dtype(), [&]<class T>() {
    with_pack<T>(are_packs<T>(widths, {k_THN, v_THV, kv_TM, k_rope_TR}), [&]<int kSize>() {
      const Pieces pieces =
          cut(k_THN.rows(), widths.heads * (widths.nope + widths.rope + widths.value) / kSize);
      launch("mla_split_forward", split_forward_kernel<T, kSize>, grid_of(pieces), ctx, rows_of<T>(k_THN),
             rows_of<T>(v_THV), rows_of<const T>(kv_TM), rows_of<const T>(k_rope_TR), narrow(widths), pieces);
    });
  });
}

void mla_split_backward(Tensor dkv_TM, Tensor dk_rope_TR, Tensor dk_THN, Tensor dv_THV, const MlaWidths& widths,
                        Context& ctx) {
  with_element(dk_THN.dtype(), [&]<class T>() {
    with_pack<T>(are_packs<T>(widths, {dkv_TM, dk_rope_TR, dk_THN, dv_THV}), [&]<int kSize>() {
      const Pieces pieces =
          cut(dk_THN.rows(), (widths.rope + widths.heads * (widths.nope + widths.value)) / kSize);
      launch("mla_split_backward", split_backward_kernel<T, kSize>, grid_of(pieces), ctx, rows_of<T>(dkv_TM),
             rows_of<T>(dk_rope_TR), rows_of<const T>(dk_THN), rows_of<const T>(dv_THV), narrow(widths),
             pieces);
    });
  });
}

void mla_absorb_query(Tensor q_latent_THL, Tensor q_THN, Tensor kv_b_MC, const MlaWidths& widths,
                      Context& ctx) {
  const std::int64_t latent = kv_b_MC.dim(1), tokens = q_THN.rows();
  with_element(q_THN.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(kv_b_MC), [&]<int kSize>() {
      const std::int64_t pieces = ceil_div(latent, kWarp * kSize);
      launch("mla_absorb_query", absorb_query_kernel<T, kSize>, grid_of_pieces(pieces, tokens, widths.heads),
             ctx, rows_of<T>(q_latent_THL), rows_of<const T>(q_THN), rows_of<const T>(kv_b_MC), narrow(widths),
             latent, pieces, tokens);
    });
  });
}

void mla_expand_value(Tensor out_THV, Tensor latent_THC, Tensor kv_b_MC, const MlaWidths& widths,
                      Context& ctx) {
  const std::int64_t latent = kv_b_MC.dim(1), tokens = out_THV.rows();
  with_element(out_THV.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(kv_b_MC) && rows_are_packs<T>(latent_THC), [&]<int kSize>() {
      const std::int64_t pieces = ceil_div(widths.value, kWarps);
      launch("mla_expand_value", expand_value_kernel<T, kSize>, grid_of_pieces(pieces, tokens, widths.heads),
             ctx, rows_of<T>(out_THV), rows_of<const T>(latent_THC), rows_of<const T>(kv_b_MC), narrow(widths),
             latent, pieces, tokens);
    });
  });
}

}  // namespace switchyard::ops::cuda
