#include "config/hugging_face.h"

#include <algorithm>
#include <cmath>

#include "config/load.h"
#include "core/error.h"

namespace switchyard::config {
namespace {

constexpr std::int64_t kMaxLayers = 65536;
// Bytes of optimizer state and gradients must fit int64 with room to spare.
constexpr double kMaxParameters = 281474976710656.0;  // 2^48
constexpr Interval kEpsilon{1e-30, 1};                // as float32 neither zero nor too small to divide by

// What transformers puts where a family's config.json says nothing; sizes have no default here.
struct FamilyDefaults {
  std::int64_t num_key_value_heads;
  std::int64_t max_position_embeddings;
  double rms_norm_eps;
  double rope_theta;
};

FamilyDefaults defaults_of(Family family) {
  switch (family) {
    case Family::mixtral:
      return {8, 131072, 1e-5, 1e6};
    case Family::qwen3_moe:
      return {4, 32768, 1e-6, 1e4};
  }
  SY_CHECK(false, "no such family");
  return {};
}

Family read_family(const Json* json, const std::string& path, const Source& source) {
  const std::string key_path = path.empty() ? "model_type" : path + ".model_type";
  std::string known;
  for (const Family family : kFamilies)
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name_of(family));
  const auto* object = json == nullptr ? nullptr : json->get<Json::Object>();
  if (json != nullptr && object == nullptr) {
    source.fail(path, fmt::format("is {}, expected an object", describe(*json)));
  }
  const Json* found = object == nullptr ? nullptr : find_member(*object, "model_type");
  if (found == nullptr) source.fail(key_path, "missing, and it has no default; add one of: " + known);
  const auto* name = found->get<std::string>();
  if (name == nullptr)
    source.fail(key_path, fmt::format("is {}, expected one of: {}", describe(*found), known));
  for (const Family family : kFamilies) {
    if (*name == name_of(family)) return family;
  }
  source.fail(key_path, fmt::format("is {}, a family that is not known; known: {}", describe(*found), known));
}

// A key whose other values would change the computation in a way that is not implemented.
void require_number(Section& section, std::string_view key, double neutral) {
  const Json* json = section.find(key);
  if (json == nullptr) return;
  const auto* real = json->get<double>();
  const auto* integer = json->get<std::int64_t>();
  if (real != nullptr && *real == neutral) return;
  if (integer != nullptr && static_cast<double>(*integer) == neutral) return;
  section.fail(key, fmt::format("is {}; only {} is supported", describe(*json), neutral));
}

void require_silu(Section& section) {
  const Json* json = section.find("hidden_act");
  if (json == nullptr) return;
  const auto* name = json->get<std::string>();
  if (name == nullptr || *name != "silu") {
    section.fail("hidden_act", fmt::format("is {}; only \"silu\" is supported", describe(*json)));
  }
}

// rope_theta stands at the top level (transformers 4) or in rope_parameters (transformers 5).
double read_rope_theta(Section& section, double fallback) {
  constexpr Interval kTheta{0, 1e12, true};
  std::optional<double> theta;
  std::string theta_path;
  const auto meet = [&](Section& from) {
    if (!from.has("rope_theta")) {
      from.find("rope_theta");
      return;
    }
    const double found = from.number("rope_theta", kTheta);
    if (theta && *theta != found) {
      from.fail("rope_theta", fmt::format("is {}, but {} is {}; remove one", found, theta_path, *theta),
                theta_path);
    }
    theta = found;
    theta_path = from.path_of("rope_theta");
  };
  meet(section);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* json = section.find(key);
    if (json == nullptr || json->is_null()) continue;
    Section rope(json, section.path_of(key), section.source(), section_keys(std::string("model.") + key));
    for (const char* type_key : {"rope_type", "type"}) {
      const std::string type = rope.text(type_key, "default");
      if (type != "default") {
        rope.fail(type_key, fmt::format("is {}; only \"default\" is supported", describe(Json(type))));
      }
    }
    meet(rope);
    rope.finish();
  }
  return theta.value_or(fallback);
}

void read_attention(Section& section, Model& model, const FamilyDefaults& defaults) {
  model.num_attention_heads = section.integer("num_attention_heads", 1, kMaxSize);
  // transformers reads null as one key-value head a query head.
  const Json* kv_heads = section.find("num_key_value_heads");
  model.num_key_value_heads =
      kv_heads != nullptr && kv_heads->is_null()
          ? model.num_attention_heads
          : section.integer("num_key_value_heads", 1, kMaxSize, defaults.num_key_value_heads);
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
  model.rope_theta = read_rope_theta(section, defaults.rope_theta);
  model.max_position_embeddings =
      section.integer("max_position_embeddings", 1, kMaxSize, defaults.max_position_embeddings);
}

void check_top_k(Section& section, const Model& model, std::string_view experts_key) {
  if (model.num_experts_per_tok > model.num_experts) {
    section.fail(
        "num_experts_per_tok",
        fmt::format("is {}, more than {} ({})", model.num_experts_per_tok, experts_key, model.num_experts),
        section.path_of(experts_key));
  }
}

void read_mixtral(Section& section, Model& model) {
  model.num_experts = section.integer("num_local_experts", 1, kMaxSize);
  model.num_experts_per_tok = section.integer("num_experts_per_tok", 1, kMaxSize);
  check_top_k(section, model, "num_local_experts");
  model.moe_intermediate_size = section.integer("intermediate_size", 1, kMaxSize);
  model.intermediate_size = 0;
  model.norm_topk_prob = true;
  model.qk_norm = false;
  model.is_moe_layer.assign(static_cast<std::size_t>(model.num_hidden_layers), true);
  model.sliding_window = section.nullable_integer("sliding_window", 0, kMaxSize).value_or(0);
  require_number(section, "router_jitter_noise", 0);
}

// transformers 5 writes num_local_experts, transformers 4 num_experts.
std::optional<std::int64_t> read_qwen_experts(Section& section) {
  std::optional<std::int64_t> experts;
  for (const char* key : {"num_experts", "num_local_experts"}) {
    if (!section.has(key)) {
      section.find(key);
      continue;
    }
    const std::int64_t found = section.integer(key, 0, kMaxSize);
    if (experts && *experts != found) {
      section.fail(key, fmt::format("is {}, but num_experts is {}; remove one", found, *experts),
                   section.path_of("num_experts"));
    }
    experts = found;
  }
  return experts;
}

// A layer is MoE where it is not in mlp_only_layers, there are experts, and its number from 1 is a multiple of
// decoder_sparse_step.
void read_qwen_layers(Section& section, Model& model, std::optional<std::int64_t> experts) {
  const auto layers = static_cast<std::size_t>(model.num_hidden_layers);
  const std::int64_t step = section.integer("decoder_sparse_step", 1, kMaxSize, 1);
  model.is_moe_layer.assign(layers, false);
  for (std::size_t i = 0; i < layers; ++i) {
    model.is_moe_layer[i] = experts != 0 && static_cast<std::int64_t>(i + 1) % step == 0;
  }
  const Json* json = section.find("mlp_only_layers");
  if (json == nullptr || json->is_null()) return;
  const auto* list = json->get<Json::Array>();
  if (list == nullptr) {
    section.fail("mlp_only_layers", fmt::format("is {}, expected an array of layer numbers", describe(*json)));
  }
  std::vector<bool> listed(layers, false);
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string key = fmt::format("mlp_only_layers.{}", i);
    const auto* layer = (*list)[i].get<std::int64_t>();
    if (layer == nullptr || *layer < 0 || *layer >= model.num_hidden_layers) {
      section.fail(key, fmt::format("is {}, expected a layer in [0, {}]", describe((*list)[i]),
                                    model.num_hidden_layers - 1));
    }
    const auto at = static_cast<std::size_t>(*layer);
    if (listed[at]) section.fail(key, fmt::format("is {}, which is listed before; remove it", *layer));
    listed[at] = true;
    model.is_moe_layer[at] = false;
  }
}

void read_qwen_window(Section& section, Model& model) {
  const bool used = section.boolean("use_sliding_window", false);
  const bool given = section.has("sliding_window");
  const std::int64_t window = section.nullable_integer("sliding_window", 0, kMaxSize).value_or(0);
  const auto first = section.nullable_integer("max_window_layers", 0, kMaxSize);
  model.sliding_window = 0;
  if (!used) return;
  // Qwen2 lets only the layers from max_window_layers on have a window; Qwen3-MoE in transformers all of them.
  if (first.value_or(0) != 0) {
    section.fail(
        "max_window_layers",
        fmt::format("is {} with use_sliding_window true; only 0 (every layer has the window) is supported",
                    *first),
        section.path_of("use_sliding_window"));
  }
  constexpr std::int64_t kTransformersDefault = 4096;
  model.sliding_window = given ? window : kTransformersDefault;
}

void read_qwen3_moe(Section& section, Model& model) {
  const std::optional<std::int64_t> experts = read_qwen_experts(section);
  read_qwen_layers(section, model, experts);
  const bool any_moe =
      std::find(model.is_moe_layer.begin(), model.is_moe_layer.end(), true) != model.is_moe_layer.end();
  const bool any_dense =
      std::find(model.is_moe_layer.begin(), model.is_moe_layer.end(), false) != model.is_moe_layer.end();
  // The sizes of a kind of layer are required where there is such a layer.
  if (any_moe && !experts) section.fail("num_experts", "missing, and it has no default; add it");
  const std::optional<std::int64_t> zero = 0;
  const std::optional<std::int64_t> none;
  model.num_experts = experts.value_or(0);
  model.num_experts_per_tok =
      section.integer("num_experts_per_tok", any_moe ? 1 : 0, kMaxSize, any_moe ? none : zero);
  if (model.num_experts > 0) check_top_k(section, model, "num_experts");
  model.moe_intermediate_size =
      section.integer("moe_intermediate_size", any_moe ? 1 : 0, kMaxSize, any_moe ? none : zero);
  model.intermediate_size =
      section.integer("intermediate_size", any_dense ? 1 : 0, kMaxSize, any_dense ? none : zero);
  // What no layer has is 0 whatever the text says (transformers writes its defaults), so that equal models
  // compare equal.
  if (!any_moe) model.num_experts = model.num_experts_per_tok = model.moe_intermediate_size = 0;
  if (!any_dense) model.intermediate_size = 0;
  model.norm_topk_prob = section.boolean("norm_topk_prob", false);
  model.qk_norm = true;
  read_qwen_window(section, model);
  if (section.boolean("attention_bias", false))
    section.fail("attention_bias", "is true; only false is supported");
}

// In floating point: the products may be larger than any integer type.
void check_parameter_count(Section& section, const Model& model, const std::string& path,
                           const Source& source) {
  const auto d = static_cast<double>(model.hidden_size);
  const auto n = static_cast<double>(model.head_dim);
  const auto q = static_cast<double>(model.num_attention_heads) * n;
  const auto kv = static_cast<double>(model.num_key_value_heads) * n;
  const double experts = static_cast<double>(model.num_experts) * d *
                         (3.0 * static_cast<double>(model.moe_intermediate_size) + 1.0);
  const double dense = 3.0 * d * static_cast<double>(model.intermediate_size);
  const double layer = 2.0 * d * (q + kv) + experts + dense;
  const double total =
      2.0 * d * static_cast<double>(model.vocab_size) + static_cast<double>(model.num_hidden_layers) * layer;
  if (total > kMaxParameters) {
    source.fail(path.empty() ? section.path_of("hidden_size") : path,
                fmt::format("these sizes make about {:.2g} parameters, more than {:.2g} can be addressed",
                            total, kMaxParameters));
  }
}

}  // namespace

ModelSection read_model(const Json* json, const std::string& path, const Source& source) {
  ModelSection out;
  Model& model = out.model;
  model.family = read_family(json, path, source);
  const FamilyDefaults defaults = defaults_of(model.family);
  Section section(json, path, source, section_keys("model", name_of(model.family)), ignored_model_keys());
  section.find("model_type");

  model.vocab_size = section.integer("vocab_size", 1, kMaxSize);
  model.hidden_size = section.integer("hidden_size", 1, kMaxSize);
  model.num_hidden_layers = section.integer("num_hidden_layers", 1, kMaxLayers);
  read_attention(section, model, defaults);
  switch (model.family) {
    case Family::mixtral:
      read_mixtral(section, model);
      break;
    case Family::qwen3_moe:
      read_qwen3_moe(section, model);
      break;
  }
  model.tie_word_embeddings = section.boolean("tie_word_embeddings", false);
  model.rms_norm_eps = section.number("rms_norm_eps", kEpsilon, defaults.rms_norm_eps);
  model.initializer_range = section.number("initializer_range", {0, 100, true}, 0.02);
  if (section.has("router_aux_loss_coef")) {
    out.router_aux_loss_coef = section.number("router_aux_loss_coef", kCoefficient);
  } else {
    section.find("router_aux_loss_coef");
  }
  require_silu(section);
  require_number(section, "attention_dropout", 0);
  section.finish();
  check_parameter_count(section, model, path, source);
  return out;
}

Json write_model(const Model& model) {
  const bool mixtral = model.family == Family::mixtral;
  Json::Object out;
  const auto put = [&](std::string key, Json value) { out.push_back({std::move(key), std::move(value)}); };
  put("architectures", Json(Json::Array{mixtral ? "MixtralForCausalLM" : "Qwen3MoeForCausalLM"}));
  put("model_type", name_of(model.family));
  put("torch_dtype", "float32");
  put("vocab_size", model.vocab_size);
  put("hidden_size", model.hidden_size);
  put("num_hidden_layers", model.num_hidden_layers);
  put("num_attention_heads", model.num_attention_heads);
  put("num_key_value_heads", model.num_key_value_heads);
  put("head_dim", model.head_dim);
  if (mixtral) {
    put("intermediate_size", model.moe_intermediate_size);
    put("num_local_experts", model.num_experts);
    put("num_experts_per_tok", model.num_experts_per_tok);
    put("sliding_window", model.sliding_window == 0 ? Json() : Json(model.sliding_window));
    put("router_jitter_noise", 0.0);
  } else {
    // What no layer has is 0 here; transformers then takes its own default and does not use it.
    if (model.intermediate_size > 0) put("intermediate_size", model.intermediate_size);
    if (model.moe_intermediate_size > 0) put("moe_intermediate_size", model.moe_intermediate_size);
    put("num_experts", model.num_experts);
    if (model.num_experts_per_tok > 0) put("num_experts_per_tok", model.num_experts_per_tok);
    put("norm_topk_prob", model.norm_topk_prob);
    put("decoder_sparse_step", 1);
    Json::Array dense_layers;
    for (std::size_t i = 0; i < model.is_moe_layer.size(); ++i) {
      if (!model.is_moe_layer[i]) dense_layers.push_back(Json(i));
    }
    put("mlp_only_layers", Json(std::move(dense_layers)));
    put("use_sliding_window", model.sliding_window != 0);
    put("sliding_window", model.sliding_window == 0 ? Json() : Json(model.sliding_window));
    if (model.sliding_window != 0) put("max_window_layers", 0);
    put("attention_bias", false);
  }
  put("hidden_act", "silu");
  put("max_position_embeddings", model.max_position_embeddings);
  put("rope_theta", model.rope_theta);
  put("rms_norm_eps", model.rms_norm_eps);
  put("initializer_range", model.initializer_range);
  put("attention_dropout", 0.0);
  put("tie_word_embeddings", model.tie_word_embeddings);
  // Which tokens begin and end a text is the data's matter; Mixtral's defaults in transformers would be wrong.
  put("bos_token_id", Json());
  put("eos_token_id", Json());
  return Json(std::move(out));
}

Model parse_model(const std::string& text, const std::string& origin) {
  const Json json = parse_json(text, origin);
  return read_model(&json, "", Source(origin)).model;
}

std::string model_to_hf_json(const Model& model) { return to_text(write_model(model)); }

}  // namespace switchyard::config
