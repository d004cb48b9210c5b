// A configuration file (source.h) -> config::Run. Each failure is an InputError of one line: file, JSON path,
// what was found, what was expected, and for a key that is not known the nearest one that is.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "config/router_schema.h"

namespace switchyard::config {

// Reads a run's configuration and applies overrides of the form "a.b=value" (value: JSON, or else a string; an
// array's element by its index, data.train.0.path=x; of two for the same key the later one holds). A message
// about a value that an override gave begins with --set and the override instead of the file. `routers`: the
// types that router.type may name (router::router_schemas(); this module does not know them). `default_model`:
// a config.json that stands for a `model` section that is not there, and `default_router` for the `router`
// then, in place of the one that it states. `vocab_size_of`: what stands for a model.vocab_size that is not
// there, from the entries of data.train, or no value where the data do not say; without it the key is required.
using VocabSizeOf = std::function<std::optional<std::int64_t>(const std::vector<DataEntry>& train)>;
Run load_run(const std::string& path, const std::vector<std::string>& overrides,
             std::span<const RouterSchema> routers,
             const std::optional<std::string>& default_model = std::nullopt,
             const VocabSizeOf& vocab_size_of = {}, const std::optional<Router>& default_router = std::nullopt);
// The same from a text; `origin` names it in messages, and what it extends is relative to the directory of
// that.
Run parse_run(const std::string& text, const std::string& origin, const std::vector<std::string>& overrides,
              std::span<const RouterSchema> routers,
              const std::optional<std::string>& default_model = std::nullopt,
              const VocabSizeOf& vocab_size_of = {},
              const std::optional<Router>& default_router = std::nullopt);

// Why a micro-batch of train.micro_batch_size sequences is larger than can be addressed; empty: it is not.
std::string too_many_tokens(const Model& model, const Router& router, const Train& train);

// The whole of a run as JSON, every default filled in: parse_run of it gives an equal Run. Does not read
// run.resolved_json.
std::string to_resolved_json(const Run& run);

// A Hugging Face config.json (the content of `model` alone), as a checkpoint holds it or as it was published:
// unlike in a run, a quantization_config is accepted and has no effect.
Model parse_model(const std::string& text, const std::string& origin);
// The router that such a config.json states under `router`; that of its layout where model_type is the
// layout's. Throws InputError.
Router parse_model_router(const std::string& text, const std::string& origin,
                          std::span<const RouterSchema> routers);
// And back: the config.json for `transformers`, in the layout's own keys. parse_model of it gives an equal
// Model.
std::string model_to_hf_json(const Model& model);

// A config.json that parse_model takes, made to state this router: where it is not the layout's own
// (beyond_layout) model_type and architectures have our name in front, so that transformers refuses what it
// would compute otherwise, `router` holds all of it, and auto_map names the classes of kModelingFile that
// compute it; else they are the layout's, and there is no `router`.
inline constexpr std::string_view kModelingFile = "modeling_switchyard.py";
std::string state_router(const std::string& config_json, const Model& model, const Router& router,
                         std::span<const RouterSchema> routers);

// A model and its router as load_run's overrides change them, of which router.KEY and model.num_experts_per_tok
// alone are taken; a router.type of another router brings the defaults of that. `origin` names the model in
// messages. Throws InputError.
struct RoutedModel {
  Model model;
  Router router;
};
RoutedModel override_routing(const RoutedModel& routed, const std::string& origin,
                             const std::vector<std::string>& overrides, std::span<const RouterSchema> routers);

// The router of a layout where a run says nothing about it.
Router default_router(const Layout& layout, std::span<const RouterSchema> routers);

// What `inspect` needs to tell files apart: true when the text, or a configuration that it extends (relative to
// the directory of `origin`), is a JSON object with a `model` section; false for any other text, JSON or not.
bool looks_like_run(const std::string& text, const std::string& origin);

}  // namespace switchyard::config
