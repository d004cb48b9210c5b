// The regularisation of latent prototype routing (ROUTERS.md, section 2): diversity of tokens and of keys, KL
// and alignment, from sums over tokens that micro-batches and ranks add up.   E experts, d latent width
#pragma once

#include <span>
#include <vector>

#include "router/latent.h"
#include "router/router.h"

namespace switchyard::router {

enum class Diversity { orthogonal, cosine, euclidean };

// What is known of n rows: G = N^T N and s = sum of N of the rows of length 1, or the sum of the distances of
// all ordered pairs.
struct RowSums {
  double n;
  std::span<const double> gram_dd, sum_d;
  double distance = 0;
};

// div(Y), and its gradient: matrix_dd N_i + offset_d with respect to N_i, or distance_scale times that of the
// sum of distances. Fewer than two rows: 0.
//   orthogonal  (|G|^2 - 2 tr G + n) / n^2         4 (G - I) N_i / n^2
//   cosine      (|s|^2 - tr G) / (n (n - 1))       2 (s - N_i) / (n (n - 1))
//   euclidean   - distance / (n (n - 1))
struct DiversityTerm {
  double value = 0;
  std::vector<double> matrix_dd, offset_d;
  double distance_scale = 0;
};
DiversityTerm diversity_term(Diversity kind, const RowSums& rows, std::int64_t d);

class LatentRegularisation {
 public:
  LatentRegularisation(const config::Router& options, std::int64_t n_experts);

  bool needs_statistics_first() const;
  bool needs_routed_sums() const { return align_coef_ != 0 || ema_; }

  // A forward pass in training: sets statistics(). z_Td is read where needs_routed_sums().
  void observe(const LatentRows& token, const LatentRows& key, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK,
               Tensor token_T, Context& ctx);
  std::span<const double> statistics() const { return statistics_; }

  // What the micro-batch that was observed last adds to the loss. `global`: statistics of the global batch.
  double loss(std::span<const double> global, double token_share) const;
  // Its gradient, added.
  void backward(const LatentRows& dtoken, const LatentRows& dkey, const LatentRows& token,
                const LatentRows& key, Tensor token_T, std::span<const double> global, double token_share,
                Context& ctx) const;

  // Of these statistics: R^T z [E, d] and the sums of R [E].
  std::span<const double> routed_sum_Ed(std::span<const double> statistics) const;
  std::span<const double> routed_count_E(std::span<const double> statistics) const;

 private:
  RowSums token_sums(std::span<const double> statistics) const;
  RowSums key_sums() const;
  std::span<const double> in_scope(std::span<const double> global) const;

  Diversity diversity_;
  bool global_scope_, ema_;
  double div_coef_, kl_coef_, align_coef_;  // reg_coef included
  std::int64_t n_experts_, width_;
  std::vector<double> statistics_;  // tokens, KL, distance, [d, d], [d], and where needed [E, d], [E]
  std::vector<double> key_gram_dd_, key_sum_d_, key_Ed_;
  double key_distance_ = 0;
};

}  // namespace switchyard::router
