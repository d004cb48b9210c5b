#include "model/cost.h"

#include <map>
#include <numeric>
#include <string>
#include <string_view>

#include "core/device_memory.h"
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

FlopCounter::FlopCounter(const Transformer& model)
    : head_(2.0 * static_cast<double>(model.config().hidden_size * model.config().vocab_size)) {
  for (const DecoderBlock& block : model.blocks()) {
    const router::RoutedLayer* const routed = block.router();
    layers_.push_back({block.cost(), routed != nullptr});
    if (routed != nullptr) n_slots_ = routed->router().n_slots();
  }
}

Flops FlopCounter::count(const TokenCounts& counts, std::span<const double> slot_L) const {
  const auto tokens = static_cast<double>(counts.tokens), keys = static_cast<double>(counts.keys);
  Flops flops{.layers = {}, .head = head_ * tokens};
  std::size_t router = 0;
  for (const auto& [cost, is_moe] : layers_) {
    SY_CHECK(!is_moe || router < slot_L.size(), "slots of {} layers", slot_L.size());
    flops.layers.push_back({.attention = cost.attention.per_token * tokens + cost.attention.per_key * keys,
                            .router = cost.ffn.router * tokens,
                            .experts = is_moe ? cost.ffn.per_slot * slot_L[router++] : 0.0,
                            .always = cost.ffn.always * tokens});
  }
  return flops;
}

Flops FlopCounter::count_static(const TokenCounts& counts) const {
  const std::vector<double> all_L(layers_.size(),
                                  static_cast<double>(counts.tokens) * static_cast<double>(n_slots_));
  return count(counts, all_L);
}

}  // namespace switchyard::model
