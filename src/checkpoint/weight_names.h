// The names under which the same weights are published, brought to those of the parameter store.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "checkpoint/safetensors.h"
#include "config/config.h"
#include "core/parameters.h"

namespace switchyard::checkpoint {

// What wrappers and savers put around a name taken off ("_orig_mod.", "module.", "language_model."), what they
// left out ("model.") put before it: "module.layers.0.mlp.gate.weight" -> "model.layers.0.mlp.gate.weight".
std::string without_wrappers(std::string_view name);

// The layer of "model.layers.N.…"; -1: of none.
std::int64_t layer_of(std::string_view name);

// A stored tensor, or a part of it, under a row's name.
struct StoredRow {
  StoredTensor tensor;
  const StoredTensor* stored = nullptr;  // that it is a part of, as the file has it
};

class WeightNames {
 public:
  WeightNames(const config::Layout& layout, std::span<const Parameter> rows);

  // The rows that a stored tensor holds, views of its bytes: itself, under its own name if a row is called so,
  // else under the layout's; of experts stacked to [E, F, D] one a row each, and of gate_up_proj, whose gate
  // rows stand above its up rows, both. One of no row stays under the name that it has without wrappers.
  std::vector<StoredRow> rows_of(const StoredTensor& stored) const;

 private:
  std::string layout_name(std::string_view name) const;
  std::vector<StoredRow> split(const StoredTensor& stored, const std::string& name) const;

  const config::Layout& layout_;
  std::unordered_set<std::string_view> rows_;
};

}  // namespace switchyard::checkpoint
