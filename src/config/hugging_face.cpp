#include "config/hugging_face.h"

#include <algorithm>
#include <functional>

#include "config/layouts.h"
#include "config/load.h"
#include "config/published.h"
#include "config/rope.h"
#include "config/router_section.h"
#include "core/error.h"
#include "core/log.h"

namespace switchyard::config {
namespace {

// Before the model_type and the architecture of a layout whose router is another one, so that transformers,
// which would compute the layout's own, refuses it.
constexpr char kWithRouter[] = "switchyard_";
constexpr char kWithRouterClass[] = "Switchyard";
constexpr char kAutoMap[] = "auto_map";
constexpr std::string_view kWeightKeys[] = {"norm_topk_prob", "routed_scaling_factor"};
constexpr std::int64_t kMaxLayers = 65536;
// Bytes of optimizer state and gradients must fit int64 with room to spare.
constexpr double kMaxParameters = 281474976710656.0;  // 2^48
constexpr Interval kEpsilon{1e-30, 1};                // as float32 neither zero nor too small to divide by

const Layout& read_layout(const Json* json, const std::string& path, const Source& source) {
  const std::string key_path = path.empty() ? "model_type" : path + ".model_type";
  std::string known;
  for (const Layout* layout : kLayouts) known += fmt::format("{}{}", known.empty() ? "" : ", ", layout->name);
  const auto* object = json == nullptr ? nullptr : json->get<Json::Object>();
  if (json != nullptr && object == nullptr) {
    source.fail(path, fmt::format("is {}, expected an object", describe(*json)));
  }
  const Json* found = object == nullptr ? nullptr : find_member(*object, "model_type");
  if (found == nullptr) source.fail(key_path, "missing, and it has no default; add one of: " + known);
  const auto* name = found->get<std::string>();
  if (name == nullptr)
    source.fail(key_path, fmt::format("is {}, expected one of: {}", describe(*found), known));
  for (const Layout* layout : kLayouts) {
    if (*name == layout->name || *name == kWithRouter + std::string(layout->name)) return *layout;
  }
  source.fail(key_path, fmt::format("is {}, a layout that is not known; known: {}", describe(*found), known));
}

// DeepSeek's scores grow with the context's stretch; transformers and DeepSeek's code do it for linear scaling
// too.
double softmax_scale_factor_of(const Model& model) {
  if (!model.layout->scores_follow_mscale || !model.rope.mscale_all_dim) return 1;
  const double m = yarn_mscale(model.rope.factor, *model.rope.mscale_all_dim);
  return m * m;
}

// How the published weights are stored. A config.json on its own is read for its shape; a run trains, which
// quantised weights cannot be.
void read_quantization(Section& section, bool in_run) {
  const Json* json = section.find("quantization_config");
  if (json == nullptr || json->is_null()) return;
  if (json->get<Json::Object>() == nullptr) {
    section.fail("quantization_config", fmt::format("is {}, expected an object or null", describe(*json)));
  }
  if (in_run) section.fail("quantization_config", "quantised weights cannot be trained; remove it");
}

// In floating point: the products may be larger than any integer type.
void check_parameter_count(Section& section, const Model& model, const std::string& path,
                           const Source& source) {
  const auto d = static_cast<double>(model.hidden_size);
  const auto n = static_cast<double>(model.head_dim);
  const auto heads = static_cast<double>(model.num_attention_heads);
  double attention = 2.0 * d * n * (heads + static_cast<double>(model.num_key_value_heads));
  if (model.mla) {
    const auto q_rank = static_cast<double>(model.mla->q_lora_rank);
    const auto kv_rank = static_cast<double>(model.mla->kv_lora_rank);
    const auto rotated = static_cast<double>(model.mla->qk_rope_head_dim);
    const auto v = static_cast<double>(model.mla->v_head_dim);
    attention = (q_rank == 0 ? d : q_rank) * heads * n + d * q_rank + d * (kv_rank + rotated) +
                kv_rank * heads * (n - rotated + v) + heads * v * d;
  }
  const double width = 3.0 * static_cast<double>(model.moe_intermediate_size);
  const double experts = d * (static_cast<double>(model.num_experts) * (width + 1.0) +
                              static_cast<double>(model.n_shared_experts) * width);
  const double dense = 3.0 * d * static_cast<double>(model.intermediate_size);
  const double total = 2.0 * d * static_cast<double>(model.vocab_size) +
                       static_cast<double>(model.num_hidden_layers + model.num_nextn_predict_layers) *
                           (attention + experts + dense) +
                       2.0 * d * d * static_cast<double>(model.num_nextn_predict_layers);
  if (total > kMaxParameters) {
    source.fail(path.empty() ? section.path_of("hidden_size") : path,
                fmt::format("these sizes make about {:.2g} parameters, more than {:.2g} can be addressed",
                            total, kMaxParameters));
  }
}

// A list of what each layer is, where it says what the layers are anyway: `of_layer` gives the word.
void require_layer_list(Section& section, std::string_view key, const Model& model,
                        const std::function<std::string_view(std::size_t)>& of_layer) {
  const Json* json = section.find(key);
  if (json == nullptr || json->is_null()) return;
  const auto* list = json->get<Json::Array>();
  if (list == nullptr)
    section.fail(key, fmt::format("is {}, expected an array of one word a layer", describe(*json)));
  if (!list->empty() && list->size() != static_cast<std::size_t>(model.num_hidden_layers))
    section.fail(
        key, fmt::format("has {} entries, but num_hidden_layers is {}", list->size(), model.num_hidden_layers),
        section.path_of("num_hidden_layers"));
  for (std::size_t i = 0; i < list->size(); ++i) {
    const auto* word = (*list)[i].get<std::string>();
    if (word == nullptr || *word != of_layer(i))
      section.fail(
          fmt::format("{}.{}", key, i),
          fmt::format("is {}, but by the other keys this layer is \"{}\"", describe((*list)[i]), of_layer(i)));
  }
}

// Of the keys without effect those that say something which another key of the text denies.
void check_published(Section& section, const Model& model, const std::vector<std::string>& without_effect) {
  for (const std::string& key : without_effect)
    if (key == "use_sliding_window" && model.sliding_window != 0)
      section.fail(key,
                   fmt::format("is false, but sliding_window is {}, and model_type \"{}\" uses it; remove one",
                               model.sliding_window, model.layout->name));
}

}  // namespace

ModelSection read_model(const Json* json, const std::string& path, const Source& source) {
  ModelSection out;
  Model& model = out.model;
  const Layout& layout = read_layout(json, path, source);
  model.layout = &layout;
  const auto accept = [&](const JsonMember& member) {
    const Statement statement = judge(layout, member.key, member.value);
    if (statement == Statement::contrary)
      source.fail(path.empty() ? printable(member.key) : path + "." + printable(member.key),
                  fmt::format("is {}, but model_type \"{}\" always has it", describe(member.value),
                              model.layout->name));
    if (statement == Statement::unknown) return false;
    out.without_effect.push_back(printable(member.key));
    return true;
  };
  Section section(json, path, source, section_keys("model", model.layout->name), ignored_model_keys(), accept);
  section.find("model_type");

  model.vocab_size = section.integer("vocab_size", 1, kMaxSize);
  model.hidden_size = section.integer("hidden_size", 1, kMaxSize);
  model.num_hidden_layers = section.integer("num_hidden_layers", 1, kMaxLayers);
  layout.read(section, model);
  model.max_position_embeddings =
      section.integer("max_position_embeddings", 1, kMaxSize, layout.max_position_embeddings);
  const bool interleaved = model.rope.interleaved;  // of the layout
  model.rope = read_rope(section, layout, model.max_position_embeddings);
  model.rope.interleaved = interleaved;
  model.softmax_scale_factor = softmax_scale_factor_of(model);
  model.tie_word_embeddings = section.boolean("tie_word_embeddings", false);
  model.rms_norm_eps = section.number("rms_norm_eps", kEpsilon, layout.rms_norm_eps);
  model.initializer_range = section.number("initializer_range", {0, 100, true}, 0.02);
  if (layout.router_aux_loss_coef) {
    section.find("router_aux_loss_coef");
    if (section.has("router_aux_loss_coef"))
      out.router_aux_loss_coef = section.number("router_aux_loss_coef", kCoefficient);
  }
  require_text(section, "hidden_act", "silu");
  require_number(section, "attention_dropout", 0);
  require_layer_list(section, "layer_types", model, [&](std::size_t) {
    return model.sliding_window != 0 ? "sliding_attention" : "full_attention";
  });
  require_layer_list(section, "mlp_layer_types", model,
                     [&](std::size_t layer) { return model.layers[layer].moe ? "sparse" : "dense"; });
  // A run's model may have what its layout has not, and so may a directory that names our code for it; of
  // another one transformers would compute the layout's.
  if (path.empty() && !has_own_router(*json))
    for (const std::string& clause : weights_beyond_layout(model))
      source.fail(clause.substr(0, clause.find(' ')),
                  clause.substr(clause.find(' ') + 1) + "; remove it, or set it in a run's model");
  check_published(section, model, out.without_effect);
  read_quantization(section, !path.empty());
  section.finish();
  check_parameter_count(section, model, path, source);
  return out;
}

Json write_model(const Model& model) {
  Json::Object out;
  const auto put = [&](std::string key, Json value) { out.push_back({std::move(key), std::move(value)}); };
  put("architectures", Json(Json::Array{std::string(model.layout->architecture)}));
  put("model_type", model.layout->name);
  put("torch_dtype", "float32");
  put("vocab_size", model.vocab_size);
  put("hidden_size", model.hidden_size);
  put("num_hidden_layers", model.num_hidden_layers);
  put("num_attention_heads", model.num_attention_heads);
  model.layout->write(model, out);
  put("hidden_act", "silu");
  put("max_position_embeddings", model.max_position_embeddings);
  write_rope(model.rope, out);
  put("rms_norm_eps", model.rms_norm_eps);
  put("initializer_range", model.initializer_range);
  put("attention_dropout", 0.0);
  put("tie_word_embeddings", model.tie_word_embeddings);
  // Which tokens begin and end a text is the data's matter; the layouts' defaults in transformers would be
  // wrong.
  put("bos_token_id", Json());
  put("eos_token_id", Json());
  return Json(std::move(out));
}

bool has_own_router(const Json& json) {
  const auto* object = json.get<Json::Object>();
  const Json* type = object == nullptr ? nullptr : find_member(*object, "model_type");
  const auto* name = type == nullptr ? nullptr : type->get<std::string>();
  return name != nullptr && name->starts_with(kWithRouter);
}

std::optional<Json> take_router(Json& json) {
  if (!has_own_router(json)) return std::nullopt;
  auto& members = *json.get<Json::Object>();
  const auto found =
      std::find_if(members.begin(), members.end(), [](const JsonMember& m) { return m.key == "router"; });
  if (found == members.end()) return std::nullopt;
  Json router = std::move(found->value);
  members.erase(found);
  return router;
}

Model parse_model(const std::string& text, const std::string& origin) {
  Json json = parse_json(text, origin);
  take_router(json);
  const ModelSection section = read_model(&json, "", Source(origin));
  report_without_effect(section, origin);
  return section.model;
}

void report_without_effect(const ModelSection& section, const std::string& origin) {
  std::string keys;
  for (const std::string& key : section.without_effect) keys += (keys.empty() ? "" : ", ") + key;
  if (keys.empty()) return;
  log_info(fmt::format("{}: without effect in a {} model: {}", origin, section.model.layout->name, keys));
}

Router parse_model_router(const std::string& text, const std::string& origin,
                          std::span<const RouterSchema> routers) {
  Json json = parse_json(text, origin);
  const Source source(origin);
  const bool own = has_own_router(json);
  const std::optional<Json> router = take_router(json);
  const Model model = read_model(&json, "", source).model;
  if (!own) return default_router(*model.layout, routers);
  if (!router) source.fail("router", "missing, and model_type says that it is not the layout's own; add it");
  return read_router(&*router, source, model, std::nullopt, routers);
}

std::string model_to_hf_json(const Model& model) { return to_text(write_model(model)); }

std::string state_router(const std::string& config_json, const Model& model, const Router& router,
                         std::span<const RouterSchema> routers) {
  const bool plain = beyond_layout(router, model, routers).empty();
  Json json = parse_json(config_json, "config.json");
  if (plain && !has_own_router(json)) return config_json;
  take_router(json);
  auto& members = *json.get<Json::Object>();
  const auto put = [&](const char* key, Json value) {
    if (Json* found = find_member(members, key); found != nullptr)
      *found = std::move(value);
    else
      members.push_back({key, std::move(value)});
  };
  const std::string type(model.layout->name), architecture = std::string(model.layout->architecture);
  put("architectures", Json(Json::Array{Json(plain ? architecture : kWithRouterClass + architecture)}));
  put("model_type", plain ? type : kWithRouter + type);
  if (plain) {
    const Model bare = with_weights_of_layout(model);
    Json::Object kept;
    write_expert_weights(bare, kept);
    std::erase_if(members, [&](const JsonMember& member) {
      const bool weight =
          std::find(std::begin(kWeightKeys), std::end(kWeightKeys), member.key) != std::end(kWeightKeys);
      return member.key == kAutoMap || (weight && find_member(kept, member.key) == nullptr);
    });
    return to_text(json);
  }
  // Which classes of kModelingFile transformers opens the model with, where its code is trusted.
  const std::string module(kModelingFile.substr(0, kModelingFile.rfind('.')));
  const std::string own = module + "." + kWithRouterClass;
  std::string stem = architecture;
  stem.resize(stem.size() - std::string_view("ForCausalLM").size());
  put(kAutoMap,
      Json(Json::Object{{"AutoConfig", own + stem + "Config"}, {"AutoModelForCausalLM", own + architecture}}));
  put("router", write_router(router));
  return to_text(json);
}

}  // namespace switchyard::config
