// Lengths and gradients: a warp a row, in packs of 16 bytes; sums in float32, each lane's own and then the
// lanes', where the CPU has double. Sums by expert: a warp takes an expert and 32 packs of columns, and votes
// on 32 slots of a range of tokens at a time: no atomic, every sum in token order and in registers. All f32 but
// expert_sums' f64 results, which may lie on the host: the call waits then.
#include "ops/cosine.h"

#include <algorithm>

#include "elements.h"
#include "for_each_pack.h"
#include "launch.h"
#include "partials.h"
#include "reduce.h"
#include "warp_per_row.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr float kLeastLength = 1e-12f;  // of a product of two lengths

enum class Norm { l1, l2 };

template <Norm kNorm, int kSize>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(Rows<float> norm_R, Rows<const float> x_RD, std::int64_t n_rows, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t r = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (r >= n_rows) return;  // the whole warp
  float sum = 0;
  for (int d = lane * kSize; d < width; d += kWarp * kSize) {
    const auto x = load<kSize>(x_RD[r] + d);
    for (int i = 0; i < kSize; ++i)
      sum += kNorm == Norm::l1 ? fabsf(x.element[i]) : x.element[i] * x.element[i];
  }
  sum = reduce_warp<Sum>(sum);
  if (lane == 0) *norm_R[r] = kNorm == Norm::l1 ? sum : sqrtf(sum);
}

template <Norm kNorm>
void row_norm(const char* op, const Tensor& norm_R, const Tensor& x_RD, Context& ctx) {
  with_pack<float>(rows_are_packs<float>(x_RD), [&]<int kSize>() {
    launch(op, norm_kernel<kNorm, kSize>, {blocks(ceil_div(x_RD.rows(), kWarps)), kThreads}, ctx,
           rows_of<float>(norm_R), rows_of<const float>(x_RD), x_RD.rows(), x_RD.dim(1));
  });
}

struct DivideByLengths {
  Rows<float> score_TE;
  Rows<const float> x_norm_T, mean_norm_E;

  __device__ void operator()(std::int64_t t, std::int64_t e) const {
    score_TE[t][e] /= fmaxf(*x_norm_T[t] * *mean_norm_E[e], kLeastLength);
  }
};

template <int kSize>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Rows<float> dscore_TE, Rows<float> dx_TD, Rows<const float> score_TE,
                    Rows<const float> x_TD, Rows<const float> x_norm_T, Rows<const float> mean_norm_E,
                    std::int64_t n_tokens, int experts, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t t = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (t >= n_tokens) return;  // the whole warp
  const float x_norm = *x_norm_T[t];
  float turned = 0;
  for (int e = lane; e < experts; e += kWarp) {
    const float length = x_norm * *mean_norm_E[e], dscore = dscore_TE[t][e];
    // Where the length was too small to divide by, the score is linear in x.
    if (length > kLeastLength) turned += dscore * score_TE[t][e];
    dscore_TE[t][e] = dscore / fmaxf(length, kLeastLength);
  }
  turned = reduce_warp<Sum>(turned);
  const float factor = x_norm > 0 ? turned / x_norm / x_norm : 0;
  for (int d = lane * kSize; d < width; d += kWarp * kSize) {
    const auto x = load<kSize>(x_TD[t] + d);
    auto dx = load<kSize>(dx_TD[t] + d);
    for (int i = 0; i < kSize; ++i) dx.element[i] -= factor * x.element[i];
    store<kSize>(dx_TD[t] + d, dx);
  }
}

// Blocks (columns, ranges of tokens). partial_BN: [E, D] of each range; partial_BE: the number of its slots.
template <int kSize>
__global__ void __launch_bounds__(kThreads)
    expert_sums_kernel(Rows<double> partial_BN, Rows<double> partial_BE, Rows<const float> x_TD,
                       Rows<const std::int32_t> expert_TK, std::int64_t n_tokens, int tokens_a_range, int slots,
                       int experts, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = (static_cast<int>(blockIdx.x) * kWarp + lane) * kSize;
  const std::int64_t first = std::int64_t{blockIdx.y} * tokens_a_range;
  const int tokens = static_cast<int>(n_tokens - first < tokens_a_range ? n_tokens - first : tokens_a_range);
  for (int e = static_cast<int>(threadIdx.x) / kWarp; e < experts; e += kWarps) {
    double sum[kSize] = {};
    int count = 0;
    for_slots_of_expert(
        e, tokens * slots, [&](int slot) { return expert_TK[first + slot / slots][slot % slots]; },
        [&](int slot) {
          ++count;
          if (column >= width) return;
          const auto x = load<kSize>(x_TD[first + slot / slots] + column);
          for (int i = 0; i < kSize; ++i) sum[i] += static_cast<double>(x.element[i]);
        });
    if (blockIdx.x == 0 && lane == 0) partial_BE[blockIdx.y][e] = count;
    if (column >= width) continue;
    for (int i = 0; i < kSize; ++i) partial_BN[blockIdx.y][std::int64_t{e} * width + column + i] = sum[i];
  }
}

}  // namespace

void row_norm_l1(Tensor norm_R, Tensor x_RD, Context& ctx) {
  row_norm<Norm::l1>("row_norm_l1", norm_R, x_RD, ctx);
}
void row_norm_l2(Tensor norm_R, Tensor x_RD, Context& ctx) {
  row_norm<Norm::l2>("row_norm_l2", norm_R, x_RD, ctx);
}

void cosine_forward(Tensor score_TE, Tensor x_norm_T, Tensor mean_norm_E, Context& ctx) {
  for_each_pack<1>("cosine_forward", score_TE.rows(), score_TE.dim(1), ctx,
                   DivideByLengths{rows_of<float>(score_TE), rows_of<const float>(x_norm_T),
                                   rows_of<const float>(mean_norm_E)});
}

void cosine_backward(Tensor dscore_TE, Tensor dx_TD, Tensor score_TE, Tensor x_TD, Tensor x_norm_T,
                     Tensor mean_norm_E, Context& ctx) {
  with_pack<float>(rows_are_packs<float>(x_TD) && rows_are_packs<float>(dx_TD), [&]<int kSize>() {
    launch("cosine_backward", backward_kernel<kSize>, {blocks(ceil_div(x_TD.rows(), kWarps)), kThreads}, ctx,
           rows_of<float>(dscore_TE), rows_of<float>(dx_TD), rows_of<const float>(score_TE),
           rows_of<const float>(x_TD), rows_of<const float>(x_norm_T), rows_of<const float>(mean_norm_E),
           x_TD.rows(), score_TE.dim(1), x_TD.dim(1));
  });
}

void expert_sums(Tensor sum_ED, Tensor count_E, Tensor x_TD, Tensor expert_TK, Context& ctx) {
  constexpr std::int64_t kMostPartials = 1 << 23;  // numbers, 64 MiB
  const std::int64_t tokens = x_TD.rows(), width = x_TD.dim(1), experts = count_E.rows(),
                     slots = expert_TK.dim(1);
  const RowRange range(tokens, 32, std::clamp<std::int64_t>(kMostPartials / (experts * width), 1, 64));
  SY_CHECK(range.rows * slots <= INT32_MAX, "{} tokens of {} slots in {} ranges", tokens, slots, range.blocks);
  ScratchScope scope(ctx.scratch);
  const Tensor sums = device_buffer_for(sum_ED, ctx), counts = device_buffer_for(count_E, ctx);
  const Tensor partial_BN = ctx.scratch.take({range.blocks, experts * width}, DType::f64);
  const Tensor partial_BE = ctx.scratch.take({range.blocks, experts}, DType::f64);
  with_pack<float>(rows_are_packs<float>(x_TD), [&]<int kSize>() {
    launch("expert_sums", expert_sums_kernel<kSize>,
           {{blocks(ceil_div(width, kWarp * kSize)), blocks_across(range.blocks), 1}, kThreads}, ctx,
           rows_of<double>(partial_BN), rows_of<double>(partial_BE), rows_of<const float>(x_TD),
           rows_of<const std::int32_t>(expert_TK), tokens, range.rows, slots, experts, width);
  });
  sum_partials<double, double>("expert_sums: sums", sums, partial_BN, Partials::set, ctx);
  sum_partials<double, double>("expert_sums: counts", counts, partial_BE, Partials::set, ctx);
  copy_back(sum_ED, sums);
  copy_back(count_E, counts);
}

}  // namespace switchyard::ops::cuda
