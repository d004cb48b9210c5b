#include "ops/rope.h"

#include <algorithm>
#include <bit>

#include "device.h"
#include "divisor.h"
#include "elements.h"
#include "launch.h"
#include "partials.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

// A thread turns as many pairs as two packs of 16 bytes hold, whichever way a head is paired: every element is
// read and written once, and the table comes from the caches, since all heads of a token share its row. x f32
// or bf16, turned in f32; the tables are f32 for both: an angle's cosine in bf16 would be wrong in the third
// digit. frequency_P on host or device.

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    table_kernel(Rows<float> cos_SP, Rows<float> sin_SP, const double* frequency_P, double scale,
                 std::int64_t positions, int pairs) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= positions * pairs) return;
  const std::int64_t s = i / pairs, p = i % pairs;
  const double angle = static_cast<double>(s) * frequency_P[p];
  cos_SP[s][p] = static_cast<float>(scale * cos(angle));
  sin_SP[s][p] = static_cast<float>(scale * sin(angle));
}

// A turn is the work on kSize pairs.
struct Sizes {
  int tokens, head_dim, pairs, tokens_a_block;
  Divisor seq_len, turns_a_head, turns_a_token;
};

// Turns by the table's angle times `direction`, 1 or -1.
template <class T, int kSize, bool kHalves>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(Rows<T> x_THN, Rows<const float> cos_SP, Rows<const float> sin_SP, float direction, Sizes s) {
  for (int i = static_cast<int>(threadIdx.x); i < s.tokens_a_block * s.turns_a_token; i += kThreads) {
    const int t = static_cast<int>(blockIdx.x) * s.tokens_a_block + i / s.turns_a_token;
    if (t >= s.tokens) return;
    const int turn = i % s.turns_a_token, head = turn / s.turns_a_head, pair = turn % s.turns_a_head * kSize;
    const int position = t % s.seq_len;
    T* const x = x_THN[t] + (head + 1) * s.head_dim - 2 * s.pairs;
    T* const low = x + (kHalves ? pair : 2 * pair);
    T* const high = low + (kHalves ? s.pairs : kSize);
    const auto cosine = load<kSize>(cos_SP[position] + pair), sine = load<kSize>(sin_SP[position] + pair);
    Elements<T, kSize> both[2] = {load<kSize>(low), load<kSize>(high)};
    for (int p = 0; p < kSize; ++p) {
      T& first = kHalves ? both[0].element[p] : both[2 * p / kSize].element[2 * p % kSize];
      T& second = kHalves ? both[1].element[p] : both[(2 * p + 1) / kSize].element[(2 * p + 1) % kSize];
      const float a = to_float(first), b = to_float(second);
      const float c = cosine.element[p], d = direction * sine.element[p];
      first = from_float<T>(a * c - b * d);
      second = from_float<T>(b * c + a * d);
    }
    store<kSize>(low, both[0]);
    store<kSize>(high, both[1]);
  }
}

// Whether packs of T, and of as many floats of the table, lie at multiples of their size.
template <class T>
bool turns_are_packs(const Tensor& x_THN, const Tensor& cos_SP, const Tensor& sin_SP,
                     const RopeLayout& layout) {
  return rows_are_packs<T>(x_THN) && layout.head_dim % kPack<T> == 0 &&
         rows_are_packs<float, kPack<T>>(cos_SP) && rows_are_packs<float, kPack<T>>(sin_SP);
}

void rotate(const char* op, Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
            const RopeLayout& layout, float direction, Context& ctx) {
  SY_CHECK(x_THN.rows() <= INT32_MAX / 2, "{} tokens", x_THN.rows());
  const std::int64_t pairs = cos_SP.dim(1), heads = x_THN.dim(1) / layout.head_dim;
  with_element(x_THN.dtype(), [&]<class T>() {
    with_pack<T>(turns_are_packs<T>(x_THN, cos_SP, sin_SP, layout), [&]<int kSize>() {
      const std::int64_t tokens_a_block =
          std::max<std::int64_t>(1, kThreads / std::max<std::int64_t>(1, heads * pairs / kSize));
      const auto turns_a_head = static_cast<int>(pairs / kSize);
      const Sizes sizes{
          static_cast<int>(x_THN.rows()),        static_cast<int>(layout.head_dim), static_cast<int>(pairs),
          static_cast<int>(tokens_a_block),      static_cast<int>(seq_len),         turns_a_head,
          static_cast<int>(heads) * turns_a_head};
      const auto kernel =
          layout.pairs == RopePairs::halves ? rotate_kernel<T, kSize, true> : rotate_kernel<T, kSize, false>;
      launch(op, kernel, {blocks(ceil_div(x_THN.rows(), tokens_a_block)), kThreads}, ctx, rows_of<T>(x_THN),
             rows_of<const float>(cos_SP), rows_of<const float>(sin_SP), direction, sizes);
    });
  });
}

}  // namespace

void rope_table(Tensor cos_SP, Tensor sin_SP, Tensor frequency_P, double scale, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Tensor frequency = on_device(frequency_P, ctx);
  launch("rope_table", table_kernel, {blocks(ceil_div(cos_SP.numel(), kThreads)), kThreads}, ctx,
         rows_of<float>(cos_SP), rows_of<float>(sin_SP), frequency.as<double>(), scale, cos_SP.rows(),
         cos_SP.dim(1));
}

void rope_forward(Tensor x_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                  Context& ctx) {
  rotate("rope_forward", x_THN, cos_SP, sin_SP, seq_len, layout, 1, ctx);
}

void rope_backward(Tensor dx_THN, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len, const RopeLayout& layout,
                   Context& ctx) {
  rotate("rope_backward", dx_THN, cos_SP, sin_SP, seq_len, layout, -1, ctx);
}

// A head belongs to as many lanes of a warp as it has pairs of packs: each lane holds a pack of 16 bytes of the
// first half and the one of the second half that it turns with, from its load to its store. A warp has several
// heads (4 of 128 values in bf16). Heads that are not of packs, or wider than a warp's, go element by element.
//   Backward: a block goes over the heads of some tokens, q's, then k's, and each lane keeps the sums for the
// weights of its own columns in registers. qkv, out, weights and the gradients of qkv and out f32, or all bf16;
// rstd, tables and dweight_N f32 always. All arithmetic in f32, rounded once, at the end.

namespace {

struct HeadSizes {
  int tokens, pairs;
  Divisor seq_len, heads;  // of a token, q's and k's together
  Divisor lanes;           // of a head: a power of two
};
struct Tables {
  Rows<const float> cos_SP, sin_SP;
};
// Heads of q or of k.
template <class T>
struct ForwardHeads {
  Rows<T> out_THN;
  Rows<float> rstd_TH;
  Rows<const T> in_THN;
  const T* weight_N;
  int heads;
};
template <class T>
struct BackwardHeads {
  Rows<T> din_THN;
  Rows<const T> dout_THN, in_THN;
  Rows<const float> rstd_TH;
  const T* weight_N;
  Divisor heads;
};

// What a lane holds of a head, first half and second: kTurns times kSize neighbours.
template <int kSize, int kTurns>
struct Halves {
  static constexpr int kCount = kSize * kTurns;
  float low[kCount], high[kCount];
};

// Calls f(turn, pair) for each first pair of this lane's turns.
template <int kSize, int kTurns, class F>
__device__ __forceinline__ void for_each_turn(const HeadSizes& s, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) & (s.lanes - 1);
  SY_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int pair = (turn * s.lanes + lane) * kSize;
    if (pair < s.pairs) f(turn, pair);
  }
}

// The halves of x, zeros where this lane has none.
template <int kSize, int kTurns, class T>
__device__ __forceinline__ Halves<kSize, kTurns> load_halves(const T* x_N, const HeadSizes& s) {
  Halves<kSize, kTurns> x{};
  for_each_turn<kSize, kTurns>(s, [&](int turn, int pair) {
    const auto low = load<kSize>(x_N + pair), high = load<kSize>(x_N + s.pairs + pair);
    SY_UNROLL
    for (int i = 0; i < kSize; ++i) {
      x.low[turn * kSize + i] = to_float(low.element[i]);
      x.high[turn * kSize + i] = to_float(high.element[i]);
    }
  });
  return x;
}
template <class T, int kSize, int kTurns>
__device__ __forceinline__ void store_halves(T* x_N, const Halves<kSize, kTurns>& x, const HeadSizes& s) {
  for_each_turn<kSize, kTurns>(s, [&](int turn, int pair) {
    Elements<T, kSize> low, high;
    SY_UNROLL
    for (int i = 0; i < kSize; ++i) {
      low.element[i] = from_float<T>(x.low[turn * kSize + i]);
      high.element[i] = from_float<T>(x.high[turn * kSize + i]);
    }
    store<kSize>(x_N + pair, low);
    store<kSize>(x_N + s.pairs + pair, high);
  });
}

// Turns by the angles of position t mod seq_len, times `direction`, 1 or -1.
template <int kSize, int kTurns>
__device__ __forceinline__ void turn_halves(Halves<kSize, kTurns>& x, const Tables& tables, int t,
                                            float direction, const HeadSizes& s) {
  const float *const cos_P = tables.cos_SP[t % s.seq_len], *const sin_P = tables.sin_SP[t % s.seq_len];
  for_each_turn<kSize, kTurns>(s, [&](int turn, int pair) {
    const auto cosine = load<kSize>(cos_P + pair), sine = load<kSize>(sin_P + pair);
    SY_UNROLL
    for (int i = 0; i < kSize; ++i) {
      float &low = x.low[turn * kSize + i], &high = x.high[turn * kSize + i];
      const float a = low, b = high, c = cosine.element[i], d = direction * sine.element[i];
      low = a * c - b * d;
      high = b * c + a * d;
    }
  });
}

template <class T, int kSize, int kTurns>
__global__ void __launch_bounds__(kThreads)
    norm_rope_forward_kernel(ForwardHeads<T> q, ForwardHeads<T> k, Tables tables, float eps, HeadSizes s) {
  using X = Halves<kSize, kTurns>;
  const int head =
      static_cast<int>(blockIdx.x) * (kThreads / s.lanes) + static_cast<int>(threadIdx.x) / s.lanes;
  const int t = head / s.heads;
  const bool inside = t < s.tokens;
  const int h_of_both = head % s.heads;
  const bool of_q = h_of_both < q.heads;
  const int h = of_q ? h_of_both : h_of_both - q.heads, column = h * 2 * s.pairs;
  X x{};
  if (inside) x = load_halves<kSize, kTurns>((of_q ? q.in_THN : k.in_THN)[t] + column, s);
  float squares = 0;
  SY_UNROLL
  for (int i = 0; i < X::kCount; ++i) squares += x.low[i] * x.low[i] + x.high[i] * x.high[i];
  squares = reduce_lanes<Sum>(squares, s.lanes);
  if (!inside) return;
  const float rstd = rsqrtf(squares / static_cast<float>(2 * s.pairs) + eps);
  if ((static_cast<int>(threadIdx.x) & (s.lanes - 1)) == 0) (of_q ? q.rstd_TH : k.rstd_TH)[t][h] = rstd;
  const X weight = load_halves<kSize, kTurns>(of_q ? q.weight_N : k.weight_N, s);
  SY_UNROLL
  for (int i = 0; i < X::kCount; ++i) {
    x.low[i] *= rstd * weight.low[i];
    x.high[i] *= rstd * weight.high[i];
  }
  turn_halves(x, tables, t, 1, s);
  store_halves((of_q ? q.out_THN : k.out_THN)[t] + column, x, s);
}

// dx of the heads of tokens [first, last), and partial_N = the sum of dy x over them. All threads of the block.
template <class T, int kSize, int kTurns>
__device__ __forceinline__ void backward_of(const BackwardHeads<T>& side, float* partial_N,
                                            const Tables& tables, int first, int last, const HeadSizes& s) {
  using X = Halves<kSize, kTurns>;
  const int group = static_cast<int>(threadIdx.x) / s.lanes, groups = kThreads / s.lanes;
  const int width = 2 * s.pairs, n = (last - first) * side.heads;
  const float inverse_width = 1 / static_cast<float>(width);
  X sum{};
  for (int i0 = 0; i0 < n; i0 += groups) {
    const bool inside = i0 + group < n;
    const int of_block = (i0 + group) / side.heads, h = (i0 + group) % side.heads, t = first + of_block;
    X x{}, dy{};
    if (inside) {
      x = load_halves<kSize, kTurns>(side.in_THN[t] + h * width, s);
      dy = load_halves<kSize, kTurns>(side.dout_THN[t] + h * width, s);
      turn_halves(dy, tables, t, -1, s);
    }
    const float rstd = inside ? side.rstd_TH[t][h] : 0;
    const X weight = load_halves<kSize, kTurns>(side.weight_N, s);
    float product = 0;
    SY_UNROLL
    for (int i = 0; i < X::kCount; ++i) {
      x.low[i] *= rstd;
      x.high[i] *= rstd;
      sum.low[i] += dy.low[i] * x.low[i];
      sum.high[i] += dy.high[i] * x.high[i];
      dy.low[i] *= weight.low[i];  // g from here on
      dy.high[i] *= weight.high[i];
      product += dy.low[i] * x.low[i] + dy.high[i] * x.high[i];
    }
    const float mean = reduce_lanes<Sum>(product, s.lanes) * inverse_width;
    if (!inside) continue;
    SY_UNROLL
    for (int i = 0; i < X::kCount; ++i) {
      dy.low[i] = rstd * (dy.low[i] - x.low[i] * mean);
      dy.high[i] = rstd * (dy.high[i] - x.high[i] * mean);
    }
    store_halves(side.din_THN[t] + h * width, dy, s);
  }
  auto* const sum_GN = static_cast<float*>(dynamic_shared());
  __syncthreads();  // nobody reads the sums of a call before any more
  store_halves(sum_GN + group * width, sum, s);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) {
    float of_column = 0;
    for (int g = 0; g < groups; ++g) of_column += sum_GN[g * width + c];
    partial_N[c] = of_column;
  }
}

// A row of partial_BN: q's sums, then k's.
template <class T, int kSize, int kTurns>
__global__ void __launch_bounds__(kThreads, kTurns == 1 ? 3 : 1)
    norm_rope_backward_kernel(BackwardHeads<T> q, BackwardHeads<T> k, Rows<float> partial_BN, Tables tables,
                              int tokens_a_block, HeadSizes s) {
  const int first = static_cast<int>(blockIdx.x) * tokens_a_block;
  const int last = std::min(first + tokens_a_block, s.tokens);
  float* const partial_N = partial_BN[blockIdx.x];
  backward_of<T, kSize, kTurns>(q, partial_N, tables, first, last, s);
  backward_of<T, kSize, kTurns>(k, partial_N + 2 * s.pairs, tables, first, last, s);
}

// Calls f.operator()<kSize, kTurns>(lanes of a head).
template <class T, class F>
void with_layout(std::int64_t pairs, bool packs, F&& f) {
  const auto lanes = [&](int size) {
    const auto turns = static_cast<std::uint64_t>(ceil_div(pairs, size));
    return static_cast<int>(std::min<std::uint64_t>(kWarp, std::bit_ceil(turns)));
  };
  if (packs && pairs <= kWarp * kPack<T>) return f.template operator()<kPack<T>, 1>(lanes(kPack<T>));
  constexpr int kMostTurns = 12;
  SY_CHECK(pairs <= kWarp * kMostTurns, "norm and rotation of heads of {}; the kernel has room for {}",
           2 * pairs, 2 * kWarp * kMostTurns);
  f.template operator()<1, kMostTurns>(lanes(1));
}

// Whether halves of these heads, and as many floats of the tables, lie at multiples of a pack.
template <class T>
bool are_packs(std::initializer_list<Tensor> heads, const Tensor& cos_SP, const Tensor& sin_SP) {
  return cos_SP.dim(1) % kPack<T> == 0 && rows_are_packs<float, kPack<T>>(cos_SP) &&
         rows_are_packs<float, kPack<T>>(sin_SP) &&
         std::all_of(heads.begin(), heads.end(), [](const Tensor& x) { return rows_are_packs<T>(x); });
}

HeadSizes sizes_of(const Tensor& cos_SP, std::int64_t seq_len, const QueryKey& rstd, int lanes) {
  const std::int64_t n_heads = rstd.q.numel() + rstd.k.numel();
  SY_CHECK(n_heads <= INT32_MAX / 2, "{} heads of tokens", n_heads);
  return {static_cast<int>(rstd.q.rows()), static_cast<int>(cos_SP.dim(1)), static_cast<int>(seq_len),
          static_cast<int>(rstd.q.dim(1) + rstd.k.dim(1)), lanes};
}

// q's and k's columns of a projection.
QueryKey columns_of(const Tensor& qkv_TM, const QueryKey& like) {
  return {qkv_TM.columns(0, like.q.dim(1)), qkv_TM.columns(like.q.dim(1), like.k.dim(1))};
}

}  // namespace

void qk_norm_rope_forward(QueryKey out, QueryKey rstd, Tensor qkv_TM, QueryKey weight_N, Tensor cos_SP,
                          Tensor sin_SP, std::int64_t seq_len, double eps, Context& ctx) {
  const QueryKey in = columns_of(qkv_TM, out);
  const Tables tables{rows_of<const float>(cos_SP), rows_of<const float>(sin_SP)};
  with_element(qkv_TM.dtype(), [&]<class T>() {
    const bool packs = are_packs<T>({in.q, in.k, out.q, out.k, weight_N.q, weight_N.k}, cos_SP, sin_SP);
    with_layout<T>(cos_SP.dim(1), packs, [&]<int kSize, int kTurns>(int lanes) {
      const auto heads = [&](Tensor QueryKey::*side) {
        return ForwardHeads<T>{rows_of<T>(out.*side), rows_of<float>(rstd.*side), rows_of<const T>(in.*side),
                               (weight_N.*side).template as<T>(), static_cast<int>((rstd.*side).dim(1))};
      };
      launch("qk_norm_rope_forward", norm_rope_forward_kernel<T, kSize, kTurns>,
             {blocks(ceil_div((rstd.q.numel() + rstd.k.numel()) * lanes, kThreads)), kThreads}, ctx,
             heads(&QueryKey::q), heads(&QueryKey::k), tables, eps, sizes_of(cos_SP, seq_len, rstd, lanes));
    });
  });
}

void qk_norm_rope_backward(Tensor dqkv_TM, QueryKey dweight_N, QueryKey dout, Tensor qkv_TM, QueryKey rstd,
                           QueryKey weight_N, Tensor cos_SP, Tensor sin_SP, std::int64_t seq_len,
                           Context& ctx) {
  const QueryKey in = columns_of(qkv_TM, dout), din = columns_of(dqkv_TM, dout);
  const Tables tables{rows_of<const float>(cos_SP), rows_of<const float>(sin_SP)};
  const std::int64_t width = 2 * cos_SP.dim(1);
  ScratchScope scope(ctx.scratch);
  with_element(qkv_TM.dtype(), [&]<class T>() {
    const bool packs =
        are_packs<T>({in.q, in.k, din.q, din.k, dout.q, dout.k, weight_N.q, weight_N.k}, cos_SP, sin_SP);
    with_layout<T>(cos_SP.dim(1), packs, [&]<int kSize, int kTurns>(int lanes) {
      const auto heads = [&](Tensor QueryKey::*side) {
        return BackwardHeads<T>{rows_of<T>(din.*side),
                                rows_of<const T>(dout.*side),
                                rows_of<const T>(in.*side),
                                rows_of<const float>(rstd.*side),
                                (weight_N.*side).template as<T>(),
                                static_cast<int>((rstd.*side).dim(1))};
      };
      // Each lane some four heads at least: fewer are not worth a block's sums. Three blocks for each
      // multiprocessor of a large device, as many as it holds.
      const std::int64_t heads_a_block = 4 * kThreads / lanes, heads_a_token = rstd.q.dim(1) + rstd.k.dim(1);
      const RowRange range(qkv_TM.rows(), ceil_div(heads_a_block, heads_a_token), 396);
      const Tensor partial_BN = ctx.scratch.take({range.blocks, 2 * width}, DType::f32);
      const std::size_t shared_bytes = sizeof(float) * static_cast<std::size_t>(kThreads / lanes * width);
      launch("qk_norm_rope_backward", norm_rope_backward_kernel<T, kSize, kTurns>,
             {blocks(range.blocks), kThreads, shared_bytes}, ctx, heads(&QueryKey::q), heads(&QueryKey::k),
             rows_of<float>(partial_BN), tables, range.rows, sizes_of(cos_SP, seq_len, rstd, lanes));
      const char* const op = "qk_norm_rope_backward: sums";
      sum_partials<float, float>(op, dweight_N.q, partial_BN.columns(0, width), Partials::add, ctx);
      sum_partials<float, float>(op, dweight_N.k, partial_BN.columns(width, width), Partials::add, ctx);
    });
  });
}

}  // namespace switchyard::ops::cuda
