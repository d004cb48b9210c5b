// OLMoE (Muennighoff et al., arXiv 2409.02060): every layer is MoE, and queries and keys are normed over all
// heads of a token at once.
#include <fmt/core.h>

#include "config/layouts.h"

namespace switchyard::config {
namespace {

void read(Section& section, Model& model) {
  read_grouped_query_attention(section, model, std::nullopt);
  // transformers makes the norms' weights for heads of this width, whatever head_dim says.
  if (model.head_dim * model.num_attention_heads != model.hidden_size)
    section.fail(
        "head_dim",
        fmt::format("is {}, but in this layout it is hidden_size / num_attention_heads ({} / {}); remove it",
                    model.head_dim, model.hidden_size, model.num_attention_heads),
        section.path_of("hidden_size"));
  model.num_experts = section.integer("num_experts", 1, kMaxSize);
  model.num_experts_per_tok = section.integer("num_experts_per_tok", 1, kMaxSize);
  check_top_k(section, model, "num_experts");
  model.moe_intermediate_size = section.integer("intermediate_size", 1, kMaxSize);
  model.intermediate_size = 0;
  model.qk_norm = QkNorm::projection;
  set_layers(model, std::vector<bool>(static_cast<std::size_t>(model.num_hidden_layers), true));
  read_expert_weights(section, kOlmoe, model);
  model.attention_bias = section.boolean("attention_bias", false);
  const Json* clip = section.find("clip_qkv");
  if (clip != nullptr && !clip->is_null())
    section.fail("clip_qkv",
                 fmt::format("is {}; only null (queries, keys and values are not clipped) is supported",
                             describe(*clip)));
}

void write(const Model& model, Json::Object& out) {
  const auto put = [&](const char* key, Json value) { out.push_back({key, std::move(value)}); };
  put("num_key_value_heads", model.num_key_value_heads);
  put("intermediate_size", model.moe_intermediate_size);
  put("num_experts", model.num_experts);
  put("num_experts_per_tok", model.num_experts_per_tok);
  write_expert_weights(model, out);
  put("attention_bias", model.attention_bias);
  put("clip_qkv", Json());
}

constexpr std::string_view kKeys[] = {"num_experts", "router_aux_loss_coef", "attention_bias", "clip_qkv"};
constexpr std::string_view kAlwaysHas[] = {"qknorm", "qklayernorm", "qkrmsnorm", "qnorm", "knorm"};

}  // namespace

const Layout kOlmoe{.name = "olmoe",
                    .architecture = "OlmoeForCausalLM",
                    .router = "softmax_topk",
                    .max_position_embeddings = 4096,
                    .rms_norm_eps = 1e-5,
                    .rope_theta = 1e4,
                    .router_aux_loss_coef = 0.01,
                    .keys = kKeys,
                    .read = read,
                    .write = write,
                    .always_has = kAlwaysHas};

}  // namespace switchyard::config
