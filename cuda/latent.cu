// The latent width is small, sixteen as a rule, so most of this is a few loads a row. Three sums are more:
//   - moments: a thread has one entry of the matrix and goes over a block's rows, which stay in the L1 cache;
//   - pair distances: tiles of 64 x 64 pairs, their rows in shared memory, 4 x 4 pairs a thread in registers:
//     a row read serves 64 others, where the CPU reads all rows for each;
//   - routed sums: a warp takes an expert and votes on 32 slots at a time: its sums stay in registers, tokens
//     are added in ascending order, and there is no atomic.
// Lengths and a row's distances are in float32, what is added up over rows in double. All f32 but what is f64
// in ops/latent.h, which may lie on the host: the call waits then. clear_skipped_rows also takes bf16.
#include "ops/latent.h"

#include <algorithm>
#include <limits>

#include "elements.h"
#include "for_each_pack.h"
#include "launch.h"
#include "partials.h"
#include "reduce.h"
#include "warp_per_row.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr float kLeastLength = 1e-12f;

// Which rows count.
struct Counted {
  const std::int32_t* token_R;  // null: all
  __device__ __forceinline__ bool operator()(std::int64_t r) const { return !token_R || token_R[r] >= 0; }
};
Counted counted(const Tensor& token_R) { return {token_R.defined() ? token_R.as<std::int32_t>() : nullptr}; }

struct CountRow {
  Counted counts;
  __device__ void operator()(std::int64_t r, double* sum) const { *sum += counts(r) ? 1 : 0; }
};

// Calls f<elements at once>() for operators over elements of equal rows.
template <class F>
void with_packs_of(std::initializer_list<Tensor> tensors, F&& f) {
  with_pack<float>(std::all_of(tensors.begin(), tensors.end(), rows_are_packs<float>), f);
}

// ---- rows of length one: a warp a row ----

__global__ void __launch_bounds__(kThreads)
    unit_forward_kernel(Rows<float> unit_Rd, Rows<float> norm_R, Rows<const float> in_Rd, std::int64_t n_rows,
                        int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t r = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (r >= n_rows) return;  // the whole warp
  float squares = 0;
  for (int j = lane; j < width; j += kWarp) squares += in_Rd[r][j] * in_Rd[r][j];
  const float length = sqrtf(reduce_warp<Sum>(squares)), inverse = length < kLeastLength ? 0 : 1 / length;
  if (lane == 0) *norm_R[r] = length;
  for (int j = lane; j < width; j += kWarp) unit_Rd[r][j] = in_Rd[r][j] * inverse;
}

__global__ void __launch_bounds__(kThreads)
    unit_backward_kernel(Rows<float> din_Rd, Rows<const float> dunit_Rd, Rows<const float> unit_Rd,
                         Rows<const float> norm_R, std::int64_t n_rows, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t r = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (r >= n_rows || *norm_R[r] < kLeastLength) return;  // the whole warp
  float along = 0;
  for (int j = lane; j < width; j += kWarp) along += unit_Rd[r][j] * dunit_Rd[r][j];
  along = reduce_warp<Sum>(along);
  const float inverse = 1 / *norm_R[r];
  for (int j = lane; j < width; j += kWarp) din_Rd[r][j] += (dunit_Rd[r][j] - unit_Rd[r][j] * along) * inverse;
}

// ---- moments and the gradient of what is a function of them ----

// partial_BN: of each block of rows, the d x d products and, as one row more, the sums. Blocks (rows, entries).
__global__ void __launch_bounds__(kThreads)
    moments_kernel(Rows<double> partial_BN, Rows<const float> unit_Rd, Counted counts, std::int64_t n_rows,
                   std::int64_t rows_a_block, int width) {
  const int entry = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int i = entry / width, j = entry % width;
  if (i > width) return;
  const std::int64_t first = std::int64_t{blockIdx.y} * rows_a_block;
  const std::int64_t last = first + rows_a_block < n_rows ? first + rows_a_block : n_rows;
  double sum = 0;
  for (std::int64_t r = first; r < last; ++r) {
    if (!counts(r)) continue;
    const float* const row = unit_Rd[r];
    sum += (i < width ? static_cast<double>(row[i]) : 1.0) * static_cast<double>(row[j]);
  }
  partial_BN[blockIdx.y][entry] = sum;
}

constexpr int kAffineRows = 4;  // of a thread: each element of the matrix serves as many

__global__ void __launch_bounds__(kThreads)
    affine_kernel(Rows<float> dunit_Rd, Rows<const float> unit_Rd, const double* matrix_dd,
                  const double* offset_d, Counted counts, std::int64_t n_rows, int width) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t first = thread / width * kAffineRows;
  const int i = static_cast<int>(thread % width);
  if (first >= n_rows) return;
  const float* row[kAffineRows];  // behind the last row, the first again: its sums are not used
  double sum[kAffineRows];
  for (int k = 0; k < kAffineRows; ++k) {
    row[k] = unit_Rd[first + k < n_rows ? first + k : first];
    sum[k] = offset_d[i];
  }
  for (int j = 0; j < width; ++j) {
    const double element = matrix_dd[static_cast<std::int64_t>(i) * width + j];
    for (int k = 0; k < kAffineRows; ++k) sum[k] += element * static_cast<double>(row[k][j]);
  }
  for (int k = 0; k < kAffineRows; ++k) {
    if (first + k < n_rows && counts(first + k)) dunit_Rd[first + k][i] += static_cast<float>(sum[k]);
  }
}

// ---- distances of all pairs ----

constexpr int kTile = 64, kDepth = 16;            // rows of a tile, and elements of a row at one time
constexpr int kSide = 16, kEach = kTile / kSide;  // a thread's rows are kSide apart, as its others are

struct PairTiles {
  float own[kDepth][kTile + 1], other[kDepth][kTile + 1];
  float inverse[kTile][kTile + 1];  // of the distances
};

struct Pairs {
  Rows<const float> Y_Rd;
  Counted counts;
  std::int64_t n_rows;
  int width;

  __device__ __forceinline__ bool has(std::int64_t r) const { return r < n_rows && counts(r); }
  // to[c][row] = Y[first + row][column + c]; zero where there is none or it does not count.
  __device__ __forceinline__ void load_tile(float (&to)[kDepth][kTile + 1], std::int64_t first,
                                            int column) const {
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kDepth; e += kThreads) {
      const int row = e / kDepth, c = e % kDepth;
      to[c][row] = column + c < width && has(first + row) ? Y_Rd[first + row][column + c] : 0;
    }
  }
  // The squared distances of the thread's pairs, row + kSide a of one tile and column + kSide b of the other.
  // The last columns to be loaded are those of `chunk`, and they stay in shared memory.
  __device__ __forceinline__ void squares(float (&square)[kEach][kEach], std::int64_t own_first,
                                          std::int64_t other_first, int chunk) const {
    auto& tiles = static_shared<PairTiles>();
    const int row = static_cast<int>(threadIdx.x) / kSide, column = static_cast<int>(threadIdx.x) % kSide;
    for (auto& line : square)
      for (float& value : line) value = 0;
    const int chunks = (width + kDepth - 1) / kDepth;
    for (int s = 1; s <= chunks; ++s) {
      const int first_column = (chunk + s) % chunks * kDepth;
      __syncthreads();  // the tiles before these are done with
      load_tile(tiles.own, own_first, first_column);
      load_tile(tiles.other, other_first, first_column);
      __syncthreads();
      for (int c = 0; c < kDepth; ++c) {
        float own[kEach], other[kEach];
        for (int a = 0; a < kEach; ++a) own[a] = tiles.own[c][row + kSide * a];
        for (int b = 0; b < kEach; ++b) other[b] = tiles.other[c][column + kSide * b];
        for (int a = 0; a < kEach; ++a)
          for (int b = 0; b < kEach; ++b) square[a][b] += (own[a] - other[b]) * (own[a] - other[b]);
      }
    }
  }
};

// A block goes over its own tile and those behind it, whose pairs count twice.
__global__ void __launch_bounds__(kThreads, 2) distance_sum_kernel(Rows<double> partial_B1, Pairs pairs) {
  const int row = static_cast<int>(threadIdx.x) / kSide, column = static_cast<int>(threadIdx.x) % kSide;
  const std::int64_t own = std::int64_t{blockIdx.x} * kTile;
  double sum = 0;
  for (std::int64_t other = own; other < pairs.n_rows; other += kTile) {
    float square[kEach][kEach], of_tile = 0;
    pairs.squares(square, own, other, 0);
    for (int a = 0; a < kEach; ++a)
      for (int b = 0; b < kEach; ++b)
        if (pairs.has(own + row + kSide * a) && pairs.has(other + column + kSide * b))
          of_tile += sqrtf(square[a][b]);
    sum += (other == own ? 1 : 2) * static_cast<double>(of_tile);
  }
  sum = reduce_block<Sum, kThreads>(sum);
  if (threadIdx.x == 0) *partial_B1[blockIdx.x] = sum;
}

// dY_Rd[i] += 2 scale_1 * sum_j (Y_i - Y_j) / |Y_i - Y_j|: a pair counts in both orders. Blocks (tiles of rows,
// chunks of kDepth columns).
__global__ void __launch_bounds__(kThreads, 2)
    distance_backward_kernel(Rows<float> dY_Rd, Pairs pairs, const double* scale_1) {
  auto& tiles = static_shared<PairTiles>();
  const int row = static_cast<int>(threadIdx.x) / kSide, column = static_cast<int>(threadIdx.x) % kSide;
  const std::int64_t own = std::int64_t{blockIdx.x} * kTile;
  double sum[kEach] = {};  // of row + kSide a, at column `column` of the chunk
  static_assert(kSide == kDepth);
  for (std::int64_t other = 0; other < pairs.n_rows; other += kTile) {
    float square[kEach][kEach], of_tile[kEach] = {};
    pairs.squares(square, own, other, static_cast<int>(blockIdx.y));
    for (int a = 0; a < kEach; ++a)
      for (int b = 0; b < kEach; ++b) {
        const bool apart = square[a][b] > 0 && pairs.has(other + column + kSide * b);
        tiles.inverse[row + kSide * a][column + kSide * b] = apart ? 1 / sqrtf(square[a][b]) : 0;
      }
    __syncthreads();
    for (int j = 0; j < kTile; ++j) {
      const float value = tiles.other[column][j];
      for (int a = 0; a < kEach; ++a)
        of_tile[a] += (tiles.own[column][row + kSide * a] - value) * tiles.inverse[row + kSide * a][j];
    }
    for (int a = 0; a < kEach; ++a) sum[a] += static_cast<double>(of_tile[a]);
  }
  const int place = static_cast<int>(blockIdx.y) * kDepth + column;
  if (place >= pairs.width) return;
  for (int a = 0; a < kEach; ++a) {
    const std::int64_t r = own + row + kSide * a;
    if (pairs.has(r)) dY_Rd[r][place] += static_cast<float>(2 * *scale_1 * sum[a]);
  }
}

// ---- samples of a Gaussian and its divergence ----

template <int kSize>
struct Sample {
  Rows<float> z_Td;
  Rows<const float> mean_Td, log_var_Td, epsilon_Td;

  __device__ void operator()(std::int64_t t, std::int64_t j) const {
    const auto mean = load<kSize>(mean_Td[t] + j), log_var = load<kSize>(log_var_Td[t] + j);
    const auto epsilon = load<kSize>(epsilon_Td[t] + j);
    Elements<float, kSize> z;
    for (int i = 0; i < kSize; ++i)
      z.element[i] = mean.element[i] + epsilon.element[i] * expf(log_var.element[i] / 2);
    store<kSize>(z_Td[t] + j, z);
  }
};

struct AddKl {
  Rows<const float> mean_Td, log_var_Td;
  Counted counts;
  int width;

  __device__ void operator()(std::int64_t t, double* sum) const {
    if (!counts(t)) return;
    const float *const mean = mean_Td[t], *const log_var = log_var_Td[t];
    float of_row = 0;
    for (int j = 0; j < width; ++j) of_row += mean[j] * mean[j] + (expf(log_var[j]) - 1 - log_var[j]);
    *sum += static_cast<double>(of_row) / 2;
  }
};

struct KlBackward {
  Rows<float> dmean_Td, dlog_var_Td;
  Rows<const float> mean_Td, log_var_Td;
  Counted counts;
  float scale;

  __device__ void operator()(std::int64_t t, std::int64_t j) const {
    if (!counts(t)) return;
    dmean_Td[t][j] += scale * mean_Td[t][j];
    dlog_var_Td[t][j] += scale / 2 * (expf(log_var_Td[t][j]) - 1);
  }
};

// ---- sums of latents by expert ----

constexpr int kSlots = 2048;  // of a block's tokens
struct RoutedSlots {
  double share[kSlots];  // of the slot's expert, beyond what every expert has
  double other[kSlots];  // of every expert, of each token; 0 where the token has no expert
  std::int32_t expert[kSlots];
};

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// R[t,e] = (exp(s_e - m) for the chosen, exp(-m) for the others) / their sum, with m = max(s, and 0 where there
// are others): the second is
// the same for all experts, so it is summed once, as that of expert E. Blocks (tokens, 32 columns); column d is
// of ones. partial_BN: [E + 1, d + 1] of each block of tokens.
__global__ void __launch_bounds__(kThreads)
    routed_kernel(Rows<double> partial_BN, Rows<const float> z_Td, Rows<const float> chosen_TK,
                  Rows<const std::int32_t> expert_TK, std::int64_t n_tokens, int tokens_a_block, int slots,
                  int experts, int width) {
  auto& shared = *static_cast<RoutedSlots*>(dynamic_shared());
  const std::int64_t first = std::int64_t{blockIdx.x} * tokens_a_block;
  const int tokens = static_cast<int>(n_tokens - first < tokens_a_block ? n_tokens - first : tokens_a_block);
  const int n_slots = tokens * slots;
  for (int t = static_cast<int>(threadIdx.x); t < tokens; t += kThreads) {
    const float* const chosen = chosen_TK[first + t];
    const std::int32_t* const expert = expert_TK[first + t];
    double greatest = kMinusInfinity;
    int filled = 0;
    for (int k = 0; k < slots; ++k) {
      if (expert[k] < 0) continue;
      if (static_cast<double>(chosen[k]) > greatest) greatest = static_cast<double>(chosen[k]);
      ++filled;
    }
    if (filled < experts && greatest < 0) greatest = 0;
    const double other = filled < experts ? exp(-greatest) : 0;
    double total = static_cast<double>(experts - filled) * other;
    for (int k = 0; k < slots; ++k)
      if (expert[k] >= 0) total += exp(static_cast<double>(chosen[k]) - greatest);
    for (int k = 0; k < slots; ++k) {
      shared.expert[t * slots + k] = expert[k];
      shared.share[t * slots + k] =
          expert[k] < 0 ? 0 : (exp(static_cast<double>(chosen[k]) - greatest) - other) / total;
    }
    shared.other[t] = filled > 0 ? other / total : 0;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = static_cast<int>(blockIdx.y) * kWarp + lane;
  const auto z_at = [&](int t) { return column < width ? static_cast<double>(z_Td[first + t][column]) : 1.0; };
  double* const sum = partial_BN[blockIdx.x] + column;
  for (int e = static_cast<int>(threadIdx.x) / kWarp; e <= experts; e += kWarps) {
    double own = 0;
    if (e == experts) {
      for (int t = 0; t < tokens; ++t)
        if (shared.other[t] > 0) own += shared.other[t] * z_at(t);
    } else {
      for_slots_of_expert(
          e, n_slots, [&](int slot) { return shared.expert[slot]; },
          [&](int slot) { own += shared.share[slot] * z_at(slot / slots); });
    }
    if (column <= width) sum[static_cast<std::int64_t>(e) * (width + 1)] = own;
  }
}

// Each expert's own and everyone's together. sum_N [E + 1, d + 1].
struct TogetherWithEveryone {
  Rows<double> sum_Ed;
  double* count_E;
  const double* sum_N;
  int experts, width;

  __device__ void operator()(std::int64_t e, std::int64_t j) const {
    const double sum = sum_N[experts * (std::int64_t{width} + 1) + j] + sum_N[e * (width + 1) + j];
    (j < width ? sum_Ed[e][j] : count_E[e]) = sum;
  }
};

// ---- whole rows ----

template <class T, int kSize>
struct ClearSkipped {
  Rows<T> x_RD;
  Counted counts;

  __device__ void operator()(std::int64_t r, std::int64_t column) const {
    if (!counts(r)) store<kSize>(x_RD[r] + column, Elements<T, kSize>{});
  }
};

template <int kSize>
struct Scale {
  Rows<float> out_Rd;
  Rows<const float> in_Rd;
  float factor;

  __device__ void operator()(std::int64_t r, std::int64_t column) const {
    auto x = load<kSize>(in_Rd[r] + column);
    for (int i = 0; i < kSize; ++i) x.element[i] *= factor;
    store<kSize>(out_Rd[r] + column, x);
  }
};

Pairs pairs_of(const Tensor& Y_Rd, const Tensor& token_R) {
  return {rows_of<const float>(Y_Rd), counted(token_R), Y_Rd.rows(), static_cast<int>(Y_Rd.dim(1))};
}

}  // namespace

void unit_rows_forward(Tensor unit_Rd, Tensor norm_R, Tensor in_Rd, Context& ctx) {
  launch("unit_rows_forward", unit_forward_kernel, {blocks(ceil_div(in_Rd.rows(), kWarps)), kThreads}, ctx,
         rows_of<float>(unit_Rd), rows_of<float>(norm_R), rows_of<const float>(in_Rd), in_Rd.rows(),
         in_Rd.dim(1));
}

void unit_rows_backward(Tensor din_Rd, Tensor dunit_Rd, Tensor unit_Rd, Tensor norm_R, Context& ctx) {
  launch("unit_rows_backward", unit_backward_kernel, {blocks(ceil_div(unit_Rd.rows(), kWarps)), kThreads}, ctx,
         rows_of<float>(din_Rd), rows_of<const float>(dunit_Rd), rows_of<const float>(unit_Rd),
         rows_of<const float>(norm_R), unit_Rd.rows(), unit_Rd.dim(1));
}

void row_moments(Tensor gram_dd, Tensor sum_d, Tensor unit_Rd, Tensor token_R, Context& ctx) {
  constexpr std::int64_t kMostPartials = 1 << 23;  // numbers, 64 MiB
  const std::int64_t n_rows = unit_Rd.rows(), width = unit_Rd.dim(1), entries = (width + 1) * width;
  const RowRange range(n_rows, 64, std::clamp<std::int64_t>(kMostPartials / entries, 1, 264));
  ScratchScope scope(ctx.scratch);
  const Tensor gram = device_buffer_for(gram_dd, ctx), sum = device_buffer_for(sum_d, ctx);
  const Tensor partial_BN = ctx.scratch.take({range.blocks, entries}, DType::f64);
  launch("row_moments", moments_kernel,
         {{blocks(ceil_div(entries, kThreads)), blocks_across(range.blocks), 1}, kThreads}, ctx,
         rows_of<double>(partial_BN), rows_of<const float>(unit_Rd), counted(token_R), n_rows, range.rows,
         width);
  sum_partials<double, double>("row_moments: gram", gram, partial_BN.columns(0, width * width), Partials::set,
                               ctx);
  sum_partials<double, double>("row_moments: sum", sum, partial_BN.columns(width * width, width), Partials::set,
                               ctx);
  copy_back(gram_dd, gram);
  copy_back(sum_d, sum);
}

void add_affine_rows(Tensor dunit_Rd, Tensor unit_Rd, Tensor matrix_dd, Tensor offset_d, Tensor token_R,
                     Context& ctx) {
  const std::int64_t n_rows = unit_Rd.rows(), width = unit_Rd.dim(1);
  ScratchScope scope(ctx.scratch);
  launch("add_affine_rows", affine_kernel,
         {blocks(ceil_div(ceil_div(n_rows, kAffineRows) * width, kThreads)), kThreads}, ctx,
         rows_of<float>(dunit_Rd), rows_of<const float>(unit_Rd), on_device(matrix_dd, ctx).as<double>(),
         on_device(offset_d, ctx).as<double>(), counted(token_R), n_rows, width);
}

void count_rows(Tensor count_1, Tensor token_R, Context& ctx) {
  sum_rows<1>("count_rows", count_1, token_R.rows(), ctx, CountRow{counted(token_R)});
}

void pair_distance_sum(Tensor sum_1, Tensor Y_Rd, Tensor token_R, Context& ctx) {
  const std::int64_t n_blocks = ceil_div(Y_Rd.rows(), kTile);
  ScratchScope scope(ctx.scratch);
  const Tensor partial_B1 = ctx.scratch.take({n_blocks, 1}, DType::f64), sum = device_buffer_for(sum_1, ctx);
  launch("pair_distance_sum", distance_sum_kernel, {blocks(n_blocks), kThreads}, ctx,
         rows_of<double>(partial_B1), pairs_of(Y_Rd, token_R));
  sum_partials<double, double>("pair_distance_sum", sum, partial_B1, Partials::set, ctx);
  copy_back(sum_1, sum);
}

void pair_distance_backward(Tensor dY_Rd, Tensor Y_Rd, Tensor token_R, Tensor scale_1, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  launch("pair_distance_backward", distance_backward_kernel,
         {{blocks(ceil_div(Y_Rd.rows(), kTile)), blocks_across(ceil_div(Y_Rd.dim(1), kDepth)), 1}, kThreads},
         ctx, rows_of<float>(dY_Rd), pairs_of(Y_Rd, token_R), on_device(scale_1, ctx).as<double>());
}

void sample_latent(Tensor z_Td, Tensor mean_Td, Tensor log_var_Td, Tensor epsilon_Td, Context& ctx) {
  with_packs_of({z_Td, mean_Td, log_var_Td, epsilon_Td}, [&]<int kSize>() {
    for_each_pack<kSize>("sample_latent", mean_Td.rows(), mean_Td.dim(1), ctx,
                         Sample<kSize>{rows_of<float>(z_Td), rows_of<const float>(mean_Td),
                                       rows_of<const float>(log_var_Td), rows_of<const float>(epsilon_Td)});
  });
}

void standard_kl_sum(Tensor sum_1, Tensor mean_Td, Tensor log_var_Td, Tensor token_T, Context& ctx) {
  sum_rows<1>("standard_kl_sum", sum_1, mean_Td.rows(), ctx,
              AddKl{rows_of<const float>(mean_Td), rows_of<const float>(log_var_Td), counted(token_T),
                    static_cast<int>(mean_Td.dim(1))});
}

void standard_kl_backward(Tensor dmean_Td, Tensor dlog_var_Td, Tensor mean_Td, Tensor log_var_Td,
                          Tensor token_T, double scale, Context& ctx) {
  for_each_pack<1>(
      "standard_kl_backward", mean_Td.rows(), mean_Td.dim(1), ctx,
      KlBackward{rows_of<float>(dmean_Td), rows_of<float>(dlog_var_Td), rows_of<const float>(mean_Td),
                 rows_of<const float>(log_var_Td), counted(token_T), static_cast<float>(scale)});
}

void routed_sums(Tensor sum_Ed, Tensor count_E, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK, Context& ctx) {
  const std::int64_t tokens = z_Td.rows(), width = z_Td.dim(1), experts = count_E.rows(),
                     slots = expert_TK.dim(1);
  SY_CHECK(slots <= kSlots, "{} slots a token; the kernel has room for {}", slots, kSlots);
  const std::int64_t tokens_a_block = kSlots / slots, n_blocks = ceil_div(tokens, tokens_a_block);
  ScratchScope scope(ctx.scratch);
  const Tensor sums = device_buffer_for(sum_Ed, ctx), counts = device_buffer_for(count_E, ctx);
  const Tensor partial_BN = ctx.scratch.take({n_blocks, (experts + 1) * (width + 1)}, DType::f64);
  const Tensor sum_N = ctx.scratch.take({(experts + 1) * (width + 1)}, DType::f64);
  launch("routed_sums", routed_kernel,
         {{blocks(n_blocks), blocks_across(ceil_div(width + 1, kWarp)), 1}, kThreads, sizeof(RoutedSlots)}, ctx,
         rows_of<double>(partial_BN), rows_of<const float>(z_Td), rows_of<const float>(chosen_TK),
         rows_of<const std::int32_t>(expert_TK), tokens, tokens_a_block, slots, experts, width);
  sum_partials<double, double>("routed_sums: blocks", sum_N, partial_BN, Partials::set, ctx);
  for_each_pack<1>("routed_sums: experts", experts, width + 1, ctx,
                   TogetherWithEveryone{rows_of<double>(sums), counts.as<double>(), sum_N.as<double>(),
                                        static_cast<int>(experts), static_cast<int>(width)});
  copy_back(sum_Ed, sums);
  copy_back(count_E, counts);
}

void clear_skipped_rows(Tensor x_RD, Tensor token_R, Context& ctx) {
  if (!token_R.defined()) return;
  with_element(x_RD.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(x_RD), [&]<int kSize>() {
      for_each_pack<kSize>("clear_skipped_rows", x_RD.rows(), x_RD.dim(1), ctx,
                           ClearSkipped<T, kSize>{rows_of<T>(x_RD), counted(token_R)});
    });
  });
}

void scale_rows(Tensor out_Rd, Tensor in_Rd, double factor, Context& ctx) {
  with_packs_of({out_Rd, in_Rd}, [&]<int kSize>() {
    for_each_pack<kSize>(
        "scale_rows", in_Rd.rows(), in_Rd.dim(1), ctx,
        Scale<kSize>{rows_of<float>(out_Rd), rows_of<const float>(in_Rd), static_cast<float>(factor)});
  });
}

}  // namespace switchyard::ops::cuda
