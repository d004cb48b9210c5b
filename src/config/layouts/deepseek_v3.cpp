#include <fmt/core.h>

#include <algorithm>

#include "config/layouts.h"
#include "core/routing.h"

namespace switchyard::config {
namespace {

constexpr std::int64_t kMaxMtpLayers = 64;  // far more than anyone has trained

// A key that may be left out, but has one possible value.
void require_size(Section& section, std::string_view key, std::int64_t only, std::string_view meaning,
                  std::string_view other) {
  const auto found = section.nullable_integer(key, 1, kMaxSize);
  if (found.value_or(only) != only) {
    section.fail(key, fmt::format("is {}, but {} is {}; remove it", *found, meaning, only),
                 section.path_of(other));
  }
}

void read_latent_attention(Section& section, Model& model) {
  model.num_attention_heads = section.integer("num_attention_heads", 1, kMaxSize);
  model.num_key_value_heads = model.num_attention_heads;
  require_size(section, "num_key_value_heads", model.num_attention_heads,
               "every query head has its own key and value: num_attention_heads", "num_attention_heads");
  Mla mla;
  constexpr std::int64_t kDefaultQueryRank = 1536;
  mla.q_lora_rank = section.has("q_lora_rank")
                        ? section.nullable_integer("q_lora_rank", 1, kMaxSize).value_or(0)
                        : (section.find("q_lora_rank"), kDefaultQueryRank);
  mla.kv_lora_rank = section.integer("kv_lora_rank", 1, kMaxSize, 512);
  mla.qk_nope_head_dim = section.integer("qk_nope_head_dim", 1, kMaxSize / 2, 128);
  mla.qk_rope_head_dim = section.integer("qk_rope_head_dim", 1, kMaxSize / 2, 64);
  mla.v_head_dim = section.integer("v_head_dim", 1, kMaxSize, 128);
  if (mla.qk_rope_head_dim % 2 != 0) {
    section.fail("qk_rope_head_dim",
                 fmt::format("is {}; rotary embedding needs an even number", mla.qk_rope_head_dim));
  }
  model.head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim;
  require_size(section, "qk_head_dim", model.head_dim, "qk_nope_head_dim + qk_rope_head_dim",
               "qk_nope_head_dim");
  // transformers' head_dim of this layout is the size that rotates.
  require_size(section, "head_dim", mla.qk_rope_head_dim, "qk_rope_head_dim, which it stands for,",
               "qk_rope_head_dim");
  model.mla = mla;
  model.attention_bias = section.boolean("attention_bias", false);
}

void check_groups(Section& section, const Model& model) {
  const auto by_default = [&](const char* key) { return section.has(key) ? "" : " by default"; };
  if (model.num_experts % model.n_group != 0) {
    section.fail("n_group",
                 fmt::format("is {}{}, which does not divide n_routed_experts ({})", model.n_group,
                             by_default("n_group"), model.num_experts),
                 section.path_of("n_routed_experts"));
  }
  const std::int64_t group_size = model.num_experts / model.n_group;
  if (model.n_group > 1 && group_size < 2) {
    section.fail(
        "n_group",
        fmt::format("is {}{}, which makes groups of a single expert ({} in all); a group's score is the sum "
                    "of its two best, so that it needs 2 or more",
                    model.n_group, by_default("n_group"), model.num_experts),
        section.path_of("n_routed_experts"));
  }
  if (model.topk_group > model.n_group) {
    section.fail("topk_group",
                 fmt::format("is {}{}, more than n_group ({})", model.topk_group, by_default("topk_group"),
                             model.n_group),
                 section.path_of("n_group"));
  }
  if (model.num_experts_per_tok > model.topk_group * group_size) {
    section.fail(
        "num_experts_per_tok",
        fmt::format("is {}, more than the {} experts of the groups that stay (topk_group {}, with {} "
                    "experts each)",
                    model.num_experts_per_tok, model.topk_group * group_size, model.topk_group, group_size),
        section.path_of("topk_group"));
  }
}

void read_experts(Section& section, Model& model) {
  // The sizes of a kind of layer are required where there is such a layer; what no layer has is neutral
  // whatever the text says (transformers writes its defaults), so that equal models compare equal.
  const bool any_moe = has_moe_layer(model), any_dense = has_dense_layer(model);
  const auto size = [&](const char* key, bool needed) {
    const std::optional<std::int64_t> zero = 0, none;
    const std::int64_t found = section.integer(key, needed ? 1 : 0, kMaxSize, needed ? none : zero);
    return needed ? found : 0;
  };
  model.intermediate_size = size("intermediate_size", any_dense);
  model.moe_intermediate_size = size("moe_intermediate_size", any_moe);
  model.num_experts = size("n_routed_experts", any_moe);
  model.num_experts_per_tok = size("num_experts_per_tok", any_moe);
  const bool shared_given = section.has("n_shared_experts");
  const std::int64_t n_shared =
      section.nullable_integer("n_shared_experts", 0, kMaxSize).value_or(shared_given ? 0 : 1);
  const std::int64_t n_group = section.integer("n_group", 1, kMaxExpertGroups, 8);
  const std::int64_t topk_group = section.integer("topk_group", 1, kMaxSize, 4);
  read_expert_weights(section, kDeepseekV3, model);
  require_text(section, "scoring_func", "sigmoid");
  require_text(section, "topk_method", "noaux_tc");
  if (!any_moe) return;
  model.n_shared_experts = n_shared;
  model.n_group = n_group;
  model.topk_group = topk_group;
  if (n_shared * model.moe_intermediate_size > kMaxSize) {
    section.fail(
        "n_shared_experts",
        fmt::format("is {}, which makes a width of {} (times moe_intermediate_size, {}); at most {} is "
                    "possible",
                    n_shared, n_shared * model.moe_intermediate_size, model.moe_intermediate_size, kMaxSize),
        section.path_of("moe_intermediate_size"));
  }
  check_top_k(section, model, "n_routed_experts");
  check_groups(section, model);
}

// Public files have them; neither transformers nor DeepSeek's own code reads the first two, and the others say
// how a computation was spread over devices. Checked for their type, not kept.
void read_without_effect(Section& section) {
  section.number("aux_loss_alpha", kCoefficient, 0);
  section.boolean("seq_aux", true);
  section.integer("ep_size", 1, kMaxSize, 1);
  section.integer("pretraining_tp", 1, kMaxSize, 1);
}

void read(Section& section, Model& model) {
  read_latent_attention(section, model);
  const std::int64_t n_dense = section.integer("first_k_dense_replace", 0, kMaxSize, 3);
  require_number(section, "moe_layer_freq", 1);
  std::vector<bool> moe(static_cast<std::size_t>(model.num_hidden_layers), true);
  std::fill_n(moe.begin(), std::min(n_dense, model.num_hidden_layers), false);
  set_layers(model, moe);
  read_experts(section, model);
  model.num_nextn_predict_layers = section.integer("num_nextn_predict_layers", 0, kMaxMtpLayers, 0);
  read_without_effect(section);
  model.rope.interleaved = section.boolean("rope_interleave", true);
}

void write(const Model& model, Json::Object& out) {
  const auto put = [&](const char* key, Json value) { out.push_back({key, std::move(value)}); };
  const Mla& mla = *model.mla;
  put("num_key_value_heads", model.num_key_value_heads);
  put("q_lora_rank", mla.q_lora_rank == 0 ? Json() : Json(mla.q_lora_rank));
  put("kv_lora_rank", mla.kv_lora_rank);
  put("qk_nope_head_dim", mla.qk_nope_head_dim);
  put("qk_rope_head_dim", mla.qk_rope_head_dim);
  put("v_head_dim", mla.v_head_dim);
  put("attention_bias", model.attention_bias);
  put("rope_interleave", model.rope.interleaved);
  put("first_k_dense_replace", model.num_hidden_layers - count_moe_layers(model));
  put("moe_layer_freq", 1);
  // What no layer has is 0 here; transformers then takes its own default and does not use it.
  if (has_dense_layer(model)) put("intermediate_size", model.intermediate_size);
  if (has_moe_layer(model)) {
    put("moe_intermediate_size", model.moe_intermediate_size);
    put("n_routed_experts", model.num_experts);
    put("n_shared_experts", model.n_shared_experts);
    put("num_experts_per_tok", model.num_experts_per_tok);
    put("n_group", model.n_group);
    put("topk_group", model.topk_group);
  }
  write_expert_weights(model, out);
  put("scoring_func", "sigmoid");
  put("topk_method", "noaux_tc");
  put("num_nextn_predict_layers", model.num_nextn_predict_layers);
}

constexpr std::string_view kKeys[] = {
    "q_lora_rank",     "kv_lora_rank",     "qk_nope_head_dim",      "qk_rope_head_dim",
    "qk_head_dim",     "v_head_dim",       "moe_intermediate_size", "first_k_dense_replace",
    "moe_layer_freq",  "n_routed_experts", "n_shared_experts",      "n_group",
    "topk_group",      "topk_method",      "scoring_func",          "num_nextn_predict_layers",
    "rope_interleave", "attention_bias",   "aux_loss_alpha",        "seq_aux",
    "ep_size",         "pretraining_tp"};
constexpr std::string_view kAlwaysHas[] = {"mla",
                                           "latentattention",
                                           "multilatentattention",
                                           "multiheadlatentattention",
                                           "expertbias",
                                           "routerbias",
                                           "routerexpertbias",
                                           "moerouterexpertbias",
                                           "correctionbias",
                                           "escorecorrectionbias",
                                           "sharedexpert",
                                           "sharedexperts",
                                           "sharedexpertintermediatesize",
                                           "moesharedexpertintermediatesize",
                                           "noauxtc",
                                           "qlayernorm",
                                           "kvlayernorm"};
constexpr std::string_view kSizes[] = {"kvlora", "kvrank", "qkheaddim", "vheaddim", "nopeheaddim"};

}  // namespace

const Layout kDeepseekV3{.name = "deepseek_v3",
                         .architecture = "DeepseekV3ForCausalLM",
                         .router = "sigmoid_group",
                         .max_position_embeddings = 4096,
                         .rms_norm_eps = 1e-6,
                         .rope_theta = 1e4,
                         .router_aux_loss_coef = std::nullopt,
                         .keys = kKeys,
                         .read = read,
                         .write = write,
                         .attention = "mla",
                         .scoring_func = "sigmoid",
                         .topk_method = "noaux_tc",
                         .always_has = kAlwaysHas,
                         .sizes = kSizes,
                         .norm_topk_prob = true,
                         .reads_scaling_factor = true,
                         .scores_follow_mscale = true};

}  // namespace switchyard::config
