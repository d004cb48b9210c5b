// A router: which experts a token goes to, and with what weight.
//   T tokens of B sequences, D hidden size, E experts, K slots a token
//
// A router is one class in one file of this module and one line of registry.cpp (docs/routers.md walks through
// an example). It adds its parameters to the store when it is made, reserves in plan() what its forward pass
// keeps for its backward pass, and leaves capacity, sums, losses, permutation, experts and balance figures to
// others: those work from what RouterOutput says (routed_layer.h).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "config/config.h"
#include "config/router_schema.h"
#include "core/context.h"
#include "core/parameters.h"

namespace switchyard::router {

struct RouterShape {
  std::int64_t hidden_size;
  std::int64_t n_experts;
  std::int64_t n_slots;  // num_experts_per_tok; a router with a dynamic number has max_experts slots instead
  std::int64_t n_group = 1;     // experts in so many groups of neighbours (DeepSeek-V3)
  std::int64_t topk_group = 1;  // of which so many stay
  bool normalise_weights;       // Hugging Face's norm_topk_prob
  double weight_scale = 1.0;    // Hugging Face's routed_scaling_factor: multiplies every router's weights
  double init_std;
  std::int64_t vocab_size = 0;
  std::int64_t layer = 0;  // of the model: no two layers draw the same noise
  // One of the first num_hash_layers layers: a table of tokens chooses. Scores of the layout's own weigh there,
  // unless the router has a score_function.
  bool hashed = false;
  bool sigmoid_scores = false;
};

// One micro-batch of n_seq * seq_len tokens, as a router sees it.
struct RouterBatch {
  Tensor token_T;  // i32, < vocab_size; negative: padding, which gets free slots only
  std::int64_t n_seq = 1;
  std::int64_t seq_len = 1;
  // Noise is drawn and statistics are made only in training.
  bool training = false;
  std::uint64_t seed = 0;
  // i32 {step, first sequence in the global batch}: the offset of the noise (ops/elementwise.h).
  Tensor rng_offset_2{};
  // Entropy of the token's attention row, mean over heads, over the logarithm of the row's length. Only where
  // Router::needs_attention_entropy().
  Tensor attention_entropy_T{};
  // The noise of latents, [T, latent width], where it is given instead of drawn: to compare with other
  // programs.
  Tensor epsilon_Td{};
};

struct RoutingDecision {
  Tensor expert_TK;  // i32; -1: a free slot
  Tensor weight_TK;  // compute type; 0 in free slots
  // What the experts see beside x: x + addend. Shared experts and the residual stream see x. Not defined:
  // nothing.
  Tensor expert_input_addend_TD{};
};

struct RouterOutput {
  RoutingDecision decision;
  Tensor prob_TE;  // the router's probabilities: what the balance loss is made of
  Tensor lse_T{};  // logsumexp of the logits: what the z-loss is made of; not defined: there is no z-loss
};

// What comes back through the experts. A slot that was dropped since the decision has dweight 0.
struct RoutingGradient {
  Tensor dweight_TK;
  Tensor daddend_TD{};  // defined where expert_input_addend_TD is; 0 for padding, which no expert sees
};

// What the losses send back, and what the router's own loss is made of.
struct RoutingLossGradient {
  // f64: with respect to the probabilities of each token of the sequence, but for what dprob2 has of them.
  Tensor dprob_BE;
  double dlse2;            // with respect to each token's squared log-sum-exp
  double doverlap = 0;     // with respect to the overlap of each token's experts (ops/overlap.h)
  double dprob2 = 0;       // with respect to the sum of each token's squared probabilities
  double token_share = 0;  // 1 / the tokens of the global batch, without padding
  // The router's statistics. Of the whole global batch where needs_statistics_first(); of this micro-batch and
  // those before it elsewhere.
  Tensor statistics_S{};
  Tensor tokens_B{};  // i32, the micro-batch's: of each sequence, without padding
};

using TensorVisitor = std::function<void(const std::string& name, const Tensor& tensor)>;

class Router {
 public:
  virtual ~Router() = default;

  // Columns of expert_TK. A token may have fewer experts: the rest of its slots are free.
  virtual std::int64_t n_slots() const = 0;
  // True: RouterBatch::attention_entropy_T must be given.
  virtual bool needs_attention_entropy() const { return false; }
  // True: add_router_loss() and backward() need the statistics of the whole global batch.
  virtual bool needs_statistics_first() const { return false; }

  // Reserves what is kept between forward and backward, for micro-batches of n_seq * seq_len tokens. Layers may
  // share that memory: their forward passes are run again, one before each backward pass.
  virtual void plan(Arena& arena, std::int64_t n_seq, std::int64_t seq_len, DType dtype) = 0;

  // x_TD: the normed hidden state. All of a router is computed in x's dtype: float32 whatever train.dtype is.
  // On a device a micro-batch is recorded and replayed: forward, add_router_loss and backward start the same
  // operators each time, and read nothing back.
  virtual RouterOutput forward(Tensor x_TD, const RouterBatch& batch, Context& ctx) = 0;

  // Of the last forward pass: what this micro-batch adds to the router's own loss of the global batch,
  // coefficient included, is added to loss_1 (f64). Made of statistics and parameters, which layers do not
  // share. Its gradient is part of backward().
  virtual void add_router_loss(Tensor, const RoutingLossGradient&, Context&) const {}

  // dx_TD is added to; the router's own parameter gradients are added to the store.
  virtual void backward(Tensor dx_TD, const RoutingGradient& gradient, Tensor x_TD, const RouterBatch& batch,
                        const RoutingLossGradient& loss_gradient, Context& ctx) = 0;

  // How many sums over tokens a forward pass in training sets in statistics(), all of them. Over micro-batches
  // and ranks they are added up.
  virtual std::int64_t n_statistics() const { return 0; }
  // statistics_S: f64 [n_statistics()], where the run computes.
  void keep_statistics_in(Tensor statistics_S) { statistics_S_ = statistics_S; }
  Tensor statistics() const { return statistics_S_; }

  // How many sums over tokens observe_gradient() adds to in gradient_statistics(). Over ranks they are added
  // up.
  virtual std::int64_t n_gradient_statistics() const { return 0; }
  // gradient_statistics_S: f64 [n_gradient_statistics()], where the run computes; zeros when a step begins.
  void keep_gradient_statistics_in(Tensor gradient_statistics_S) {
    gradient_statistics_S_ = gradient_statistics_S;
  }
  Tensor gradient_statistics() const { return gradient_statistics_S_; }
  // Called where there are any, once for each micro-batch: dx_TD is all that comes back to the router's input,
  // of x's dtype, with respect to the loss that is a mean over the global batch. token_share:
  // RoutingLossGradient's.
  virtual void observe_gradient(Tensor, const RouterBatch&, double, Context&) {}

  // Called after each optimizer step, for updates that are not by gradient. count_E: slots on each expert, and
  // statistics_S, of the whole global batch; f64, where the run computes. What moves here is a row of the store
  // that is not trained, so that checkpoints keep it. Reads nothing back.
  virtual void after_step(Tensor, Tensor, Context&) {}

  // How many training tokens settle() is to be fed before the run is evaluated or saved; 0: it does nothing.
  virtual std::int64_t settle_tokens() const { return 0; }
  // after_step() between optimizer steps, of a global batch that was run forward alone: what is kept keeps
  // `keep` of itself, whatever a step of training keeps.
  virtual void settle(Tensor, Tensor, double, Context&) {}

  // Multiply-adds of a token beside one for each value of the router's matrices (model/cost.h).
  virtual std::int64_t extra_multiply_adds() const { return 0; }

  // The tensors of the last forward pass, in the order in which they were computed.
  virtual void visit_saved(const TensorVisitor& visit) const = 0;

 protected:
  Tensor statistics_S_, gradient_statistics_S_;
};

// A type of router: how it is configured, and how one is made. Its parameters are called `prefix` + their name
// ("model.layers.0.mlp.gate.").
struct RouterType {
  config::RouterSchema schema;
  std::unique_ptr<Router> (*make)(const config::Router& options, const RouterShape& shape,
                                  const std::string& prefix, ParameterStore& store);
};

// The maker of a router whose constructor takes the same.
template <class R>
std::unique_ptr<Router> make_router_of(const config::Router& options, const RouterShape& shape,
                                       const std::string& prefix, ParameterStore& store) {
  return std::make_unique<R>(options, shape, prefix, store);
}

// The types of routers there are.

// What the reader of a configuration needs to know of them.
std::span<const config::RouterSchema> router_schemas();

// Makes the router that the options name; in a hashed layer the one of hash_layer.h.
std::unique_ptr<Router> make_router(const config::Router& options, const RouterShape& shape,
                                    const std::string& prefix, ParameterStore& store);

// One more type, for this process: how a test adds its example. Throws std::logic_error where the type is
// there.
void add_router(RouterType type);

}  // namespace switchyard::router
