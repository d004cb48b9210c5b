// A thread turns as many pairs as two packs of 16 bytes hold, whichever way a head is paired: every element is
// read and written once, and the table comes from the caches, since all heads of a token share its row. x f32
// or bf16, turned in f32; the tables are f32 for both: an angle's cosine in bf16 would be wrong in the third
// digit. frequency_P on host or device.
#include "ops/rope.h"

#include <algorithm>

#include "elements.h"
#include "launch.h"
#include "staging.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void table_kernel(Rows<float> cos_SP, Rows<float> sin_SP, const double* frequency_P, double scale,
                             std::int64_t positions, int pairs) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= positions * pairs) return;
  const std::int64_t s = i / pairs, p = i % pairs;
  const double angle = static_cast<double>(s) * frequency_P[p];
  cos_SP[s][p] = static_cast<float>(scale * cos(angle));
  sin_SP[s][p] = static_cast<float>(scale * sin(angle));
}

struct Sizes {
  int tokens, seq_len, heads, head_dim, pairs;
  int tokens_a_block;
};

// Turns by the table's angle times `direction`, 1 or -1. A turn is the work on kSize pairs.
template <class T, int kSize, bool kHalves>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(Rows<T> x_THN, Rows<const float> cos_SP, Rows<const float> sin_SP, float direction, Sizes s) {
  const int turns_a_head = s.pairs / kSize, turns_a_token = s.heads * turns_a_head;
  for (int i = static_cast<int>(threadIdx.x); i < s.tokens_a_block * turns_a_token; i += kThreads) {
    const int t = static_cast<int>(blockIdx.x) * s.tokens_a_block + i / turns_a_token;
    if (t >= s.tokens) return;
    const int turn = i % turns_a_token, head = turn / turns_a_head, pair = turn % turns_a_head * kSize;
    T* const x = x_THN[t] + (head + 1) * s.head_dim - 2 * s.pairs;
    T* const low = x + (kHalves ? pair : 2 * pair);
    T* const high = low + (kHalves ? s.pairs : kSize);
    const auto cosine = load<kSize>(cos_SP[t % s.seq_len] + pair),
               sine = load<kSize>(sin_SP[t % s.seq_len] + pair);
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
      const Sizes sizes{static_cast<int>(x_THN.rows()), static_cast<int>(seq_len),
                        static_cast<int>(heads),        static_cast<int>(layout.head_dim),
                        static_cast<int>(pairs),        static_cast<int>(tokens_a_block)};
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

}  // namespace switchyard::ops::cuda
