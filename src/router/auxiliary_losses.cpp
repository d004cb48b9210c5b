#include "router/auxiliary_losses.h"

#include <numeric>

namespace switchyard::router {

namespace {

// counts of rows [first, first+rows) of a [B, E] tensor, added up
std::vector<double> counts_of_rows(const Tensor& count_BE, std::int64_t first, std::int64_t rows) {
  std::vector<double> count_E(static_cast<std::size_t>(count_BE.dim(1)));
  for (std::int64_t b = first; b < first + rows; ++b)
    for (std::size_t e = 0; e < count_E.size(); ++e) count_E[e] += count_BE.row<std::int32_t>(b)[e];
  return count_E;
}

// E c_i / sum of c: f_i, 1 where the load is even, whatever number of slots the tokens have. 0 without any
// slot.
std::vector<double> shares(std::vector<double> count_E) {
  const double sum = std::accumulate(count_E.begin(), count_E.end(), 0.0);
  for (double& count : count_E) count = sum > 0 ? static_cast<double>(count_E.size()) * count / sum : 0.0;
  return count_E;
}

}  // namespace

// Every scope has the form  loss = sum_i factor_i * (sum of P_i over tokens), where factor_i carries f_i and
// all normalisation; f_i has no gradient. So factor_i is also d loss / d P_ti, and one loop serves all four.
AuxiliaryLossValues AuxiliaryLosses::compute(std::span<const RoutingSums> sums_L,
                                             std::span<const std::int64_t> tokens_B, const GlobalBatch& batch,
                                             std::span<RoutingLossGradient> gradient_L) const {
  const auto L = static_cast<std::int64_t>(sums_L.size());
  const auto B = static_cast<std::int64_t>(tokens_B.size());
  const std::int64_t E = n_experts_;
  const auto micro_tokens =
      static_cast<double>(std::accumulate(tokens_B.begin(), tokens_B.end(), std::int64_t{0}));
  const auto all_tokens = static_cast<double>(batch.n_tokens);
  const double per_layer = options_.balance_coef / static_cast<double>(L);
  const double z_factor = options_.z_loss_coef / static_cast<double>(L) / all_tokens;
  const bool balance = options_.balance_coef != 0;
  SY_CHECK(gradient_L.size() == sums_L.size(), "{} gradients for {} layers", gradient_L.size(), L);

  // E c_i / T over the layers together, as transformers has it: K where the load is even.
  std::vector<double> model_share_E(static_cast<std::size_t>(E));
  if (balance && options_.balance_scope == config::BalanceScope::model && micro_tokens > 0)
    for (const RoutingSums& sums : sums_L) {
      const auto count_E = counts_of_rows(sums.count_BE, 0, B);
      for (std::size_t e = 0; e < count_E.size(); ++e)
        model_share_E[e] += static_cast<double>(E) * count_E[e] / (static_cast<double>(L) * micro_tokens);
    }

  AuxiliaryLossValues values;
  std::vector<double> share_E;
  for (std::int64_t l = 0; l < L; ++l) {
    const RoutingSums& sums = sums_L[static_cast<std::size_t>(l)];
    RoutingLossGradient& gradient = gradient_L[static_cast<std::size_t>(l)];
    gradient.dlse2 = z_factor;
    gradient.token_share = 1 / all_tokens;
    if (balance && options_.balance_scope == config::BalanceScope::layer)
      share_E = shares(counts_of_rows(sums.count_BE, 0, B));
    if (balance && options_.balance_scope == config::BalanceScope::global_batch) {
      const auto count_E = batch.count_LE.subspan(static_cast<std::size_t>(l * E), static_cast<std::size_t>(E));
      share_E = shares({count_E.begin(), count_E.end()});
    }
    for (std::int64_t b = 0; b < B; ++b) {
      values.z += z_factor * sums.lse2_sum_B.as<double>()[b];
      const auto sequence_tokens = static_cast<double>(tokens_B[static_cast<std::size_t>(b)]);
      double per_share = 0;  // what multiplies f_i
      if (balance && sequence_tokens > 0) {
        switch (options_.balance_scope) {
          case config::BalanceScope::layer:
          case config::BalanceScope::global_batch:
            per_share = per_layer / all_tokens;
            break;
          case config::BalanceScope::sequence:
            share_E = shares(counts_of_rows(sums.count_BE, b, 1));
            per_share = per_layer / (sequence_tokens * static_cast<double>(batch.n_sequences));
            break;
          case config::BalanceScope::model:
            share_E = model_share_E;
            per_share = per_layer / all_tokens;
            break;
        }
      }
      for (std::int64_t e = 0; e < E; ++e) {
        const double factor = per_share == 0 ? 0.0 : per_share * share_E[static_cast<std::size_t>(e)];
        gradient.dprob_BE.row<double>(b)[e] = factor;
        values.balance += factor * sums.prob_sum_BE.row<double>(b)[e];
      }
    }
  }
  return values;
}

}  // namespace switchyard::router
