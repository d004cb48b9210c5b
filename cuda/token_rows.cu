#include "ops/token_rows.h"

#include "elements.h"
#include "ops/elementwise.h"
#include "warp_per_row.h"

// Legend: N places, T tokens, K slots a token, D width.

namespace switchyard::ops::cuda {

// A warp a token. It works out the places of the token's experts from its slots, K numbers that all lanes read
// at once, and moves the row in pieces of 16 bytes: what goes out is read once for all places, what comes home
// is added as it comes. Memory of peers is read and written as any other; that what is read is there, and what
// is written may be overwritten, is the caller's affair.

namespace {

// The memory of each place.
template <class T>
struct OfPlaces {
  T* data[kMostPlaces];
};
template <class T>
OfPlaces<T> of_places(std::span<const Tensor> of_N) {
  OfPlaces<T> places{};
  for (std::size_t p = 0; p < of_N.size(); ++p) places.data[p] = of_N[p].as<std::remove_const_t<T>>();
  return places;
}

struct Tokens {
  const int* expert_TK;
  std::int64_t n_tokens;
  int K, experts_each, place;

  // A bit for each place that has an expert of the token.
  __device__ __forceinline__ unsigned places(std::int64_t t) const {
    unsigned places = 0;
    for (int k = 0; k < K; ++k) {
      const int expert = expert_TK[t * K + k];
      if (expert >= 0) places |= 1u << expert / experts_each;
    }
    return places;
  }
  __device__ __forceinline__ std::int64_t row(std::int64_t t) const { return place * n_tokens + t; }
  // Whole numbers, far below 2^53: in any order the same sum.
  __device__ __forceinline__ void count(double* bytes_1, unsigned places, std::int64_t row_bytes) const {
    const int others = __popc(places & ~(1u << place));
    if (others > 0 && lane_of_warp() == 0) atomicAdd(bytes_1, static_cast<double>(others * row_bytes));
  }
};
Tokens tokens_of(const Tensor& expert_TK, const ExpertPlaces& places) {
  return {expert_TK.as<int>(), expert_TK.rows(), static_cast<int>(expert_TK.dim(1)),
          static_cast<int>(places.experts_each), places.place};
}

template <class T, int kSize>
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    spread_rows_kernel(OfPlaces<T> to_N, double* bytes_1, const T* x_TD, Tokens tokens, std::int64_t D) {
  const std::int64_t t = index_of_warp();
  if (t >= tokens.n_tokens) return;
  const unsigned places = tokens.places(t);
  if (places == 0) return;
  tokens.count(bytes_1, places, D * static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t row = tokens.row(t) * D;
  for (std::int64_t d = lane_of_warp() * kSize; d < D; d += kWarp * kSize) {
    const auto x = load<kSize>(x_TD + t * D + d);
    for (unsigned left = places; left != 0; left &= left - 1)
      store<kSize>(to_N.data[__ffs(static_cast<int>(left)) - 1] + row + d, x);
  }
}

// What a lane adds up: a piece of each place's row, zeros of a place that has no part in it.
template <class T, int kSize>
struct Pieces {
  const OfPlaces<const T>& from_N;
  unsigned places;
  std::int64_t at;

  __device__ __forceinline__ void get(float (&sum)[kSize], int place) const {
    Elements<T, kSize> x{};
    if ((places >> place & 1) != 0) x = load<kSize>(from_N.data[place] + at);
    for (int i = 0; i < kSize; ++i) sum[i] = to_float(x.element[i]);
  }
  // By halves, in registers, of a number of places that is known.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void add(float (&sum)[kSize]) const {
    if constexpr (kCount == 1) {
      get(sum, kFirst);
    } else {
      constexpr int kHalf = (kCount + 1) / 2;
      float others[kSize];
      add<kFirst, kHalf>(sum);
      add<kFirst + kHalf, kCount - kHalf>(others);
      for (int i = 0; i < kSize; ++i) sum[i] += others[i];
    }
  }
};

// As ops::sum_by_halves does it, of any number.
struct Halves {
  int n_places;
  std::uint8_t sums_after[kMostPlaces];
};
constexpr int kStack = 6;  // log2 of kMostPlaces, and the one that comes
template <class T, int kSize>
__device__ __forceinline__ void add_by(const Halves& halves, float (&sum)[kSize],
                                       const Pieces<T, kSize>& pieces) {
  float stack[kStack][kSize];
  int top = 0;
  for (int p = 0; p < halves.n_places; ++p) {
    pieces.get(stack[top++], p);
    for (int s = 0; s < halves.sums_after[p]; ++s, --top)
      for (int i = 0; i < kSize; ++i) stack[top - 2][i] += stack[top - 1][i];
  }
  for (int i = 0; i < kSize; ++i) sum[i] = stack[0][i];
}

// kPlaces: how many; 0: as `halves` says.
template <class T, int kSize, int kPlaces>
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    collect_rows_kernel(T* out_TD, double* bytes_1, const T* addend_TD, OfPlaces<const T> from_N, Halves halves,
                        Tokens tokens, std::int64_t D) {
  const std::int64_t t = index_of_warp();
  if (t >= tokens.n_tokens) return;
  const unsigned places = tokens.places(t);
  tokens.count(bytes_1, places, D * static_cast<std::int64_t>(sizeof(T)));
  for (std::int64_t d = lane_of_warp() * kSize; d < D; d += kWarp * kSize) {
    const Pieces<T, kSize> pieces{from_N, places, tokens.row(t) * D + d};
    float sum[kSize];
    if constexpr (kPlaces > 0)
      pieces.template add<0, kPlaces>(sum);
    else
      add_by(halves, sum, pieces);
    Elements<T, kSize> z{}, out;
    if (addend_TD != nullptr) z = load<kSize>(addend_TD + t * D + d);
    for (int i = 0; i < kSize; ++i)
      out.element[i] = from_float<T>(addend_TD != nullptr ? to_float(z.element[i]) + sum[i] : sum[i]);
    store<kSize>(out_TD + t * D + d, out);
  }
}

template <class F>
void with_places(std::size_t n, F&& f) {
  if (n == 2) return f.template operator()<2>();
  if (n == 4) return f.template operator()<4>();
  if (n == 8) return f.template operator()<8>();
  f.template operator()<0>();
}

// Calls f.operator()<element, elements at once>().
template <class F>
void with_packs(const Tensor& x_TD, const Tensor& addend_TD, std::span<const Tensor> of_N, F&& f) {
  with_element(x_TD.dtype(), [&]<class T>() {
    bool packs = rows_are_packs<T>(x_TD) && (!addend_TD.defined() || rows_are_packs<T>(addend_TD));
    for (const Tensor& of_place : of_N) packs = packs && rows_are_packs<T>(of_place);
    with_pack<T>(packs, [&]<int kSize>() { f.template operator()<T, kSize>(); });
  });
}

}  // namespace

void spread_rows(std::span<const Tensor> to_N, Tensor bytes_1, Tensor x_TD, Tensor expert_TK,
                 ExpertPlaces places, Context& ctx) {
  with_packs(x_TD, {}, to_N, [&]<class T, int kSize>() {
    launch("spread_rows", spread_rows_kernel<T, kSize>, one_warp_each(x_TD.rows()), ctx, of_places<T>(to_N),
           bytes_1.as<double>(), x_TD.as<T>(), tokens_of(expert_TK, places), x_TD.dim(1));
  });
}

void collect_rows(Tensor out_TD, Tensor bytes_1, Tensor addend_TD, std::span<const Tensor> from_N,
                  Tensor expert_TK, ExpertPlaces places, Context& ctx) {
  Halves halves{static_cast<int>(from_N.size()), {}};
  const auto sums = sums_after_leaves(halves.n_places);
  for (std::size_t p = 0; p < from_N.size(); ++p) halves.sums_after[p] = sums[p];
  with_packs(out_TD, addend_TD, from_N, [&]<class T, int kSize>() {
    with_places(from_N.size(), [&]<int kPlaces>() {
      launch("collect_rows", collect_rows_kernel<T, kSize, kPlaces>, one_warp_each(out_TD.rows()), ctx,
             out_TD.as<T>(), bytes_1.as<double>(), addend_TD.defined() ? addend_TD.as<T>() : nullptr,
             of_places<const T>(from_N), halves, tokens_of(expert_TK, places), out_TD.dim(1));
    });
  });
}

}  // namespace switchyard::ops::cuda
