#include "router/auxiliary_losses.h"

#include <numeric>
#include <vector>

#include "core/device_memory.h"

namespace switchyard::router {

namespace {

// sum over rows [first, first+rows) of a [B, E] tensor, column e
template <class T>
double column_sum(const Tensor& BE, std::int64_t first, std::int64_t rows, std::int64_t e) {
  double sum = 0;
  for (std::int64_t b = first; b < first + rows; ++b) sum += static_cast<double>(BE.row<T>(b)[e]);
  return sum;
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
  SY_CHECK(gradient_L.size() == sums_L.size(), "{} gradients for {} layers", gradient_L.size(), L);

  std::vector<HostCopy> count_LBE;
  for (const RoutingSums& sums : sums_L) count_LBE.emplace_back(sums.count_BE);
  AuxiliaryLossValues values;
  for (std::int64_t l = 0; l < L; ++l) {
    const RoutingSums& sums = sums_L[static_cast<std::size_t>(l)];
    RoutingLossGradient& gradient = gradient_L[static_cast<std::size_t>(l)];
    const HostCopy lse2_sum_B(sums.lse2_sum_B), prob_sum_BE(sums.prob_sum_BE), dprob_BE(gradient.dprob_BE);
    const Tensor& count_BE = count_LBE[static_cast<std::size_t>(l)].tensor();
    gradient.dlse2 = z_factor;
    gradient.token_share = 1 / all_tokens;
    for (std::int64_t b = 0; b < B; ++b) {
      values.z += z_factor * lse2_sum_B->as<double>()[b];
      const auto sequence_tokens = static_cast<double>(tokens_B[static_cast<std::size_t>(b)]);
      for (std::int64_t e = 0; e < E; ++e) {
        double factor = 0;
        if (options_.balance_coef != 0 && sequence_tokens > 0) {
          const double slots = static_cast<double>(n_slots_);
          switch (options_.balance_scope) {
            case config::BalanceScope::layer:
              factor = per_layer * static_cast<double>(E) * column_sum<std::int32_t>(count_BE, 0, B, e) /
                       (slots * micro_tokens) / all_tokens;
              break;
            case config::BalanceScope::sequence:
              factor = per_layer * static_cast<double>(E) * column_sum<std::int32_t>(count_BE, b, 1, e) /
                       (slots * sequence_tokens) / (sequence_tokens * static_cast<double>(batch.n_sequences));
              break;
            case config::BalanceScope::global_batch:
              factor = per_layer * static_cast<double>(E) *
                       batch.count_LE[static_cast<std::size_t>(l * E + e)] / (slots * all_tokens) / all_tokens;
              break;
            case config::BalanceScope::model: {
              double count = 0;
              for (const HostCopy& other : count_LBE)
                count += column_sum<std::int32_t>(other.tensor(), 0, B, e);
              const auto layers = static_cast<double>(L);
              factor = options_.balance_coef * static_cast<double>(E) * count / (layers * micro_tokens) /
                       (layers * all_tokens);
              break;
            }
          }
        }
        dprob_BE->row<double>(b)[e] = factor;
        values.balance += factor * prob_sum_BE->row<double>(b)[e];
      }
    }
    dprob_BE.write_back();
  }
  return values;
}

}  // namespace switchyard::router
