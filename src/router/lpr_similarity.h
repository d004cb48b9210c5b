// How alike tokens and keys are, and what a token's similarities decode to: the similarities and distances of
// latent prototype routing with their parameters (docs/router-mathematics.md, section 2).
//   T tokens, E experts, d latent width, H heads
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "ops/prototype.h"
#include "router/router.h"

namespace switchyard::router {

// What the parts of latent prototype routing hand to one another (docs/router-mathematics.md, section 2).
// Rows of the latent space: tokens, or the experts' keys. unit: the means scaled to length 1 (norm: what they
// were). In a gradient, unit is what the reader of unit rows sends back, and norm is not defined.
struct LatentRows {
  Tensor mean;
  Tensor log_var{};  // of keys: only where the similarity compares distributions
  Tensor unit;
  Tensor norm{};
};

// The names that router.similarity may have.
std::vector<std::string_view> lpr_similarities();
// Whether keys have a log-variance, and V is made of projected key means.
bool compares_distributions(std::string_view similarity);

class LatentSimilarity {
 public:
  // Adds "similarity_func.*" as the similarity has them.
  LatentSimilarity(const config::Router& options, const RouterShape& shape, const std::string& prefix,
                   ParameterStore& store);
  void plan(Arena& arena, std::int64_t n_tokens, DType dtype);

  Tensor key_log_var() const;  // not defined where the similarity compares points
  Tensor key_log_var_grad() const;

  // score_TE = S, set.
  void forward(Tensor score_TE, const LatentRows& token, const LatentRows& key, Context& ctx);
  // V_Td, set. prob_TE: softmax over E of S. After forward().
  void decode(Tensor V_Td, Tensor prob_TE, const LatentRows& key, Context& ctx);

  // dprob_TE set and dkey added to: what decode() read. Before backward().
  void decode_backward(Tensor dprob_TE, const LatentRows& dkey, Tensor dV_Td, Tensor prob_TE,
                       const LatentRows& key, Context& ctx);
  // dtoken, dkey and the own parameters' gradients are added to. dV_Td: as in decode_backward.
  void backward(const LatentRows& dtoken, const LatentRows& dkey, Tensor dscore_TE, Tensor score_TE,
                Tensor dV_Td, const LatentRows& token, const LatentRows& key, Context& ctx);

 private:
  enum class Kind { cosine, dot, cross_attention, metric };
  struct Linear {
    std::size_t weight = 0, bias = 0;
  };
  Linear add_linear(const std::string& name, const RouterShape& shape, ParameterStore& store) const;
  void apply(Tensor out, const Linear& linear, Tensor in, Context& ctx) const;
  void apply_backward(Tensor din, Tensor dout, const Linear& linear, Tensor in, Context& ctx) const;
  ops::PrototypeMetric metric(bool backward) const;
  bool keys_have_variance() const;
  bool projects_values() const;  // V is not made of the keys as they are
  double attention_scale() const;
  void head_scores(Tensor score_TE, std::int64_t head, Context& ctx) const;

  Kind kind_;
  ops::PrototypeSimilarity metric_similarity_{};
  double sigma_;
  std::int64_t n_experts_, width_, heads_;
  std::string prefix_;
  ParameterStore& store_;
  std::size_t log_sigma_ = 0, key_log_var_ = 0, q_norm_ = 0, k_norm_ = 0;
  Linear q_proj_, k_proj_, value_proj_;
  Tensor q_in_Td_, q_rstd_T_, q_Td_, k_in_Ed_, k_rstd_E_, k_Ed_;  // projected, and after the norm
  Tensor value_Ed_;                                               // where projects_values()
};

}  // namespace switchyard::router
