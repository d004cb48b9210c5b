#include "config/layouts.h"

#include <fmt/core.h>

#include <algorithm>

#include "core/error.h"

namespace switchyard::config {

std::span<const std::string_view> keys_of_every_layout() {
  static constexpr std::string_view kKeys[] = {"model_type",
                                               "vocab_size",
                                               "hidden_size",
                                               "num_hidden_layers",
                                               "num_attention_heads",
                                               "num_key_value_heads",
                                               "head_dim",
                                               "intermediate_size",
                                               "num_experts_per_tok",
                                               "norm_topk_prob",
                                               "routed_scaling_factor",
                                               "tie_word_embeddings",
                                               "rms_norm_eps",
                                               "rope_theta",
                                               "rope_parameters",
                                               "rope_scaling",
                                               "max_position_embeddings",
                                               "initializer_range",
                                               "hidden_act",
                                               "attention_dropout",
                                               "layer_types",
                                               "mlp_layer_types",
                                               "quantization_config"};
  return kKeys;
}

bool Layout::has_key(std::string_view key) const {
  const auto all = keys_of_every_layout();
  return std::find(keys.begin(), keys.end(), key) != keys.end() ||
         std::find(all.begin(), all.end(), key) != all.end();
}

void read_grouped_query_attention(Section& section, Model& model,
                                  std::optional<std::int64_t> default_kv_heads) {
  model.num_attention_heads = section.integer("num_attention_heads", 1, kMaxSize);
  // transformers reads null as one key-value head a query head.
  const Json* kv_heads = section.find("num_key_value_heads");
  model.num_key_value_heads = kv_heads != nullptr && kv_heads->is_null()
                                  ? model.num_attention_heads
                                  : section.integer("num_key_value_heads", 1, kMaxSize,
                                                    default_kv_heads.value_or(model.num_attention_heads));
  if (model.num_attention_heads % model.num_key_value_heads != 0) {
    section.fail(
        "num_key_value_heads",
        fmt::format("is {}{}, which does not divide num_attention_heads ({})", model.num_key_value_heads,
                    kv_heads == nullptr ? " by default" : "", model.num_attention_heads),
        section.path_of("num_attention_heads"));
  }
  if (const auto head_dim = section.nullable_integer("head_dim", 1, kMaxSize)) {
    model.head_dim = *head_dim;
  } else if (model.hidden_size % model.num_attention_heads != 0) {
    section.fail("num_attention_heads",
                 fmt::format("is {}, which does not divide hidden_size ({}); or give head_dim",
                             model.num_attention_heads, model.hidden_size),
                 section.path_of("hidden_size"));
  } else {
    model.head_dim = model.hidden_size / model.num_attention_heads;
  }
  if (model.head_dim % 2 != 0) {
    section.fail("head_dim",
                 fmt::format("is {}{}; rotary embedding needs an even number", model.head_dim,
                             section.has("head_dim") ? "" : " (hidden_size / num_attention_heads)"));
  }
}

void check_top_k(Section& section, const Model& model, std::string_view experts_key) {
  if (model.num_experts_per_tok > model.num_experts) {
    section.fail(
        "num_experts_per_tok",
        fmt::format("is {}, more than {} ({})", model.num_experts_per_tok, experts_key, model.num_experts),
        section.path_of(experts_key));
  }
}

void require_number(Section& section, std::string_view key, double only) {
  const Json* json = section.find(key);
  if (json == nullptr) return;
  const auto* real = json->get<double>();
  const auto* integer = json->get<std::int64_t>();
  if (real != nullptr && *real == only) return;
  if (integer != nullptr && static_cast<double>(*integer) == only) return;
  section.fail(key, fmt::format("is {}; only {} is supported", describe(*json), only));
}

void require_text(Section& section, std::string_view key, std::string_view only) {
  const Json* json = section.find(key);
  if (json == nullptr) return;
  const auto* text = json->get<std::string>();
  if (text == nullptr || *text != only) {
    section.fail(key, fmt::format("is {}; only \"{}\" is supported", describe(*json), only));
  }
}

void read_expert_weights(Section& section, const Layout& layout, Model& model) {
  constexpr double kDeepseekDefault = 2.5;
  model.norm_topk_prob = section.boolean("norm_topk_prob", layout.norm_topk_prob);
  const double scaling = section.number("routed_scaling_factor", {0, 1e6, true},
                                        layout.reads_scaling_factor ? kDeepseekDefault : 1);
  if (has_moe_layer(model)) model.routed_scaling_factor = scaling;
}

void write_expert_weights(const Model& model, Json::Object& out) {
  const Layout& layout = *model.layout;
  if (has_moe_layer(model) && (layout.reads_scaling_factor || model.routed_scaling_factor != 1))
    out.push_back({"routed_scaling_factor", model.routed_scaling_factor});
  if (!layout.always_normalises || !model.norm_topk_prob)
    out.push_back({"norm_topk_prob", model.norm_topk_prob});
}

std::vector<std::string> weights_beyond_layout(const Model& model) {
  const Layout& layout = *model.layout;
  std::vector<std::string> clauses;
  if (!has_moe_layer(model)) return clauses;
  if (layout.always_normalises && !model.norm_topk_prob)
    clauses.push_back(fmt::format("norm_topk_prob is false, {} always has it", layout.name));
  if (!layout.reads_scaling_factor && model.routed_scaling_factor != 1)
    clauses.push_back(fmt::format("routed_scaling_factor is {}, {} has no such factor",
                                  model.routed_scaling_factor, layout.name));
  return clauses;
}

Model with_weights_of_layout(Model model) {
  if (model.layout->always_normalises) model.norm_topk_prob = true;
  if (!model.layout->reads_scaling_factor) model.routed_scaling_factor = 1;
  return model;
}

std::int64_t count_moe_layers(const Model& model) {
  return std::count_if(model.layers.begin(), model.layers.end(),
                       [](const LayerSpec& layer) { return layer.moe; });
}

bool has_moe_layer(const Model& model) { return count_moe_layers(model) > 0; }

bool has_dense_layer(const Model& model) { return count_moe_layers(model) < model.num_hidden_layers; }

}  // namespace switchyard::config
