#include "model/cost.h"

#include <map>
#include <numeric>
#include <string>
#include <string_view>

#include "core/device_memory.h"
#include "model/names.h"
#include "model/transformer.h"

namespace switchyard::model {

namespace {

constexpr const char* kParts[] = {"embedding", "attention",      "norms",   "dense layers",
                                  "router",    "shared experts", "experts", "head"};

std::string_view part_of(const Parameter& row) {
  const auto has = [&row](std::string_view part) { return row.name.find(part) != std::string::npos; };
  if (row.sharding == Sharding::by_expert) return "experts";
  if (has("embed_tokens.")) return "embedding";
  if (has("lm_head.")) return "head";
  if (has(".self_attn.")) return "attention";
  if (has(".shared_experts.")) return "shared experts";
  if (has(".gate.")) return "router";
  return has("norm.") ? "norms" : "dense layers";
}

}  // namespace

ParameterCount count_parameters(const config::Model& config, const config::Router& router) {
  config::Model main = config;
  main.num_nextn_predict_layers = 0;
  const Transformer model(main, router, DType::f32, false);
  ParameterCount count;
  std::int64_t expert_values = 0, matrix_values = 0;
  std::map<std::string_view, std::int64_t> values_of;
  for (const Parameter& row : model.parameters().rows()) {
    const std::int64_t values = row.shape.numel();
    count.total += values;
    values_of[part_of(row)] += values;
    if (row.sharding == Sharding::by_expert)
      expert_values += values;
    else if (row.shape.rank() == 2)
      matrix_values += values;
  }
  for (const char* part : kParts)
    if (values_of[part] > 0) count.parts.emplace_back(part, values_of[part]);
  const std::int64_t active_experts =
      expert_values == 0 ? 0 : expert_values / config.num_experts * config::slots_per_token(router, config);
  // An embedding that is not also the output layer is looked up, not multiplied.
  const std::int64_t looked_up = config.tie_word_embeddings ? 0 : config.vocab_size * config.hidden_size;
  count.active = count.total - expert_values + active_experts;
  count.active_matmul = matrix_values - looked_up + active_experts;
  if (config.num_nextn_predict_layers > 0)
    count.mtp = Transformer(config, router, DType::f32, false).parameters().count() - count.total;
  return count;
}

namespace {

// Values of the matrices whose names begin so.
double matrix_values(const ParameterStore& store, const std::string& prefix) {
  double values = 0;
  for (const Parameter& row : store.rows())
    if (row.name.starts_with(prefix) && row.shape.rank() == 2) values += static_cast<double>(row.shape.numel());
  return values;
}

}  // namespace

double Flops::total() const {
  return std::accumulate(layers.begin(), layers.end(), head,
                         [](double sum, const LayerFlops& layer) { return sum + layer.total(); });
}

TokenCounts count_tokens(const Batch& batch) {
  const HostCopy token_T(batch.token_T), kv_begin_T(batch.kv_begin_T);
  const std::int32_t *token = token_T->as<std::int32_t>(), *begin = kv_begin_T->as<std::int32_t>();
  TokenCounts counts;
  for (std::int64_t t = 0; t < batch.token_T.rows(); ++t) {
    if (token[t] < 0) continue;
    counts.tokens += 1;
    counts.keys += t % batch.seq_len + 1 - begin[t];
  }
  return counts;
}

FlopCounter::FlopCounter(const Transformer& model) {
  const config::Model& config = model.config();
  const ParameterStore& store = model.parameters();
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto heads = static_cast<double>(config.num_attention_heads);
  const std::int64_t value_width = config.mla ? config.mla->v_head_dim : config.head_dim;
  std::int64_t router = 0;
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
    Layer layer;
    layer.is_moe = config.is_moe_layer[static_cast<std::size_t>(l)];
    layer.attention = 2 * matrix_values(store, layer_prefix(l) + "self_attn.");
    layer.per_key = 2 * heads * static_cast<double>(config.head_dim + value_width);
    if (layer.is_moe) {
      const std::string prefix = moe_prefix(*config.layout, l);
      const router::Router& gate = model.routing().layer(router++).router();
      layer.router =
          2 * (matrix_values(store, prefix + "gate.") + static_cast<double>(gate.extra_multiply_adds()));
      layer.per_slot = 6 * hidden * static_cast<double>(config.moe_intermediate_size);
      layer.always = 2 * matrix_values(store, prefix + "shared_experts.");
      n_slots_ = gate.n_slots();
    } else {
      layer.always = 2 * matrix_values(store, layer_prefix(l) + "mlp.");
    }
    layers_.push_back(layer);
  }
  head_ = 2 * hidden * static_cast<double>(config.vocab_size);
}

Flops FlopCounter::count(const TokenCounts& counts, std::span<const double> slot_L) const {
  const auto tokens = static_cast<double>(counts.tokens), keys = static_cast<double>(counts.keys);
  Flops flops{.layers = {}, .head = head_ * tokens};
  std::size_t router = 0;
  for (const Layer& layer : layers_) {
    SY_CHECK(!layer.is_moe || router < slot_L.size(), "slots of {} layers", slot_L.size());
    flops.layers.push_back({.attention = layer.attention * tokens + layer.per_key * keys,
                            .router = layer.router * tokens,
                            .experts = layer.is_moe ? layer.per_slot * slot_L[router++] : 0.0,
                            .always = layer.always * tokens});
  }
  return flops;
}

Flops FlopCounter::count_static(const TokenCounts& counts) const {
  const std::vector<double> all_L(layers_.size(),
                                  static_cast<double>(counts.tokens) * static_cast<double>(n_slots_));
  return count(counts, all_L);
}

}  // namespace switchyard::model
