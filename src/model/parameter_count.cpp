#include "model/parameter_count.h"

#include <map>
#include <string_view>

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

}  // namespace switchyard::model
