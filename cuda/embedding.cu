#include "ops/embedding.h"

#include <algorithm>
#include <bit>

#include "for_each_pack.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

// The gradient needs no sort of all tokens and no atomics: token v belongs to block v modulo the number of
// blocks, each block looks through all ids for its own, in ascending t, and adds their rows. The ids are read
// once a block, from the L2 cache; a row is read once. Sums run over t in ascending order, as on the CPU: the
// bits are those of the CPU in f32. Rows f32 or bf16; dweight_VD is f32 always.

namespace {

template <class T, int kSize>
struct Forward {
  Rows<T> out_TD;
  const std::int32_t* token_T;
  Rows<const T> weight_VD;

  __device__ void operator()(std::int64_t t, std::int64_t d) const {
    const std::int32_t v = token_T[t];
    Elements<T, kSize> row{};
    if (v >= 0) row = load<kSize>(weight_VD[v] + d);
    store<kSize>(out_TD[t] + d, row);
  }
};

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kIds = 4, kStep = kThreads * kIds;  // of a thread, of a block: what is looked at at once
constexpr int kRoom = 2 * kStep;
constexpr std::int64_t kBlocks = 512;  // about four for each multiprocessor of a large device

struct alignas(16) Tokens {
  int token[kRoom], t[kRoom];
};
struct Found {
  Tokens next;          // tokens of the block that are still to be added, in ascending t
  Tokens sorted;        // the same by token, then t
  int of_warp[kWarps];  // how many each warp has found
};

// What a thread has of tokens [first, first + kStep).
struct Ids {
  int first;  // its own, the next kWarp later
  int token[kIds];

  __device__ __forceinline__ Ids(const std::int32_t* token_T, int first_of_block, int n_tokens)
      : first(first_of_block + static_cast<int>(threadIdx.x) / kWarp * kIds * kWarp +
              static_cast<int>(threadIdx.x) % kWarp) {
    SY_UNROLL
    for (int i = 0; i < kIds; ++i) token[i] = first + i * kWarp < n_tokens ? token_T[first + i * kWarp] : -1;
  }
};

// Appends those that are the block's. Returns how many there are now.
__device__ __forceinline__ int find(Found& found, int n_found, const Ids& ids) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto& [first, token] = ids;
  unsigned hits[kIds];
  int count = 0;
  for (int i = 0; i < kIds; ++i) {
    const bool hit = token[i] >= 0 && (static_cast<unsigned>(token[i]) & (gridDim.x - 1)) == blockIdx.x;
    hits[i] = __ballot_sync(kFullWarp, hit);
    count += __popc(hits[i]);
  }
  if (lane == 0) found.of_warp[warp] = count;
  __syncthreads();
  int at = n_found;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) at += found.of_warp[w];
    n_found += found.of_warp[w];
  }
  const unsigned lanes_before = (1u << lane) - 1;
  for (int i = 0; i < kIds; ++i) {
    if (hits[i] >> lane & 1) {
      found.next.token[at + __popc(hits[i] & lanes_before)] = token[i];
      found.next.t[at + __popc(hits[i] & lanes_before)] = first + i * kWarp;
    }
    at += __popc(hits[i]);
  }
  __syncthreads();
  return n_found;
}

// By counting for each token those that come before it: no greater ones before, smaller ones behind. There are
// few, T / blocks, unless most tokens are one.
__device__ __forceinline__ void sort(Found& found, int n_found) {
  constexpr int kAtOnce = 4;  // of a load
  for (int n = static_cast<int>(threadIdx.x); n < n_found; n += kThreads) {
    const int token = found.next.token[n];
    const int first_of_warp = n / kWarp * kWarp, last_of_warp = std::min(first_of_warp + kWarp, n_found);
    int place = 0;
    for (int m = 0; m < first_of_warp; m += kAtOnce) {
      const auto others = load<kAtOnce>(found.next.token + m);
      for (int i = 0; i < kAtOnce; ++i) place += others.element[i] <= token ? 1 : 0;
    }
    for (int m = first_of_warp; m < last_of_warp; ++m)
      place += found.next.token[m] < token + (m < n ? 1 : 0) ? 1 : 0;
    int behind = last_of_warp;
    for (; behind + kAtOnce <= n_found; behind += kAtOnce) {
      const auto others = load<kAtOnce>(found.next.token + behind);
      for (int i = 0; i < kAtOnce; ++i) place += others.element[i] < token ? 1 : 0;
    }
    for (; behind < n_found; ++behind) place += found.next.token[behind] < token ? 1 : 0;
    found.sorted.token[place] = token;
    found.sorted.t[place] = found.next.t[n];
  }
  __syncthreads();
}

// A warp takes kWarp * kSize columns of one token, and all its rows one after another, kAhead of them loaded at
// once.
template <class T, int kSize>
__device__ __forceinline__ void add_rows(Rows<float> dweight_VD, Rows<const T> dout_TD, const Tokens& found,
                                         int n_found, int width) {
  constexpr int kAhead = 8, kColumns = kWarp * kSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int n_ranges = (width + kColumns - 1) / kColumns;
  for (int item = warp; item < n_found * n_ranges; item += kWarps) {
    const int first = item / n_ranges, d = item % n_ranges * kColumns + lane * kSize;
    const int token = found.token[first];
    if ((first > 0 && found.token[first - 1] == token) || d >= width) continue;
    auto sum = load<kSize>(dweight_VD[token] + d);
    for (int n = first; n < n_found && found.token[n] == token; n += kAhead) {
      Packed<T, kSize> row[kAhead];
      bool more[kAhead];
      SY_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        more[i] = n + i < n_found && found.token[n + i] == token;
        row[i] = Packed<T, kSize>::of(more[i] ? dout_TD[found.t[n + i]] + d : nullptr, more[i]);
      }
      SY_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (!more[i]) break;
        const auto elements = row[i].elements();
        SY_UNROLL
        for (int j = 0; j < kSize; ++j) sum.element[j] += to_float(elements.element[j]);
      }
    }
    store<kSize>(dweight_VD[token] + d, sum);
  }
}

template <class T, int kSize>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(Rows<float> dweight_VD, Rows<const T> dout_TD, const std::int32_t* token_T, int n_tokens,
                    int width) {
  auto& found = static_shared<Found>();
  int n_found = 0;
  Ids ids(token_T, 0, n_tokens);
  for (int first = 0; first < n_tokens; first += kStep) {
    const Ids next(token_T, first + kStep, n_tokens);  // on their way while these are looked at
    n_found = find(found, n_found, ids);
    ids = next;
    if (n_found <= kRoom - kStep && first + kStep < n_tokens) continue;
    sort(found, n_found);
    add_rows<T, kSize>(dweight_VD, dout_TD, found.sorted, n_found, width);
    n_found = 0;
  }
}

}  // namespace

void embedding_forward(Tensor out_TD, Tensor token_T, Tensor weight_VD, Context& ctx) {
  with_element(out_TD.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(out_TD) && rows_are_packs<T>(weight_VD), [&]<int kSize>() {
      for_each_pack<kSize>(
          "embedding_forward", out_TD.rows(), out_TD.dim(1), ctx,
          Forward<T, kSize>{rows_of<T>(out_TD), token_T.as<std::int32_t>(), rows_of<const T>(weight_VD)});
    });
  });
}

void embedding_backward(Tensor dweight_VD, Tensor dout_TD, Tensor token_T, Context& ctx) {
  const std::int64_t n_tokens = token_T.rows(), width = dout_TD.dim(1);
  SY_CHECK(n_tokens <= 0x7fffffff - kStep, "{} tokens at once", n_tokens);
  // A power of two, so that a token's block is a few of its bits; more than there are tokens would find
  // nothing.
  const auto most = static_cast<std::uint64_t>(std::min(n_tokens, kBlocks));
  with_element(dout_TD.dtype(), [&]<class T>() {
    const auto go = [&]<int kSize>() {
      launch("embedding_backward", backward_kernel<T, kSize>,
             {blocks(static_cast<std::int64_t>(std::bit_floor(most))), kThreads}, ctx,
             rows_of<float>(dweight_VD), rows_of<const T>(dout_TD), token_T.as<std::int32_t>(), n_tokens,
             width);
    };
    with_pack<T>(rows_are_packs<float, kPack<T>>(dweight_VD) && rows_are_packs<T>(dout_TD), go);
  });
}

// A thread a position.

namespace {

struct Shift {
  std::int32_t *next_T, *next_target_T;
  const std::int32_t *token_T, *target_T, *kv_begin_T;
  std::int64_t seq_len, ahead;

  __device__ void operator()(std::int64_t, std::int64_t t) const {
    const bool has_target = has_shifted_target(token_T, target_T, kv_begin_T, t, seq_len, ahead);
    next_T[t] = has_target ? token_T[t + ahead] : -1;
    next_target_T[t] = has_target ? target_T[t + ahead] : -1;
  }
};

}  // namespace

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead, Context& ctx) {
  const auto ids = [](const Tensor& tensor) { return tensor.as<std::int32_t>(); };
  for_each_pack<1>(
      "shift_tokens", 1, token_T.rows(), ctx,
      Shift{ids(next_T), ids(next_target_T), ids(token_T), ids(target_T), ids(kv_begin_T), seq_len, ahead});
}

}  // namespace switchyard::ops::cuda
