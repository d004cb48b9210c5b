#include <fmt/core.h>

#include "config/layouts.h"

namespace switchyard::config {
namespace {

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
  set_layers(model, std::vector<bool>(layers));
  for (std::size_t i = 0; i < layers; ++i) {
    model.layers[i].moe = experts != 0 && static_cast<std::int64_t>(i + 1) % step == 0;
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
    model.layers[at].moe = false;
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

void read(Section& section, Model& model) {
  read_grouped_query_attention(section, model, 4);
  const std::optional<std::int64_t> experts = read_qwen_experts(section);
  read_qwen_layers(section, model, experts);
  const bool any_moe = has_moe_layer(model), any_dense = has_dense_layer(model);
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
  read_expert_weights(section, kQwen3Moe, model);
  model.qk_norm = QkNorm::head;
  read_qwen_window(section, model);
  model.attention_bias = section.boolean("attention_bias", false);
}

void write(const Model& model, Json::Object& out) {
  const auto put = [&](const char* key, Json value) { out.push_back({key, std::move(value)}); };
  put("num_key_value_heads", model.num_key_value_heads);
  put("head_dim", model.head_dim);
  // What no layer has is 0 here; transformers then takes its own default and does not use it.
  if (model.intermediate_size > 0) put("intermediate_size", model.intermediate_size);
  if (model.moe_intermediate_size > 0) put("moe_intermediate_size", model.moe_intermediate_size);
  put("num_experts", model.num_experts);
  if (model.num_experts_per_tok > 0) put("num_experts_per_tok", model.num_experts_per_tok);
  write_expert_weights(model, out);
  put("decoder_sparse_step", 1);
  Json::Array dense_layers;
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    if (!model.layers[i].moe) dense_layers.push_back(Json(i));
  }
  put("mlp_only_layers", Json(std::move(dense_layers)));
  put("use_sliding_window", model.sliding_window != 0);
  put("sliding_window", model.sliding_window == 0 ? Json() : Json(model.sliding_window));
  if (model.sliding_window != 0) put("max_window_layers", 0);
  put("attention_bias", model.attention_bias);
}

constexpr std::string_view kKeys[] = {"moe_intermediate_size", "num_experts",         "num_local_experts",
                                      "mlp_only_layers",       "decoder_sparse_step", "use_sliding_window",
                                      "sliding_window",        "max_window_layers",   "router_aux_loss_coef",
                                      "attention_bias"};
constexpr std::string_view kAlwaysHas[] = {"qknorm", "qklayernorm", "qkrmsnorm",    "qnorm",
                                           "knorm",  "headqknorm",  "perheadqknorm"};

}  // namespace

const Layout kQwen3Moe{.name = "qwen3_moe",
                       .architecture = "Qwen3MoeForCausalLM",
                       .router = "softmax_topk",
                       .max_position_embeddings = 32768,
                       .rms_norm_eps = 1e-6,
                       .rope_theta = 1e4,
                       .router_aux_loss_coef = 0.001,
                       .keys = kKeys,
                       .read = read,
                       .write = write,
                       .always_has = kAlwaysHas};

}  // namespace switchyard::config
