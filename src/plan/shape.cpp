#include "plan/shape.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/log.h"

namespace switchyard::plan {

namespace {

double real(std::int64_t value) { return static_cast<double>(value); }

void add_attention(LayerShape& layer, const config::Model& model) {
  const double D = real(model.hidden_size), H = real(model.num_attention_heads), N = real(model.head_dim);
  if (!model.mla) {
    const double KV = real(model.num_key_value_heads);
    layer.attention = D * N * (2 * H + 2 * KV);
    if (model.attention_bias) layer.vectors += N * (H + 2 * KV) + D;
    if (model.qk_norm == config::QkNorm::head) layer.vectors += 2 * N;
    if (model.qk_norm == config::QkNorm::projection) layer.vectors += N * (H + KV);
    return;
  }
  const config::Mla& mla = *model.mla;
  const double q = real(mla.q_lora_rank), kv = real(mla.kv_lora_rank), rope = real(mla.qk_rope_head_dim),
               M = real(mla.v_head_dim);
  layer.attention = q > 0 ? D * q + q * H * N : D * H * N;
  layer.attention += D * (kv + rope) + kv * H * (real(mla.qk_nope_head_dim) + M) + H * M * D;
  layer.vectors += q + kv;
  if (model.attention_bias) layer.vectors += q + kv + rope + D;
}

LayerShape layer_of(const config::Model& model, bool moe, std::int64_t slots) {
  const double D = real(model.hidden_size), F = real(model.moe_intermediate_size), E = real(model.num_experts);
  LayerShape layer{.vectors = 2 * D, .moe = moe};
  add_attention(layer, model);
  if (!moe) {
    layer.always = 3 * D * real(model.intermediate_size);
    return layer;
  }
  layer.always = 3 * D * F * real(model.n_shared_experts);
  layer.router = D * E;
  layer.experts = 3 * D * F * E;
  layer.active_experts = 3 * D * F * real(slots);
  return layer;
}

}  // namespace

double Shape::total() const {
  return std::accumulate(layer.begin(), layer.end(), embedding() + head() + real(hidden),
                         [](double sum, const LayerShape& each) { return sum + each.total(); });
}

double Shape::active() const {
  return std::accumulate(layer.begin(), layer.end(), total(), [](double sum, const LayerShape& each) {
    return sum - each.experts + each.active_experts;
  });
}

double Shape::active_matmul() const {
  return std::accumulate(layer.begin(), layer.end(), embedding(), [](double sum, const LayerShape& each) {
    return sum + each.attention + each.always + each.router + each.active_experts;
  });
}

double Shape::expert_values() const {
  return std::accumulate(layer.begin(), layer.end(), real(mtp_depths) * mtp.experts,
                         [](double sum, const LayerShape& each) { return sum + each.experts; });
}

std::int64_t Shape::moe_layers() const {
  return std::count_if(layer.begin(), layer.end(), [](const LayerShape& each) { return each.moe; });
}

double Shape::mean_keys(std::int64_t seq_len) const {
  const double S = real(seq_len), W = real(window == 0 ? seq_len : std::min(window, seq_len));
  return W - W * W / (2 * S);
}

Shape shape_of(const config::Model& model, std::int64_t slots_a_token, bool mtp) {
  Shape shape{.layers = model.num_hidden_layers,
              .hidden = model.hidden_size,
              .vocab = model.vocab_size,
              .heads = model.num_attention_heads,
              .kv_heads = model.mla ? model.num_attention_heads : model.num_key_value_heads,
              .key_width = model.head_dim,
              .value_width = model.mla ? model.mla->v_head_dim : model.head_dim,
              .experts = model.num_experts,
              .top_k = model.num_experts > 0 ? slots_a_token : 0,
              .expert_width = model.moe_intermediate_size,
              .shared_width = model.n_shared_experts * model.moe_intermediate_size,
              .dense_width = model.intermediate_size,
              .chosen_groups = static_cast<double>(model.topk_group) / static_cast<double>(model.n_group),
              .window = model.sliding_window,
              .mtp_depths = mtp ? model.num_nextn_predict_layers : 0,
              .tied = model.tie_word_embeddings,
              .layer = {},
              .mtp = {}};
  if (model.mla) {
    shape.latent_q = model.mla->q_lora_rank;
    shape.latent_kv = model.mla->kv_lora_rank;
    shape.rotated = model.mla->qk_rope_head_dim;
  }
  for (const config::LayerSpec& spec : model.layers)
    shape.layer.push_back(layer_of(model, spec.moe, slots_a_token));
  if (shape.mtp_depths > 0) {
    const double D = real(shape.hidden);
    shape.mtp = layer_of(model, model.layers.back().moe, slots_a_token);
    shape.mtp.always += 2 * D * D;  // both hidden states side by side, multiplied down to one
    shape.mtp.vectors += 3 * D;     // norms of both, and the last one
  }
  return shape;
}

TokenFlops flops_of(const Shape& shape, std::int64_t seq_len) {
  TokenFlops flops;
  const auto add = [&](const LayerShape& layer, double times) {
    flops.products += times * 6 * (layer.attention + layer.always + layer.router);
    flops.experts += times * 6 * layer.active_experts;
    flops.attention +=
        times * 6 * shape.mean_keys(seq_len) * real(shape.heads) * real(shape.key_width + shape.value_width);
  };
  for (const LayerShape& layer : shape.layer) add(layer, 1);
  if (shape.mtp_depths > 0) add(shape.mtp, real(shape.mtp_depths));
  flops.head = 6 * shape.embedding() * real(1 + shape.mtp_depths);
  return flops;
}

std::string flops_formula(const Shape& shape, std::int64_t seq_len) {
  const TokenFlops flops = flops_of(shape, seq_len);
  const double matrices = (flops.products + flops.experts + flops.head) / 6;
  return fmt::format("6 x {} values in products + 6 x {} layers x {} heads x ({} + {}) x {} keys",
                     format_count(matrices), shape.layers + shape.mtp_depths, shape.heads, shape.key_width,
                     shape.value_width, format_count(shape.mean_keys(seq_len)));
}

}  // namespace switchyard::plan
