#include "router/auxiliary_losses.h"

#include "ops/balance_loss.h"

namespace switchyard::router {

void AuxiliaryLosses::compute(Tensor value_2, const LossGradients& gradients, const LayerSums& sums,
                              Tensor tokens_B, const GlobalBatch& batch, Context& ctx) const {
  const std::int64_t L = sums.n_layers();
  SY_CHECK(static_cast<std::int64_t>(gradients.layer_L.size()) == L, "{} gradients for {} layers",
           gradients.layer_L.size(), L);
  if (L == 0) return;
  BalanceLoss loss = loss_;
  loss.n_tokens = batch.n_tokens;
  loss.n_sequences = batch.n_sequences;
  ops::balance_loss(gradients.dprob_LBE, value_2, sums.count_LBE, sums.prob_sum_LBE, sums.lse2_sum_LB, tokens_B,
                    batch.count_LE, loss, ctx);
  for (RoutingLossGradient& gradient : gradients.layer_L) {
    gradient.dlse2 = loss.z_coef / static_cast<double>(L) / static_cast<double>(batch.n_tokens);
    gradient.token_share = 1 / static_cast<double>(batch.n_tokens);
  }
}

}  // namespace switchyard::router
