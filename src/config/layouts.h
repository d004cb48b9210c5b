// The layouts of models: for each one, what its keys of a Hugging Face config.json mean and under which names
// its weights are published. A layout is one file of layouts/, which defines its row, and a line of kLayouts;
// hugging_face.cpp reads and writes what all of them have.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/section.h"

namespace switchyard::config {

struct Layout {
  std::string_view name;          // model_type
  std::string_view architecture;  // the class of transformers
  std::string_view router;        // the type of its own router
  // What transformers puts where config.json says nothing. No router_aux_loss_coef: it has no balance loss.
  std::int64_t max_position_embeddings;
  double rms_norm_eps;
  double rope_theta;
  std::optional<double> router_aux_loss_coef;

  std::span<const std::string_view> keys;  // of config.json, beside those that every layout has
  // Sets what the layout's keys decide; hidden_size and num_hidden_layers of the model are set before. Throws
  // InputError.
  void (*read)(Section& section, Model& model);
  // Puts those keys so that read() gives the same model.
  void (*write)(const Model& model, Json::Object& out);

  // Names of weights: model.layers.N.<block>.gate.weight, model.layers.N.<block>.experts.E.<gate_proj>.weight.
  std::string_view moe_block = "mlp";
  std::string_view gate_proj = "gate_proj";
  std::string_view up_proj = "up_proj";
  std::string_view down_proj = "down_proj";

  // What is true of every model of the layout, in the words of keys that no layout has (published.h).
  std::string_view attention = "gqa";
  std::string_view scoring_func = "softmax";
  std::string_view topk_method = "greedy";
  std::span<const std::string_view> always_has = {};  // subjects of switches, as published.cpp spells them
  std::span<const std::string_view> sizes = {};       // letters of sizes without which there is no such model
  // What transformers does with the weights of the chosen experts: the default of norm_topk_prob, which Mixtral
  // has always; multiplies them by routed_scaling_factor (DeepSeek), which is 1 elsewhere.
  bool norm_topk_prob = false;
  bool always_normalises = false;
  bool reads_scaling_factor = false;
  // Attention's scores grow with yarn's mscale_all_dim, whatever the kind of scaling (DeepSeek).
  bool scores_follow_mscale = false;

  bool has_key(std::string_view key) const;
  bool operator==(const Layout& other) const { return this == &other; }  // there is one of each
};

extern const Layout kMixtral, kQwen3Moe, kDeepseekV3, kOlmoe;
inline constexpr const Layout* kLayouts[] = {&kMixtral, &kQwen3Moe, &kDeepseekV3, &kOlmoe};

// Keys of config.json that every layout has.
std::span<const std::string_view> keys_of_every_layout();

// What layouts' readers share.
// num_attention_heads, num_key_value_heads and head_dim of grouped-query attention; no `default_kv_heads`: as
// many as query heads.
void read_grouped_query_attention(Section& section, Model& model, std::optional<std::int64_t> default_kv_heads);
// Throws where num_experts_per_tok is above the number of experts, which `experts_key` gave.
void check_top_k(Section& section, const Model& model, std::string_view experts_key);
// A key whose other values would change the computation in a way that is not implemented.
void require_number(Section& section, std::string_view key, double only);
void require_text(Section& section, std::string_view key, std::string_view only);

// norm_topk_prob and routed_scaling_factor, which every layout has; what no layer has is neutral.
void read_expert_weights(Section& section, const Layout& layout, Model& model);
// Of the two, those that are not what transformers computes in this layout anyway, and norm_topk_prob where the
// layout reads it.
void write_expert_weights(const Model& model, Json::Object& out);
// One clause each: where weights are not those that transformers computes in the model's layout.
std::vector<std::string> weights_beyond_layout(const Model& model);
// The same model with those weights.
Model with_weights_of_layout(Model model);

std::int64_t count_moe_layers(const Model& model);
bool has_moe_layer(const Model& model);
bool has_dense_layer(const Model& model);

}  // namespace switchyard::config
