// Small valid configurations for the tests of the config module, and edits of them.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "config/load.h"
#include "core/error.h"
#include "json_values.h"
#include "router/router.h"
#include "temp_dir.h"

namespace switchyard::config {

using test::erase;
using test::parsed;
using test::with_members;

// Only what has no default.
inline Json minimal_qwen() {
  return parsed(R"({
    "model_type": "qwen3_moe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "moe_intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": 4})");
}
inline Json minimal_mixtral() {
  return parsed(R"({
    "model_type": "mixtral", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 32, "num_local_experts": 16, "num_experts_per_tok": 4})");
}
inline Json minimal_deepseek() {
  return parsed(R"({
    "model_type": "deepseek_v3", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 128, "moe_intermediate_size": 32, "n_routed_experts": 16, "num_experts_per_tok": 4})");
}
inline Json minimal_olmoe() {
  return parsed(R"({
    "model_type": "olmoe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": 4})");
}
inline Json minimal_run(const Json& model = minimal_qwen()) {
  Json run =
      parsed(R"({"data": {"train": ["a.bin"]}, "train": {"steps": 10, "seq_len": 32, "micro_batch_size": 2}})");
  run["model"] = model;
  return run;
}

// The value at a JSON pointer ("/train/lr"), made where there is none.
inline Json& at(Json& json, std::string_view pointer) {
  if (pointer.empty()) return json;
  const std::size_t end = std::min(pointer.find('/', 1), pointer.size());
  const std::string_view key = pointer.substr(1, end - 1);
  Json& member = json.is_array() ? json.array().at(std::stoul(std::string(key))) : json[key];
  return at(member, pointer.substr(end));
}
// `base` with the JSON text `value` at the pointer.
inline Json with(Json base, const std::string& pointer, const std::string& value) {
  at(base, pointer) = parsed(value);
  return base;
}
inline Json without(Json base, const std::string& pointer) {
  const std::size_t end = pointer.rfind('/');
  erase(at(base, pointer.substr(0, end)), pointer.substr(end + 1));
  return base;
}
inline Run run_of(const Json& text, const std::vector<std::string>& overrides = {}) {
  return parse_run(to_line(text), "run.json", overrides, router::router_schemas());
}
inline Model model_of(const Json& text) { return parse_model(to_line(text), "config.json"); }

inline std::vector<bool> moe_layers(const Model& model) {
  std::vector<bool> moe;
  for (const LayerSpec& layer : model.layers) moe.push_back(layer.moe);
  return moe;
}

inline std::string run_error(const Json& text, const std::vector<std::string>& overrides = {}) {
  return test::message_of<InputError>([&] { run_of(text, overrides); });
}
inline std::string model_error(const Json& text) {
  return test::message_of<InputError>([&] { model_of(text); });
}

inline std::filesystem::path source_dir() { return SWITCHYARD_SOURCE_DIR; }

}  // namespace switchyard::config
