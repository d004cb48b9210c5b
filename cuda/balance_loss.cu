// A few thousand numbers: what counts is that no host waits for them. A block has one sequence of one layer;
// what blocks add to the losses is added up by one more block, in their order. All in f64 but the counts.
#include "ops/balance_loss.h"

#include "elements.h"
#include "launch.h"
#include "reduce.h"

// Legend: L layers with a router, B sequences, E experts.

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    add_counts_kernel(double* count_LE, const int* count_LBE, std::int64_t size_LE, int B, int E) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size_LE) return;
  const int* const count = count_LBE + i / E * B * E + i % E;
  double sum = count_LE[i];
  for (int b = 0; b < B; ++b) sum += count[b * E];
  count_LE[i] = sum;
}

struct Sums {
  const int *count_LBE, *tokens_B;
  const double *prob_sum_LBE, *lse2_sum_LB, *count_LE;
  int L, B, E;
};

// Of an expert over layers [first, end), all sequences.
__device__ __forceinline__ double counted(const Sums& sums, int e, int first, int end) {
  double sum = 0;
  for (std::int64_t lb = std::int64_t{first} * sums.B; lb < std::int64_t{end} * sums.B; ++lb)
    sum += sums.count_LBE[lb * sums.E + e];
  return sum;
}

__device__ __forceinline__ double factor_of(const Sums& sums, const BalanceLoss& loss, int l, int b, int e,
                                            double micro_tokens) {
  const double tokens = sums.tokens_B[b], layers = sums.L, experts = sums.E;
  const auto all_tokens = static_cast<double>(loss.n_tokens), slots = static_cast<double>(loss.n_slots);
  const double per_layer = loss.balance_coef / layers;
  if (loss.balance_coef == 0 || tokens == 0) return 0;
  switch (loss.scope) {
    case BalanceScope::layer:
      return per_layer * experts * counted(sums, e, l, l + 1) / (slots * micro_tokens) / all_tokens;
    case BalanceScope::sequence: {
      const double count = sums.count_LBE[(std::int64_t{l} * sums.B + b) * sums.E + e];
      return per_layer * experts * count / (slots * tokens) / (tokens * static_cast<double>(loss.n_sequences));
    }
    case BalanceScope::global_batch:
      return per_layer * experts * sums.count_LE[std::int64_t{l} * sums.E + e] / (slots * all_tokens) /
             all_tokens;
    case BalanceScope::model:
      return loss.balance_coef * experts * counted(sums, e, 0, sums.L) / (layers * micro_tokens) /
             (layers * all_tokens);
  }
  return 0;
}

// value_LB2[l, b] = what the sequence adds to both losses.
__global__ void __launch_bounds__(kThreads)
    factor_kernel(double* dprob_LBE, double* value_LB2, Sums sums, BalanceLoss loss) {
  const auto lb = static_cast<int>(blockIdx.x);
  const int l = lb / sums.B, b = lb % sums.B;
  double micro_tokens = 0, value = 0;
  for (int other = 0; other < sums.B; ++other) micro_tokens += sums.tokens_B[other];
  for (int e = static_cast<int>(threadIdx.x); e < sums.E; e += kThreads) {
    const std::int64_t i = std::int64_t{lb} * sums.E + e;
    const double factor = factor_of(sums, loss, l, b, e, micro_tokens);
    dprob_LBE[i] = factor;
    value += factor * sums.prob_sum_LBE[i];
  }
  value = reduce_block<Sum, kThreads>(value);
  if (threadIdx.x != 0) return;
  value_LB2[2 * lb] = value;
  value_LB2[2 * lb + 1] = loss.z_coef / sums.L / static_cast<double>(loss.n_tokens) * sums.lse2_sum_LB[lb];
}

// Thread i adds up loss i.
__global__ void add_values_kernel(double* value_2, const double* value_LB2, int n) {
  const auto i = static_cast<int>(threadIdx.x);
  if (i >= 2) return;
  double sum = value_2[i];
  for (int lb = 0; lb < n; ++lb) sum += value_LB2[2 * lb + i];
  value_2[i] = sum;
}

}  // namespace

void add_counts(Tensor count_LE, Tensor count_LBE, Context& ctx) {
  launch("add_counts", add_counts_kernel, {blocks(ceil_div(count_LE.numel(), kThreads)), kThreads}, ctx,
         count_LE.as<double>(), count_LBE.as<int>(), count_LE.numel(), count_LBE.dim(1), count_LBE.dim(2));
}

void balance_loss(Tensor dprob_LBE, Tensor value_2, Tensor count_LBE, Tensor prob_sum_LBE, Tensor lse2_sum_LB,
                  Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss, Context& ctx) {
  const std::int64_t L = count_LBE.dim(0), B = count_LBE.dim(1), E = count_LBE.dim(2);
  ScratchScope scope(ctx.scratch);
  const Tensor value_LB2 = ctx.scratch.take(Shape{L * B, 2}, DType::f64);
  const Sums sums{.count_LBE = count_LBE.as<int>(),
                  .tokens_B = tokens_B.as<int>(),
                  .prob_sum_LBE = prob_sum_LBE.as<double>(),
                  .lse2_sum_LB = lse2_sum_LB.as<double>(),
                  .count_LE = count_LE.defined() ? count_LE.as<double>() : nullptr,
                  .L = static_cast<int>(L),
                  .B = static_cast<int>(B),
                  .E = static_cast<int>(E)};
  launch("balance_loss", factor_kernel, {blocks(L * B), kThreads}, ctx, dprob_LBE.as<double>(),
         value_LB2.as<double>(), sums, loss);
  launch("balance_loss: values", add_values_kernel, {1, kWarp}, ctx, value_2.as<double>(),
         value_LB2.as<double>(), L * B);
}

}  // namespace switchyard::ops::cuda
