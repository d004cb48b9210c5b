// The regularisation of latent prototype routing (docs/router-mathematics.md, section 2): diversity of tokens
// and of keys, KL and alignment, from sums over tokens that micro-batches and ranks add up.
//   E experts, d latent width, S statistics
#pragma once

#include "ops/latent_losses.h"
#include "router/lpr_similarity.h"
#include "router/router.h"

namespace switchyard::router {

class LatentRegularisation {
 public:
  LatentRegularisation(const config::Router& options, std::int64_t n_experts);

  bool needs_statistics_first() const;
  bool needs_routed_sums() const { return align_coef_ != 0 || ema_; }
  std::int64_t n_statistics() const;

  // A forward pass in training: statistics_S (f64), set. z_Td is read where needs_routed_sums().
  void observe(Tensor statistics_S, const LatentRows& token, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK,
               Tensor token_T, Context& ctx) const;

  // loss_1 (f64) += what a micro-batch adds to the loss. own_S, global_S: statistics of the micro-batch and of
  // the global batch.
  void add_loss(Tensor loss_1, Tensor key_Ed, Tensor own_S, Tensor global_S, double token_share,
                Context& ctx) const;
  // Its gradient, added.
  void backward(const LatentRows& dtoken, const LatentRows& dkey, const LatentRows& token,
                const LatentRows& key, Tensor token_T, Tensor own_S, Tensor global_S, double token_share,
                Context& ctx) const;

  // Of statistics: R^T z and the sums of R.
  struct RoutedSums {
    Tensor sum_Ed, count_E;
  };
  RoutedSums routed_sums(Tensor statistics_S) const;

 private:
  // What is where in statistics.
  struct Parts {
    Tensor tokens_1, kl_1, distance_1, gram_dd, sum_d;
    Tensor routed_sum_Ed{}, routed_count_E{};  // where needs_routed_sums()
  };
  Parts parts(const Tensor& statistics_S) const;
  std::int64_t routed_place() const { return kMoments + width_ * width_ + width_; }
  ops::RowSums token_sums(const Parts& parts) const;
  // In scratch space of the caller's scope.
  ops::RowSums key_sums(Tensor key_Ed, Tensor key_unit_Ed, Context& ctx) const;
  void add_diversity_gradient(const LatentRows& drow, const LatentRows& row, Tensor token_R,
                              const ops::RowSums& sums, const ops::TermFactor& factor, Context& ctx) const;

  static constexpr std::int64_t kTokens = 0, kKl = 1, kDistance = 2, kMoments = 3;
  ops::Diversity diversity_;
  bool global_scope_, ema_;
  double div_coef_, kl_coef_, align_coef_;  // reg_coef included
  std::int64_t n_experts_, width_;
};

}  // namespace switchyard::router
