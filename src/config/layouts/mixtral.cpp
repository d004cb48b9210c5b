#include "config/layouts.h"

namespace switchyard::config {
namespace {

void read(Section& section, Model& model) {
  read_grouped_query_attention(section, model, 8);
  model.num_experts = section.integer("num_local_experts", 1, kMaxSize);
  model.num_experts_per_tok = section.integer("num_experts_per_tok", 1, kMaxSize);
  check_top_k(section, model, "num_local_experts");
  model.moe_intermediate_size = section.integer("intermediate_size", 1, kMaxSize);
  model.intermediate_size = 0;
  model.qk_norm = QkNorm::none;
  set_layers(model, std::vector<bool>(static_cast<std::size_t>(model.num_hidden_layers), true));
  read_expert_weights(section, kMixtral, model);
  model.sliding_window = section.nullable_integer("sliding_window", 0, kMaxSize).value_or(0);
  require_number(section, "router_jitter_noise", 0);
}

void write(const Model& model, Json::Object& out) {
  out.push_back({"num_key_value_heads", model.num_key_value_heads});
  out.push_back({"head_dim", model.head_dim});
  out.push_back({"intermediate_size", model.moe_intermediate_size});
  out.push_back({"num_local_experts", model.num_experts});
  out.push_back({"num_experts_per_tok", model.num_experts_per_tok});
  write_expert_weights(model, out);
  out.push_back({"sliding_window", model.sliding_window == 0 ? Json() : Json(model.sliding_window)});
  out.push_back({"router_jitter_noise", 0.0});
}

constexpr std::string_view kKeys[] = {"num_local_experts", "sliding_window", "router_aux_loss_coef",
                                      "router_jitter_noise"};
constexpr std::string_view kAlwaysHas[] = {
    "normtopk",       "normalizetopk",          "normalisetopk",   "renormalize",    "renormalise",
    "moerenormalize", "normalizeexpertweights", "routernormalize", "topkrenormalize"};

}  // namespace

const Layout kMixtral{.name = "mixtral",
                      .architecture = "MixtralForCausalLM",
                      .router = "softmax_topk",
                      .max_position_embeddings = 131072,
                      .rms_norm_eps = 1e-5,
                      .rope_theta = 1e6,
                      .router_aux_loss_coef = 0.001,
                      .keys = kKeys,
                      .read = read,
                      .write = write,
                      .moe_block = "block_sparse_moe",
                      .gate_proj = "w1",
                      .up_proj = "w3",
                      .down_proj = "w2",
                      .always_has = kAlwaysHas,
                      .norm_topk_prob = true,
                      .always_normalises = true};

}  // namespace switchyard::config
