// What the configuration and the operators of routing both know.
#pragma once

#include <cstdint>

namespace switchyard {

// Over what the share of slots on an expert is counted: the layer's micro-batch, each sequence, the layer's
// global batch, or all layers' micro-batch.
enum class BalanceScope : std::uint8_t { layer, sequence, global_batch, model };

// How the balance loss, the z-loss and the variance loss of one micro-batch are made.
struct BalanceLoss {
  BalanceScope scope = BalanceScope::layer;
  double balance_coef = 0;
  double z_coef = 0;
  double variance_coef = 0;
  std::int64_t n_slots = 1;      // the most that a token has
  std::int64_t n_tokens = 1;     // of the global batch, without padding
  std::int64_t n_sequences = 1;  // of the global batch
};

// A limit shared by the configuration, which refuses more, and the router's kernels, which keep one sum a
// group.
constexpr std::int64_t kMaxExpertGroups = 256;

}  // namespace switchyard
