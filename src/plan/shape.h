// What a planner has to know of a model: its parameters by part and what a token costs, in closed form, from
// the configuration alone. Nothing is made, so that a trillion parameters take no longer than a thousand.
//   D hidden size, V vocabulary, H heads, KV key-value heads, F width of a network, E experts, K of them a
//   token
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"

namespace switchyard::plan {

// Values of one layer, by what divides them.
struct LayerShape {
  double attention = 0;  // matrices of attention's projections
  double vectors = 0;    // norms and biases, of attention and of the layer
  double always = 0;     // the dense network, or the shared experts
  double router = 0;     // its matrix; with a bias where the router has one
  double experts = 0;    // of all E
  double active_experts = 0;
  bool moe = false;
  double dense() const { return attention + vectors + always + router; }  // what is not divided by experts
  double total() const { return dense() + experts; }
};

struct Shape {
  std::int64_t layers = 0, hidden = 0, vocab = 0, heads = 0, kv_heads = 0;
  std::int64_t key_width = 0, value_width = 0;            // of one head
  std::int64_t latent_q = 0, latent_kv = 0, rotated = 0;  // of latent attention; 0: grouped queries
  std::int64_t experts = 0, top_k = 0, expert_width = 0, shared_width = 0, dense_width = 0;
  double chosen_groups = 1;     // share of the groups of experts that one token can go to
  std::int64_t window = 0;      // 0: a token sees all before it
  std::int64_t mtp_depths = 0;  // layers of multi-token prediction that are trained
  bool tied = false;
  std::vector<LayerShape> layer;  // the main ones
  LayerShape mtp;                 // one depth, its projection and norms in it

  double embedding() const { return static_cast<double>(hidden * vocab); }
  double head() const { return tied ? 0 : embedding(); }
  double total() const;          // of the main model: the figure that is published
  double active() const;         // all but the experts that a token is not sent to
  double active_matmul() const;  // of these, those in matrix products: the head, not the embedding
  double mtp_values() const { return static_cast<double>(mtp_depths) * mtp.total(); }
  double expert_values() const;  // with those of multi-token prediction
  std::int64_t moe_layers() const;
  // Keys that a token of a sequence of so many sees on average, half of them where there is no window.
  double mean_keys(std::int64_t seq_len) const;
};

// `mtp`: with the layers for multi-token prediction that the model names.
Shape shape_of(const config::Model& model, std::int64_t slots_a_token, bool mtp);

// FLOPs of one token in training, forward and backward: 6 times the values of the matrices that work on it,
// head included and embedding not, and 6 (d_qk + d_v) heads for each key that it sees, in each layer; a depth
// of multi-token prediction is its layer, its projection and one more head.
struct TokenFlops {
  double products = 0, experts = 0, attention = 0, head = 0;
  double total() const { return products + experts + attention + head; }
};
TokenFlops flops_of(const Shape& shape, std::int64_t seq_len);
// With the numbers put in: "6 x 3,031,171,072 + 12 x 48 x 32 x (128 + 128) x 2,048 keys / 2".
std::string flops_formula(const Shape& shape, std::int64_t seq_len);

}  // namespace switchyard::plan
