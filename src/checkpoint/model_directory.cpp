#include "checkpoint/model_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "model/transformer.h"
#include "parallel/agreement.h"
#include "router/router.h"

namespace switchyard::checkpoint {

namespace {

namespace fs = std::filesystem;

void refuse_quantised(const std::string& config_json, const fs::path& path) {
  const Json json = sorted(parse_stored_json(config_json, path.string()));
  const Json& found = json["quantization_config"];
  if (found.is_null()) return;
  throw_input("{}: quantization_config: {}: quantised weights cannot be read; convert them to bfloat16 first",
              path.string(), printable(to_line(found)));
}

config::ComputeType compute_type(const ModelDirectory& directory, const std::string& asked, Device device) {
  if (asked.empty()) {
    const auto& run = directory.run();
    return run && device == Device::cuda ? run->train.dtype : config::ComputeType::float32;
  }
  return asked == "bfloat16" ? config::ComputeType::bfloat16 : config::ComputeType::float32;
}

// `router.type is "lpr", there "softmax_topk"`: the type alone where that differs, else the options that do.
std::string differences_of_routers(const config::Router& here, const config::Router& there) {
  std::vector<std::string> clauses;
  for (const ModelDifference& difference : differences_of(here, there))
    if (here.type == there.type || difference.key == "type")
      clauses.push_back(
          fmt::format("router.{} is {}, there {}", difference.key, difference.here, difference.there));
  return fmt::format("{}", fmt::join(clauses, ", "));
}

// What of the routers' part in a forward pass differs, one clause each: not what acts in training alone.
std::vector<std::string> strict_differences(const config::Router& here, const config::Router& there) {
  std::vector<std::string> clauses;
  const config::RouterSchema& schema = config::schema_of(here.type, router::router_schemas());
  for (const ModelDifference& difference : differences_of(here, there)) {
    const auto option =
        std::find_if(schema.options.begin(), schema.options.end(), [&](const config::RouterOption& each) {
          return each.key == difference.key && !each.in_training_alone;
        });
    const bool counts = difference.key == "type" || difference.key == "capacity_factor" ||
                        difference.key == "logit_norm" || difference.key == "num_hash_layers" ||
                        (here.type == there.type && option != schema.options.end());
    if (counts)
      clauses.push_back(
          fmt::format("router.{} is {}, there {}", difference.key, difference.here, difference.there));
  }
  return clauses;
}

std::string describe(const RouterChange& change, std::string_view anew, std::string_view left) {
  const auto names = [](const std::vector<std::string>& list) {
    return list.empty() ? "nothing" : fmt::format("{}", fmt::join(list, ", "));
  };
  return fmt::format("kept {}; {} {}; {} {}", names(change.kept), anew, names(change.anew), left,
                     names(change.left));
}

}  // namespace

bool is_hugging_face(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path / "config.json", error)) return false;
  for (const char* of_a_run : {"manifest.json", "run.json", "state.safetensors", "checkpoints"})
    if (fs::exists(path / of_a_run, error)) return false;
  return !config::looks_like_run(read_text_file(path / "config.json"), (path / "config.json").string());
}

ModelWeights open_weights(const fs::path& directory, const std::string& config_json) {
  refuse_quantised(config_json, directory / "config.json");
  std::set<std::string> there;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().extension() == ".safetensors") there.insert(entry.path().filename().string());
  const fs::path index_path = directory / kWeightsIndex;
  if (!fs::exists(index_path)) {
    if (there.empty())
      throw_input("{}: holds no .safetensors file; weights of another format are not read, convert them",
                  directory.string());
    // Beside model*.safetensors some models hold the same weights under their makers' names.
    std::vector<std::string> files, others;
    for (const std::string& name : there) (name.starts_with("model") ? files : others).push_back(name);
    if (files.empty()) files.swap(others);
    if (!others.empty())
      log_info(fmt::format("{}: not read, beside model*.safetensors: {}", directory.string(),
                           fmt::join(others, ", ")));
    return {directory, files, false};
  }
  std::set<std::string> listed;
  for (const auto& [name, file] : parse_weights_index(read_text_file(index_path), index_path.string()))
    listed.insert(file);
  std::vector<std::string> missing, unlisted, others;
  std::set_difference(listed.begin(), listed.end(), there.begin(), there.end(), std::back_inserter(missing));
  for (const std::string& name : there)
    if (!listed.contains(name)) (name.starts_with("model") ? unlisted : others).push_back(name);
  if (!missing.empty())
    throw_input("{}: lists {}, which {} not there; copy the model again", index_path.string(),
                fmt::join(missing, ", "), missing.size() == 1 ? "is" : "are");
  if (!unlisted.empty())
    throw_input("{}: does not list {}, which would be left unread; remove the file or the index",
                index_path.string(), fmt::join(unlisted, ", "));
  if (!others.empty())
    log_info(fmt::format("{}: not read, since the index does not list it: {}", directory.string(),
                         fmt::join(others, ", ")));
  return {directory, {listed.begin(), listed.end()}, true};
}

ModelDirectory::ModelDirectory(const fs::path& path)
    : ModelDirectory(path, parallel::Group(*parallel::make_lone_transport(), {0})) {}

ModelDirectory::ModelDirectory(const fs::path& path, const parallel::Group& all) : path_(path) {
  const std::string kind = parallel::by_first(all, [&] {
    if (std::error_code error; !fs::is_directory(path, error))
      throw_input(
          "{}: is not a directory; give a checkpoint, a run directory or a Hugging Face model directory",
          path.string());
    return is_hugging_face(path) ? "Hugging Face" : "run";
  });
  if (kind == "run") {
    checkpoint_.emplace(path, all);
    path_ = checkpoint_->path();
    model_ = checkpoint_->model();
    run_ = config::parse_run(checkpoint_->run_config_json(), (path_ / "run.json").string(), {},
                             router::router_schemas());
    config_json_ = config::state_router(checkpoint_->model_json(), model_, router(), router::router_schemas());
  } else {
    parallel::together(all, [&] { open_hugging_face(); });
  }
}

void ModelDirectory::open_hugging_face() {
  const fs::path config = path_ / "config.json";
  config_json_ = read_text_file(config);
  model_ = config::parse_model(config_json_, config.string());
  router();  // refused here where it cannot be read
  weights_.emplace(open_weights(path_, config_json_));
  // transformers writes num_nextn_predict_layers 1 by default and no such layer: the tensors decide.
  if (!weights_->has_layer(model_.num_hidden_layers)) model_.num_nextn_predict_layers = 0;
}

config::Router ModelDirectory::router() const {
  if (run_) return run_->router;
  return config::parse_model_router(config_json_, (path_ / "config.json").string(), router::router_schemas());
}

const ModelWeights& ModelDirectory::weights() const { return checkpoint_ ? checkpoint_->weights() : *weights_; }

void ModelDirectory::check_model(const config::Model& model) const {
  constexpr std::string_view kMayDiffer[] = {"initializer_range", "max_position_embeddings",
                                             "num_experts_per_tok", "num_nextn_predict_layers"};
  std::vector<std::string> differences;
  for (const ModelDifference& difference : differences_of(model, model_))
    if (std::find(std::begin(kMayDiffer), std::end(kMayDiffer), difference.key) == std::end(kMayDiffer))
      differences.push_back(
          fmt::format("model.{} is {}, there {}", difference.key, difference.here, difference.there));
  if (!differences.empty())
    throw_input("{}: cannot begin with these weights: {}; use the model of the directory's config.json",
                (path_ / "config.json").string(), fmt::join(differences, "; "));
}

void ModelDirectory::load_weights(const config::Model& model, const config::Router& router, std::uint64_t seed,
                                  const std::optional<std::vector<std::string>>& strict,
                                  ParameterStore& store) const {
  const config::Router own = this->router();
  const std::string slots = model.num_experts_per_tok == model_.num_experts_per_tok
                                ? ""
                                : fmt::format("model.num_experts_per_tok is {}, there {}",
                                              model.num_experts_per_tok, model_.num_experts_per_tok);
  std::vector<std::string> differences;
  if (strict) {
    differences = strict_differences(router, own);
    if (!slots.empty()) differences.insert(differences.begin(), slots);
    differences.insert(differences.end(), strict->begin(), strict->end());
  }
  const auto refuse = [&](const std::string& rows) {
    throw_input("{}: --strict: {}{}; set what the directory has, or leave out --strict", path_.string(),
                fmt::join(differences, ", "), rows);
  };
  if (!slots.empty() && !strict) log_info(slots);
  if (own == router) {
    if (!differences.empty()) refuse("");
    return weights().load(model, store);
  }
  const auto agree = [&](const RouterChange& change) {
    const bool same_rows = change.anew.empty() && change.left.empty();
    if (strict && !(differences.empty() && same_rows))
      refuse(same_rows ? "" : ": " + describe(change, "would begin anew", "would be left"));
    if (!change.anew.empty() || !change.left.empty() || own.type != router.type)
      log_info(fmt::format("router {}: {}",
                           own.type == router.type ? differences_of_routers(router, own)
                                                   : fmt::format("{} -> {}", own.type, router.type),
                           describe(change, "begin anew", "left")));
  };
  const model::Transformer there(model, own, DType::f32, false);  // described, not allocated
  weights().load(model, there.parameters().rows(), seed, agree, store);
}

std::unique_ptr<model::Transformer> open_model(const ModelDirectory& directory, const ModelOptions& options,
                                               Context& ctx) {
  config::Model config = options.model ? *options.model : directory.model();
  config.num_nextn_predict_layers = 0;
  const config::Router router = options.router ? *options.router : directory.router();
  const config::ComputeType type = compute_type(directory, options.dtype, ctx.device);
  ctx.matmul = model::matmul_type_of(type);
  auto model =
      std::make_unique<model::Transformer>(config, router, model::dtype_of(type, ctx.device), options.training);
  model->allocate(ctx.device);
  constexpr std::uint64_t kSeed = 1;
  directory.load_weights(config, router, kSeed, std::nullopt, model->parameters());
  model->round_weights(ctx);
  return model;
}

}  // namespace switchyard::checkpoint
