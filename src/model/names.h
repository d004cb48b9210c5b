// The names under which the public model repositories store each family's parameters.
#pragma once

#include <cstdint>
#include <string>

#include "config/config.h"

namespace switchyard::model {

struct ExpertNames {
  std::string gate, up, down;
};

inline std::string layer_prefix(std::int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

inline std::string moe_prefix(config::Family family, std::int64_t layer) {
  switch (family) {
    case config::Family::mixtral:
      return layer_prefix(layer) + "block_sparse_moe.";
    case config::Family::qwen3_moe:
    case config::Family::deepseek_v3:
      return layer_prefix(layer) + "mlp.";
  }
  return {};
}

inline ExpertNames expert_names(config::Family family, std::int64_t layer, std::int64_t expert) {
  const std::string prefix = moe_prefix(family, layer) + "experts." + std::to_string(expert) + ".";
  switch (family) {
    case config::Family::mixtral:
      return {prefix + "w1.weight", prefix + "w3.weight", prefix + "w2.weight"};
    case config::Family::qwen3_moe:
    case config::Family::deepseek_v3:
      return {prefix + "gate_proj.weight", prefix + "up_proj.weight", prefix + "down_proj.weight"};
  }
  return {};
}

}  // namespace switchyard::model
