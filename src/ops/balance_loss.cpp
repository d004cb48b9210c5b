#include "ops/balance_loss.h"

#include <numeric>

namespace switchyard::ops {

namespace {

void add_counts_on_cpu(Tensor count_LE, Tensor count_LBE) {
  const std::int64_t L = count_LBE.dim(0), B = count_LBE.dim(1), E = count_LBE.dim(2);
  const auto* count = count_LBE.as<std::int32_t>();
  for (std::int64_t l = 0; l < L; ++l) {
    double* const sum = count_LE.row<double>(l);
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t e = 0; e < E; ++e) sum[e] += count[(l * B + b) * E + e];
  }
}

void balance_loss_on_cpu(Tensor dprob_LBE, Tensor value_2, Tensor count_LBE, Tensor prob_sum_LBE,
                         Tensor lse2_sum_LB, Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss) {
  const std::int64_t L = count_LBE.dim(0), B = count_LBE.dim(1), E = count_LBE.dim(2);
  const auto* const count = count_LBE.as<std::int32_t>();
  const auto* const tokens = tokens_B.as<std::int32_t>();
  const auto *const prob_sum = prob_sum_LBE.as<double>(), *const lse2_sum = lse2_sum_LB.as<double>();
  auto *const dprob = dprob_LBE.as<double>(), *const value = value_2.as<double>();
  // The sum of an expert's counts over layers [first, end), all sequences.
  const auto counted = [&](std::int64_t e, std::int64_t first, std::int64_t end) {
    double sum = 0;
    for (std::int64_t lb = first * B; lb < end * B; ++lb) sum += count[lb * E + e];
    return sum;
  };
  const double micro_tokens = std::accumulate(tokens, tokens + B, 0.0);
  const auto all_tokens = static_cast<double>(loss.n_tokens), slots = static_cast<double>(loss.n_slots),
             layers = static_cast<double>(L), experts = static_cast<double>(E);
  const double per_layer = loss.balance_coef / layers, z_factor = loss.z_coef / layers / all_tokens;
  for (std::int64_t l = 0; l < L; ++l) {
    for (std::int64_t b = 0; b < B; ++b) {
      const std::int64_t lb = l * B + b;
      value[1] += z_factor * lse2_sum[lb];
      const double sequence_tokens = tokens[b];
      for (std::int64_t e = 0; e < E; ++e) {
        double factor = 0;
        if (loss.balance_coef != 0 && sequence_tokens > 0) {
          switch (loss.scope) {
            case BalanceScope::layer:
              factor = per_layer * experts * counted(e, l, l + 1) / (slots * micro_tokens) / all_tokens;
              break;
            case BalanceScope::sequence:
              factor = per_layer * experts * count[lb * E + e] / (slots * sequence_tokens) /
                       (sequence_tokens * static_cast<double>(loss.n_sequences));
              break;
            case BalanceScope::global_batch:
              factor = per_layer * experts * count_LE.row<double>(l)[e] / (slots * all_tokens) / all_tokens;
              break;
            case BalanceScope::model:
              factor = loss.balance_coef * experts * counted(e, 0, L) / (layers * micro_tokens) /
                       (layers * all_tokens);
              break;
          }
        }
        dprob[lb * E + e] = factor;
        value[0] += factor * prob_sum[lb * E + e];
      }
    }
  }
}

}  // namespace

void add_counts(Tensor count_LE, Tensor count_LBE, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(count_LBE), DType::i32, kContiguous)(SY_ARG(count_LE), DType::f64, kContiguous);
  run<&cuda::add_counts>(ctx, add_counts_on_cpu, count_LE, count_LBE);
}

void balance_loss(Tensor dprob_LBE, Tensor value_2, Tensor count_LBE, Tensor prob_sum_LBE, Tensor lse2_sum_LB,
                  Tensor tokens_B, Tensor count_LE, const BalanceLoss& loss, Context& ctx) {
  const DType f64 = DType::f64;
  Signature args(ctx);
  args(SY_ARG(count_LBE), DType::i32, kContiguous)(SY_ARG(tokens_B), DType::i32);
  args(SY_ARG(prob_sum_LBE), f64, kContiguous)(SY_ARG(lse2_sum_LB), f64, kContiguous);
  args(SY_ARG(dprob_LBE), f64, kContiguous)(SY_ARG(value_2), f64, kContiguous);
  if (loss.scope == BalanceScope::global_batch && loss.balance_coef != 0)
    args(SY_ARG(count_LE), f64, kContiguous);
  run<&cuda::balance_loss>(ctx, balance_loss_on_cpu, dprob_LBE, value_2, count_LBE, prob_sum_LBE, lse2_sum_LB,
                           tokens_B, count_LE, loss);
}

}  // namespace switchyard::ops
