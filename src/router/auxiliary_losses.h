// Balance loss and z-loss (docs/router-mathematics.md, section 3; formulas: ops/balance_loss.h).   L layers
// with experts, B sequences, E experts, K slots a token
//
// Their strength does not depend on how a global batch is cut into micro-batches: every micro-batch contributes
// in proportion to its tokens, and the contributions of one global batch add up to one loss.
#pragma once

#include <cstdint>
#include <span>

#include "config/config.h"
#include "router/stage.h"

namespace switchyard::router {

// The whole batch of an optimizer step, over all micro-batches and ranks. Padding is not counted.
struct GlobalBatch {
  std::int64_t n_tokens;
  std::int64_t n_sequences;
  Tensor count_LE;  // f64: slots on each expert; only read where needs_global_counts()
};

struct AuxiliaryLossValues {
  double balance = 0;
  double z = 0;
};

// What the losses send back to all routers.
struct LossGradients {
  Tensor dprob_LBE;                        // f64
  std::span<RoutingLossGradient> layer_L;  // dprob_BE of each is a part of it
};

class AuxiliaryLosses {
 public:
  // n_slots: the most that a token has (config::slots_per_token).
  AuxiliaryLosses(const config::Router& options, std::int64_t n_slots)
      : loss_{.scope = options.balance_scope,
              .balance_coef = options.balance_coef,
              .z_coef = options.z_loss_coef,
              .n_slots = n_slots} {}

  // True where the gradient of a micro-batch needs the counts of the whole global batch first.
  bool needs_global_counts() const {
    return loss_.balance_coef != 0 && loss_.scope == BalanceScope::global_batch;
  }

  // One micro-batch: the sums of its layers and the tokens of each sequence that are not padding (tokens_B,
  // i32). Sets the gradients, each layer's dlse2 and token_share among them, and adds what the micro-batch adds
  // to the losses of the global batch (coefficients included) to value_2 (f64): balance, z. All of it on the
  // run's device; nobody waits.
  void compute(Tensor value_2, const LossGradients& gradients, const LayerSums& sums, Tensor tokens_B,
               const GlobalBatch& batch, Context& ctx) const;

 private:
  BalanceLoss loss_;
};

}  // namespace switchyard::router
