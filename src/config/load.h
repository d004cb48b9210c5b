// JSON -> config::Run. Each failure is an InputError of one line: file, JSON path, what was found, what was
// expected, and for a key that is not known the nearest one that is.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "config/router_schema.h"

namespace switchyard::config {

// Reads a run's configuration and applies overrides of the form "a.b=value" (value: JSON, or else a string; an
// array's element by its index, data.train.0.path=x; of two for the same key the later one holds). A message
// about a value that an override gave begins with --set and the override instead of the file. `routers`: the
// types that router.type may name (router::router_schemas(); this room does not know them).
Run load_run(const std::string& path, const std::vector<std::string>& overrides,
             std::span<const RouterSchema> routers);
// The same from a text; `origin` names it in messages.
Run parse_run(const std::string& text, const std::string& origin, const std::vector<std::string>& overrides,
              std::span<const RouterSchema> routers);

// A Hugging Face config.json (the content of `model` alone), as a checkpoint holds it or as it was published:
// unlike in a run, a quantization_config is accepted and has no effect.
Model parse_model(const std::string& text, const std::string& origin);
// And back: the config.json for `transformers`, in the family's own keys. parse_model of it gives an equal
// Model.
std::string model_to_hf_json(const Model& model);

// The router of a family where a run says nothing about it.
Router default_router(Family family, std::span<const RouterSchema> routers);

// What `inspect` needs to tell files apart: true when the text is a JSON object with a `model` section; false
// for any other text, JSON or not.
bool looks_like_run(const std::string& text);

}  // namespace switchyard::config
