// The names under which the public model repositories store each layout's parameters.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

#include "config/layouts.h"

namespace switchyard::model {

struct ExpertNames {
  std::string gate, up, down;
};

inline std::string layer_prefix(std::int64_t layer) { return fmt::format("model.layers.{}.", layer); }

inline std::string moe_prefix(const config::Layout& layout, std::int64_t layer) {
  return fmt::format("{}{}.", layer_prefix(layer), layout.moe_block);
}

// Before the names of a router's parameters.
inline std::string router_prefix(const config::Layout& layout, std::int64_t layer) {
  return moe_prefix(layout, layer) + "gate.";
}

inline ExpertNames expert_names(const config::Layout& layout, std::int64_t layer, std::int64_t expert) {
  const std::string prefix = fmt::format("{}experts.{}.", moe_prefix(layout, layer), expert);
  const auto name = [&](std::string_view projection) { return fmt::format("{}{}.weight", prefix, projection); };
  return {name(layout.gate_proj), name(layout.up_proj), name(layout.down_proj)};
}

}  // namespace switchyard::model
