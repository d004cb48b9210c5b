// Tiles of 64 tokens by 64 keys, like a product of matrices whose multiplication is another function: elements
// come to shared memory with their exponential, root and logarithm already taken, once for 64 partners.
// Forward, a thread has 4 x 4 pairs. Backward, a slope is needed twice, summed over keys for a token and over
// tokens for a key; both sums are one kernel, seen from either side, with nothing but a tile of gradients
// between the two: computing slopes again is cheaper than sums that two blocks share. A thread has one place of
// the width in 4 rows. All f32.
#include "ops/prototype.h"

#include <algorithm>

#include "elements.h"
#include "launch.h"
#include "partials.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr float kLeastVariance = 1e-6f, kRootFloor = 1e-6f;
constexpr int kThreads = 256, kTile = 64, kDepth = 16;  // kDepth: elements of a row at one time
constexpr int kSide = 16, kEach = kTile / kSide;        // a thread's rows are kSide apart, as its columns are
static_assert(kSide * kSide == kThreads && kSide == kDepth);

struct Element {  // of one row, at one place of the width
  float mean, var, std, log_var;
};
struct Slopes {  // of a term; the key's mean has the opposite slope of the token's
  float mean, token_log_var, key_log_var;
};

// What a distance is a sum of, for a token t and a key k. `weight` is of the place, of points only.
struct SquaredTerm {
  static constexpr bool kDistributions = false;
  static __device__ __forceinline__ float value(const Element& t, const Element& k, float weight) {
    return weight * (t.mean - k.mean) * (t.mean - k.mean);
  }
  static __device__ __forceinline__ Slopes slopes(const Element& t, const Element& k, float weight) {
    return {2 * weight * (t.mean - k.mean), 0, 0};
  }
};
struct KlTerm {
  static constexpr bool kDistributions = true;
  static __device__ __forceinline__ float value(const Element& t, const Element& k, float) {
    const float difference = t.mean - k.mean;
    return 0.5f * (k.log_var - t.log_var + (t.var - k.var + difference * difference) / k.var);
  }
  static __device__ __forceinline__ Slopes slopes(const Element& t, const Element& k, float) {
    const float difference = t.mean - k.mean, inverse = 1 / k.var;
    return {difference * inverse, 0.5f * (t.var - k.var) * inverse,
            0.5f * (k.var - t.var - difference * difference) * inverse};
  }
};
struct BhattacharyyaTerm {
  static constexpr bool kDistributions = true;
  static __device__ __forceinline__ float value(const Element& t, const Element& k, float) {
    const float difference = t.mean - k.mean, spread = t.std - k.std;
    return 0.5f * log1pf(spread * spread / (2 * t.std * k.std)) +
           difference * difference / (4 * (t.var + k.var));
  }
  static __device__ __forceinline__ Slopes slopes(const Element& t, const Element& k, float) {
    const float difference = t.mean - k.mean, quarter = 1 / (4 * (t.var + k.var));
    const float square = 4 * (difference * quarter) * (difference * quarter);
    return {2 * difference * quarter, (t.var - k.var) * quarter - t.var * square,
            (k.var - t.var) * quarter - k.var * square};
  }
};
struct WassersteinTerm {
  static constexpr bool kDistributions = true;
  static __device__ __forceinline__ float value(const Element& t, const Element& k, float) {
    return (t.mean - k.mean) * (t.mean - k.mean) + (t.std - k.std) * (t.std - k.std);
  }
  static __device__ __forceinline__ Slopes slopes(const Element& t, const Element& k, float) {
    return {2 * (t.mean - k.mean), t.std * (t.std - k.std), k.std * (k.std - t.std)};
  }
};

struct Metric {
  PrototypeSimilarity similarity;
  float scale;               // of gaussian: -1 / (2 sigma^2)
  const float* log_sigma_d;  // of mahalanobis, else null

  __device__ __forceinline__ float weight(int j) const { return log_sigma_d ? expf(-log_sigma_d[j]) : 1; }
  __device__ __forceinline__ float score(float distance) const {
    switch (similarity) {
      case PrototypeSimilarity::gaussian:
        return expf(scale * distance);
      case PrototypeSimilarity::mahalanobis:
        return 1 / (1 + distance);
      case PrototypeSimilarity::kl:
      case PrototypeSimilarity::js:
        return -distance;
      case PrototypeSimilarity::hellinger:
        return -sqrtf(kRootFloor - expm1f(-distance));
      case PrototypeSimilarity::wasserstein:
        return -sqrtf(kRootFloor + distance);
    }
    return 0;
  }
  // With respect to the distance.
  __device__ __forceinline__ float gradient(float dscore, float score) const {
    switch (similarity) {
      case PrototypeSimilarity::gaussian:
        return dscore * score * scale;
      case PrototypeSimilarity::mahalanobis:
        return -dscore * score * score;
      case PrototypeSimilarity::kl:
      case PrototypeSimilarity::js:
        return -dscore;
      case PrototypeSimilarity::hellinger:  // exp(-B) is 1 + floor - S^2
        return dscore * (1 + kRootFloor - score * score) / (2 * score);
      case PrototypeSimilarity::wasserstein:
        return dscore / (2 * score);
    }
    return 0;
  }
};

struct GaussianTable {
  Rows<const float> mean, log_var;
  std::int64_t n_rows;
  int width;

  // What is past the last row or the width is at no distance from anything of its kind.
  template <bool kDistributions>
  __device__ __forceinline__ Element at(std::int64_t r, int j) const {
    Element element{0, 1, 1, 0};
    if (r >= n_rows || j >= width) return element;
    element.mean = mean[r][j];
    if constexpr (kDistributions) {
      const float var = expf(log_var[r][j]);
      element.var = var > kLeastVariance ? var : kLeastVariance;
      element.std = sqrtf(element.var);
      element.log_var = logf(element.var);
    }
    return element;
  }
};

// A tile of elements, transposed: 64 rows at kDepth places.
struct Tile {
  float mean[kDepth][kTile + 1], var[kDepth][kTile + 1], std[kDepth][kTile + 1], log_var[kDepth][kTile + 1];

  template <bool kDistributions>
  __device__ __forceinline__ void fill(const GaussianTable& table, std::int64_t first_row, int first_place) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
      const int row = i / kDepth, j = i % kDepth;
      const Element element = table.at<kDistributions>(first_row + row, first_place + j);
      mean[j][row] = element.mean;
      if constexpr (kDistributions) {
        var[j][row] = element.var;
        std[j][row] = element.std;
        log_var[j][row] = element.log_var;
      }
    }
  }
  // A member that the term does not use is not read.
  template <bool kDistributions>
  __device__ __forceinline__ Element at(int j, int row) const {
    if constexpr (kDistributions) return {mean[j][row], var[j][row], std[j][row], log_var[j][row]};
    return {mean[j][row], 0, 0, 0};
  }
};

struct ForwardTiles {
  Tile token, key;
  float weight[kDepth];
};

// Blocks (tokens, keys).
template <class Term>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(Rows<float> score_TE, GaussianTable token, GaussianTable key, Metric metric) {
  constexpr bool kDistributions = Term::kDistributions;
  auto& tiles = static_shared<ForwardTiles>();
  const int row = static_cast<int>(threadIdx.x) / kSide, column = static_cast<int>(threadIdx.x) % kSide;
  const std::int64_t first_token = std::int64_t{blockIdx.x} * kTile;
  const int first_key = static_cast<int>(blockIdx.y) * kTile;
  float distance[kEach][kEach] = {};
  for (int first = 0; first < token.width; first += kDepth) {
    __syncthreads();  // the tiles before these are done with
    tiles.token.template fill<kDistributions>(token, first_token, first);
    tiles.key.template fill<kDistributions>(key, first_key, first);
    if (const int j = static_cast<int>(threadIdx.x); j < kDepth)
      tiles.weight[j] = first + j < token.width ? metric.weight(first + j) : 0;
    __syncthreads();
    const int places = token.width - first < kDepth ? token.width - first : kDepth;
    for (int j = 0; j < places; ++j) {
      Element t[kEach], k[kEach];
      for (int a = 0; a < kEach; ++a) t[a] = tiles.token.template at<kDistributions>(j, row + kSide * a);
      for (int b = 0; b < kEach; ++b) k[b] = tiles.key.template at<kDistributions>(j, column + kSide * b);
      for (int a = 0; a < kEach; ++a)
        for (int b = 0; b < kEach; ++b) distance[a][b] += Term::value(t[a], k[b], tiles.weight[j]);
    }
  }
  for (int a = 0; a < kEach; ++a) {
    const std::int64_t t = first_token + row + kSide * a;
    for (int b = 0; b < kEach; ++b) {
      const int e = first_key + column + kSide * b;
      if (t < token.n_rows && e < key.n_rows) score_TE[t][e] = metric.score(distance[a][b]);
    }
  }
}

enum class Side { tokens, keys };

// What one side's rows receive.
struct Gradients {
  Rows<float> dmean, dlog_var;  // tokens: added to
  Rows<float> partial;          // keys: of each block of tokens, three [E, d]: dmean, dlog_var, dlog_sigma
};

struct BackwardTiles {
  Tile other;
  float gradient[kTile][kTile + 1];  // [own][other], with respect to the distance
};

// Blocks (own rows, places of the width, ranges of the others): the sums of own rows over the others of a
// range.
template <class Term, Side kSideOfSums>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(Gradients out, Rows<const float> dscore_TE, Rows<const float> score_TE, GaussianTable token,
                    GaussianTable key, Metric metric, std::int64_t others_a_block) {
  constexpr bool kDistributions = Term::kDistributions, kTokens = kSideOfSums == Side::tokens;
  auto& tiles = static_shared<BackwardTiles>();
  const GaussianTable &own_rows = kTokens ? token : key, &other_rows = kTokens ? key : token;
  const int row = static_cast<int>(threadIdx.x) / kSide;
  const int place = static_cast<int>(threadIdx.x) % kSide, j = static_cast<int>(blockIdx.y) * kDepth + place;
  const std::int64_t own_first = std::int64_t{blockIdx.x} * kTile;
  const std::int64_t first = std::int64_t{blockIdx.z} * others_a_block;
  const std::int64_t last =
      first + others_a_block < other_rows.n_rows ? first + others_a_block : other_rows.n_rows;
  const float weight = j < token.width ? metric.weight(j) : 0;
  Element own[kEach];
  for (int a = 0; a < kEach; ++a) own[a] = own_rows.template at<kDistributions>(own_first + row + kSide * a, j);
  double dmean[kEach] = {}, dlog_var[kEach] = {}, dlog_sigma[kEach] = {};

  for (std::int64_t other_first = first; other_first < last; other_first += kTile) {
    __syncthreads();  // the tiles before these are done with
    tiles.other.template fill<kDistributions>(other_rows, other_first, static_cast<int>(blockIdx.y) * kDepth);
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kThreads) {
      const int of_token = i / kTile, of_key = i % kTile;  // neighbours read neighbouring keys
      const int of_own = kTokens ? of_token : of_key, of_other = kTokens ? of_key : of_token;
      const std::int64_t t = (kTokens ? own_first : other_first) + of_token,
                         e = (kTokens ? other_first : own_first) + of_key;
      const bool there = own_first + of_own < own_rows.n_rows && other_first + of_other < last;
      tiles.gradient[of_own][of_other] = there ? metric.gradient(dscore_TE[t][e], score_TE[t][e]) : 0;
    }
    __syncthreads();
    float mean[kEach] = {}, log_var[kEach] = {}, log_sigma[kEach] = {};
    for (int o = 0; o < kTile; ++o) {
      const Element other = tiles.other.template at<kDistributions>(place, o);
      for (int a = 0; a < kEach; ++a) {
        const float gradient = tiles.gradient[row + kSide * a][o];
        const Slopes slopes =
            kTokens ? Term::slopes(own[a], other, weight) : Term::slopes(other, own[a], weight);
        mean[a] += gradient * slopes.mean;
        log_var[a] += gradient * (kTokens ? slopes.token_log_var : slopes.key_log_var);
        log_sigma[a] += gradient * slopes.mean * (other.mean - own[a].mean);
      }
    }
    for (int a = 0; a < kEach; ++a) {
      dmean[a] += static_cast<double>(mean[a]);
      dlog_var[a] += static_cast<double>(log_var[a]);
      dlog_sigma[a] += static_cast<double>(log_sigma[a]);
    }
  }

  for (int a = 0; a < kEach; ++a) {
    const std::int64_t r = own_first + row + kSide * a;
    if (r >= own_rows.n_rows || j >= token.width) continue;
    const bool has_log_var =
        kDistributions && own[a].var > kLeastVariance;  // at the clamp there is no gradient
    if constexpr (kTokens) {
      out.dmean[r][j] += static_cast<float>(dmean[a]);
      if (has_log_var) out.dlog_var[r][j] += static_cast<float>(dlog_var[a]);
    } else {
      const std::int64_t of_kind = key.n_rows * token.width;
      float* const to = out.partial[blockIdx.z] + r * token.width + j;
      to[0] = static_cast<float>(-dmean[a]);
      to[of_kind] = has_log_var ? static_cast<float>(dlog_var[a]) : 0;
      to[2 * of_kind] =
          static_cast<float>(-dlog_sigma[a] / 2);  // a term is half its slope times the difference
    }
  }
}

// Calls f.operator()<Term>().
template <class F>
void with_term(PrototypeSimilarity similarity, F&& f) {
  switch (similarity) {
    case PrototypeSimilarity::gaussian:
    case PrototypeSimilarity::mahalanobis:
      return f.template operator()<SquaredTerm>();
    case PrototypeSimilarity::kl:
      return f.template operator()<KlTerm>();
    case PrototypeSimilarity::js:
    case PrototypeSimilarity::hellinger:
      return f.template operator()<BhattacharyyaTerm>();
    case PrototypeSimilarity::wasserstein:
      return f.template operator()<WassersteinTerm>();
  }
}

Metric metric_of(const PrototypeMetric& metric) {
  const bool weighted = metric.similarity == PrototypeSimilarity::mahalanobis;
  return {metric.similarity, static_cast<float>(-0.5 / (metric.sigma * metric.sigma)),
          weighted ? metric.log_sigma_d.as<float>() : nullptr};
}

GaussianTable table_of(const GaussianRows& rows) {
  return {rows_of<const float>(rows.mean), rows_of<const float>(rows.log_var), rows.mean.rows(),
          static_cast<int>(rows.mean.dim(1))};
}

}  // namespace

void prototype_similarity_forward(Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                  const PrototypeMetric& metric, Context& ctx) {
  with_term(metric.similarity, [&]<class Term>() {
    launch("prototype_similarity_forward", forward_kernel<Term>,
           {{blocks(ceil_div(score_TE.rows(), kTile)), blocks_across(ceil_div(score_TE.dim(1), kTile)), 1},
            kThreads},
           ctx, rows_of<float>(score_TE), table_of(token_Td), table_of(key_Ed), metric_of(metric));
  });
}

void prototype_similarity_backward(GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
                                   Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                   const PrototypeMetric& metric, Context& ctx) {
  constexpr std::int64_t kMostPartials = 1 << 24;  // numbers, 64 MiB
  const std::int64_t tokens = score_TE.rows(), experts = score_TE.dim(1), width = token_Td.mean.dim(1);
  const std::int64_t of_kind = experts * width;
  const RowRange range(tokens, kTile, std::clamp<std::int64_t>(kMostPartials / (3 * of_kind), 1, 264));
  const unsigned places = blocks(ceil_div(width, kDepth));
  ScratchScope scope(ctx.scratch);
  const Tensor partial_BN = ctx.scratch.take({range.blocks, 3 * of_kind}, DType::f32);
  const Gradients out{rows_of<float>(dtoken_Td.mean), rows_of<float>(dtoken_Td.log_var),
                      rows_of<float>(partial_BN)};
  with_term(metric.similarity, [&]<class Term>() {
    launch("prototype_similarity_backward: tokens", backward_kernel<Term, Side::tokens>,
           {{blocks(ceil_div(tokens, kTile)), places, 1}, kThreads}, ctx, out, rows_of<const float>(dscore_TE),
           rows_of<const float>(score_TE), table_of(token_Td), table_of(key_Ed), metric_of(metric), experts);
    launch("prototype_similarity_backward: keys", backward_kernel<Term, Side::keys>,
           {{blocks(ceil_div(experts, kTile)), places, blocks(range.blocks)}, kThreads}, ctx, out,
           rows_of<const float>(dscore_TE), rows_of<const float>(score_TE), table_of(token_Td),
           table_of(key_Ed), metric_of(metric), range.rows);
  });
  const char* const op = "prototype_similarity_backward: sums";
  sum_partials<float, float>(op, dkey_Ed.mean, partial_BN.columns(0, of_kind), Partials::add, ctx);
  if (metric.of_distributions())
    sum_partials<float, float>(op, dkey_Ed.log_var, partial_BN.columns(of_kind, of_kind), Partials::add, ctx);
  if (metric.similarity != PrototypeSimilarity::mahalanobis) return;
  const Tensor of_key_Ed = ctx.scratch.take({experts, width}, DType::f32);
  sum_partials<float, float>(op, of_key_Ed, partial_BN.columns(2 * of_kind, of_kind), Partials::set, ctx);
  sum_partials<float, float>(op, metric.dlog_sigma_d, of_key_Ed, Partials::add, ctx);
}

}  // namespace switchyard::ops::cuda
