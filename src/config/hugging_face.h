// `model`: a Hugging Face config.json of one of the known layouts <-> config::Model.
#pragma once

#include <optional>

#include "config/section.h"

namespace switchyard::config {

struct ModelSection {
  Model model;
  std::optional<double> router_aux_loss_coef;  // what transformers calls router.balance_coef
  // Keys that no layout has, and which say that something is off or what the layout does anyway (published.h).
  std::vector<std::string> without_effect;
};

// Reads the object `json` (null: absent) at `path` ("model", or empty for a config.json on its own). Throws
// InputError; a run's (path not empty) may not be quantised.
ModelSection read_model(const Json* json, const std::string& path, const Source& source);
// One line on the console that lists them; none where there are none.
void report_without_effect(const ModelSection& section, const std::string& origin);
// The keys that transformers needs to open a checkpoint.
Json write_model(const Model& model);

// True where the model_type of `json` says that its router is not its layout's own: "switchyard_qwen3_moe".
bool has_own_router(const Json& json);
// Takes the object `router` out of a config.json of which has_own_router is true; none where it has none.
std::optional<Json> take_router(Json& json);

}  // namespace switchyard::config
