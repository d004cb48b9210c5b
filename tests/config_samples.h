// Small valid configurations for the tests of the config module, and edits of them.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/load.h"
#include "core/error.h"
#include "router/registry.h"
#include "temp_dir.h"

namespace switchyard::config {

using nlohmann::json;

// Only what has no default.
inline json minimal_qwen() {
  return json::parse(R"({
    "model_type": "qwen3_moe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "moe_intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": 4})");
}
inline json minimal_mixtral() {
  return json::parse(R"({
    "model_type": "mixtral", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 32, "num_local_experts": 16, "num_experts_per_tok": 4})");
}
inline json minimal_deepseek() {
  return json::parse(R"({
    "model_type": "deepseek_v3", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 128, "moe_intermediate_size": 32, "n_routed_experts": 16, "num_experts_per_tok": 4})");
}
inline json minimal_olmoe() {
  return json::parse(R"({
    "model_type": "olmoe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": 4})");
}
inline json minimal_run(const json& model = minimal_qwen()) {
  return {{"model", model},
          {"data", {{"train", {"a.bin"}}}},
          {"train", {{"steps", 10}, {"seq_len", 32}, {"micro_batch_size", 2}}}};
}

// `base` with the JSON text `value` at the pointer ("/train/lr").
inline json with(json base, const std::string& pointer, const std::string& value) {
  base[json::json_pointer(pointer)] = json::parse(value);
  return base;
}
inline json without(json base, const std::string& pointer) {
  const json::json_pointer at(pointer);
  base.at(at.parent_pointer()).erase(at.back());
  return base;
}

inline Run run_of(const json& text, const std::vector<std::string>& overrides = {}) {
  return parse_run(text.dump(), "run.json", overrides, router::router_schemas());
}
inline Model model_of(const json& text) { return parse_model(text.dump(), "config.json"); }

inline std::string run_error(const json& text, const std::vector<std::string>& overrides = {}) {
  return test::message_of<InputError>([&] { run_of(text, overrides); });
}
inline std::string model_error(const json& text) {
  return test::message_of<InputError>([&] { model_of(text); });
}

inline std::filesystem::path source_dir() { return SWITCHYARD_SOURCE_DIR; }

}  // namespace switchyard::config
