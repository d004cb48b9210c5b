// Balance loss and z-loss (ROUTERS.md, section 3).   L layers with experts, B sequences, E experts, K slots a
// token
//
// Their strength does not depend on how a global batch is cut into micro-batches: every micro-batch contributes
// in proportion to its tokens, and the contributions of one global batch add up to one loss.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "config/config.h"
#include "router/stage.h"

namespace switchyard::router {

// The whole batch of an optimizer step, over all micro-batches and ranks. Padding is not counted.
struct GlobalBatch {
  std::int64_t n_tokens;
  std::int64_t n_sequences;
  std::span<const double> count_LE;  // slots on each expert; only read where needs_global_counts()
};

struct AuxiliaryLossValues {
  double balance = 0;
  double z = 0;
};

class AuxiliaryLosses {
 public:
  // n_slots: the most that a token has (config::slots_per_token).
  AuxiliaryLosses(const config::Router& options, std::int64_t n_experts, std::int64_t n_slots)
      : options_(options), n_experts_(n_experts), n_slots_(n_slots) {}

  // True where the gradient of a micro-batch needs the counts of the whole global batch first.
  bool needs_global_counts() const {
    return options_.balance_coef != 0 && options_.balance_scope == config::BalanceScope::global_batch;
  }

  // One micro-batch: `sums_L` of its layers and the tokens of each sequence that are not padding. Sets
  // gradient_L[l].dprob_BE, .dlse2 and .token_share, and returns what the micro-batch adds to the losses of the
  // global batch (coefficients included).
  AuxiliaryLossValues compute(std::span<const RoutingSums> sums_L, std::span<const std::int64_t> tokens_B,
                              const GlobalBatch& batch, std::span<RoutingLossGradient> gradient_L) const;

 private:
  config::Router options_;
  std::int64_t n_experts_;
  std::int64_t n_slots_;
};

}  // namespace switchyard::router
