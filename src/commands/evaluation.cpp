#include "commands/evaluation.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "parallel/agreement.h"
#include "parallel/devices.h"
#include "router/router.h"

namespace switchyard::commands {

namespace {

std::vector<config::DataEntry> entries_of(const std::vector<std::string>& paths) {
  std::vector<config::DataEntry> entries;
  for (const std::string& path : paths) entries.push_back({path, "data", std::nullopt});
  return entries;
}

// Shards of several directories are of as many domains, called by the directories' names, or by their paths
// where two have the same.
std::vector<config::DataEntry> domains_of(const std::vector<std::string>& paths) {
  std::vector<config::DataEntry> entries = entries_of(paths);
  std::map<std::string, std::set<std::string>> directories_of;  // by name
  std::set<std::string> directories;
  for (config::DataEntry& entry : entries) {
    std::filesystem::path path = std::filesystem::absolute(entry.path).lexically_normal();
    std::error_code ignored;
    if (path.has_filename() && !std::filesystem::is_directory(path, ignored)) path = path.parent_path();
    if (!path.has_filename()) path = path.parent_path();  // DIRECTORY/
    entry.domain = path.string();
    directories_of[path.filename().string()].insert(entry.domain);
    directories.insert(entry.domain);
  }
  const bool distinct = std::all_of(directories_of.begin(), directories_of.end(),
                                    [](const auto& named) { return named.second.size() == 1; });
  for (config::DataEntry& entry : entries) {
    const std::filesystem::path directory = entry.domain;
    if (directories.size() == 1) {
      entry.domain = "data";
    } else if (distinct && directory.has_filename()) {
      entry.domain = directory.filename().string();
    }
  }
  return entries;
}

// With the document mask of the directory's run, the token that begins a document of these data.
std::optional<std::int64_t> begin_token_of(const checkpoint::ModelDirectory& directory,
                                           const std::vector<config::DataEntry>& entries) {
  const std::optional<config::Run> run = directory.run();
  if (!run || !run->data.document_mask) return std::nullopt;
  const config::Data data{.train = entries,
                          .validation = {},
                          .document_mask = true,
                          .eot_token = run->data.eot_token,
                          .begin_token = run->data.begin_token};
  return train::find_begin_token(data, directory.model().vocab_size);
}

// What --data says, or else what the directory's run validates on.
std::vector<config::DataEntry> evaluation_data(const checkpoint::ModelDirectory& directory,
                                               const EvaluationOptions& options) {
  const std::optional<config::Run> run = directory.run();
  std::vector<config::DataEntry> entries = domains_of(options.data);
  if (entries.empty() && run) entries = run->data.validation;
  if (entries.empty())
    throw_input("{}: {}; give --data", options.checkpoint,
                run ? "the run has no data.validation" : "a model directory says nothing of data");
  return entries;
}

train::EvalSettings settings_of(const checkpoint::ModelDirectory& directory, const EvaluationOptions& options) {
  return {.seq_len = window_length(directory, options.seq_len),
          .batch = options.batch,
          .max_tokens = options.max_tokens,
          .begin_token = begin_token_of(directory, evaluation_data(directory, options))};
}

Context context_on(const std::string& device, parallel::World& world) {
  const parallel::DeviceChoice devices = parallel::take_device(device, world);
  parallel::log_devices(devices, world);
  return Context(devices.device);
}

}  // namespace

config::RoutedModel routed_model(const checkpoint::ModelDirectory& directory) {
  return {directory.model(), directory.router()};
}

config::RoutedModel routed_model(const checkpoint::ModelDirectory& directory,
                                 const std::vector<std::string>& overrides) {
  if (overrides.empty()) return routed_model(directory);
  return config::override_routing(routed_model(directory), (directory.path() / "config.json").string(),
                                  overrides, router::router_schemas());
}

std::int64_t window_length(const checkpoint::ModelDirectory& directory, std::int64_t asked) {
  std::int64_t length = asked;
  if (const auto run = directory.run(); length == 0 && run) length = run->train.seq_len;
  const std::int64_t most = directory.model().max_position_embeddings;
  if (length == 0) {
    constexpr std::int64_t kLength = 2048;
    length = std::min(kLength, most);
    log_info(fmt::format("--seq-len {}: the default for a directory that no run wrote", length));
  }
  if (length > most) throw_input("--seq-len {}: the model has max_position_embeddings {}", length, most);
  return length;
}

Calibration::Calibration(const checkpoint::ModelDirectory& directory, const CalibrationOptions& options,
                         std::int64_t seq_len, std::int64_t batch, const parallel::Group& all)
    : directory_(directory),
      settings_{.seq_len = 0, .batch = batch, .tokens = options.tokens, .begin_token = std::nullopt} {
  if (options.tokens == 0) {
    if (!options.data.empty())
      throw_input(
          "--calibrate-data: is given without --calibrate, which says on how many tokens; add it or "
          "remove this");
    return;
  }
  std::vector<config::DataEntry> entries = entries_of(options.data);
  if (const auto run = directory.run(); entries.empty() && run) entries = run->data.train;
  if (entries.empty())
    throw_input("--calibrate: {} is a model directory, which says nothing of data; give --calibrate-data",
                directory.path().string());
  settings_.seq_len = window_length(directory, seq_len);
  settings_.begin_token = begin_token_of(directory, entries);
  domains_ = train::open_domains(entries, directory.model().vocab_size, all);
}

std::unique_ptr<model::Transformer> Calibration::open(const config::RoutedModel& routed,
                                                      const std::string& dtype, Context& ctx) const {
  if (domains_.empty())
    return checkpoint::open_model(directory_, {.dtype = dtype, .router = routed.router, .model = routed.model},
                                  ctx);
  const std::int64_t steps = train::calibration_steps(domains_, settings_);
  auto model = checkpoint::open_model(
      directory_, {.dtype = dtype, .router = train::calibrating(routed.router, steps), .model = routed.model},
      ctx);
  const auto& rows = model->parameters().rows();
  if (std::all_of(rows.begin(), rows.end(), [](const Parameter& row) { return row.trained; })) {
    log_info(fmt::format("router {} keeps nothing beside its trained weights: there is nothing to calibrate",
                         routed.router.type));
    return model;
  }
  const std::int64_t tokens = train::calibrate(*model, domains_, settings_, ctx);
  const router::RoutingStep& routing = model->routing();
  if (routing.n_layers() > 0 && routing.layer(0).router().n_gradient_statistics() > 0)
    log_info(fmt::format("router {}: what it knows of gradients stays as it is, since training alone makes any",
                         routed.router.type));
  log_info(fmt::format("router {}: calibrated on {} tokens in {} steps{}", routed.router.type, tokens, steps,
                       tokens < settings_.tokens ? ", all that the data have in whole windows" : ""));
  return model;
}

void describe_evaluation(CLI::App& app, EvaluationOptions& options) {
  app.add_option(
         "CHECKPOINT", options.checkpoint,
         "A checkpoint directory, a run directory (its newest checkpoint), or a Hugging Face model directory")
      ->required();
  app.add_option("--data", options.data,
                 "Token shards: files, directories or quoted globs; those of a directory are a domain "
                 "(default: the run's data.validation)")
      ->type_name("PATH_OR_GLOB");
  app.add_option("--seq-len", options.seq_len,
                 "Inputs of one window (default: the length trained with; of a Hugging Face directory 2048, or "
                 "max_position_embeddings where that is less; of questions max_position_embeddings)")
      ->type_name("N")
      ->transform(whole_number(1, "", config::kMaxSize));
  app.add_option("--batch", options.batch, "Windows at once")
      ->type_name("N")
      ->transform(whole_number(1, "", config::kMaxSize))
      ->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens,
                 "Predict at most so many tokens of each domain (default: all)")
      ->type_name("N")
      ->transform(whole_number(0, "0: all"));
  describe_calibration(app, options.calibration);
  describe_threads(app, options.threads);
  app.add_option("--json", options.json, "Write the result as JSON to a file, or to standard output with -")
      ->type_name("FILE|-");
  describe_device(app, options.device);
  describe_nproc(app, options.nproc);
  describe_dtype(app, options.dtype);
}

Evaluation::Evaluation(const EvaluationOptions& options, parallel::World& world)
    : all_(parallel::all_ranks(world)),
      directory_(options.checkpoint),
      dtype_(options.dtype),
      settings_(settings_of(directory_, options)),
      domains_(train::open_domains(evaluation_data(directory_, options), directory_.model().vocab_size, all_)),
      calibration_(directory_, options.calibration, settings_.seq_len, settings_.batch, all_),
      no_calibration_(directory_, {}, settings_.seq_len, settings_.batch, all_),
      ctx_(context_on(options.device, world)) {}

Evaluation::Evaluated Evaluation::evaluate(const config::RoutedModel& routed, const Way& way) {
  auto model = (way.calibrates ? calibration_ : no_calibration_).open(routed, dtype_, ctx_);
  model->plan(settings_.batch, settings_.seq_len, ctx_);
  if (way.warms_up) {
    train::EvalSettings one_batch = settings_;
    one_batch.max_tokens = settings_.batch * settings_.seq_len;
    train::evaluate(*model, domains_, one_batch, ctx_, all_);
  }
  train::EvalResult result = train::evaluate(*model, domains_, settings_, ctx_, all_);
  return {std::move(model), std::move(result)};
}

Json flops_json(const train::EvalResult& result, const model::Transformer& model) {
  const model::FlopCounter counter(model);
  const model::Flops real = counter.count(result.counts, slots_by_layer(result)),
                     all = counter.count_static(result.counts);
  const auto tokens = static_cast<double>(result.counts.tokens);
  Json layers(Json::Array{});
  for (std::size_t l = 0; l < real.layers.size(); ++l) {
    const model::LayerFlops& layer = real.layers[l];
    layers.push_back(Json::Object{{"layer", l},
                                  {"attention", layer.attention / tokens},
                                  {"router", layer.router / tokens},
                                  {"experts", layer.experts / tokens},
                                  {"always", layer.always / tokens},
                                  {"static", all.layers[l].total() / tokens}});
  }
  return Json::Object{{"per_token", real.total() / tokens},
                      {"per_token_static", all.total() / tokens},
                      {"saved", 1 - real.total() / all.total()},
                      {"head", real.head / tokens},
                      {"layers", std::move(layers)}};
}

void add_figures(Json& json, const router::BalanceFigures& figures) {
  for (const auto& [name, value] : router::named(figures)) json[name] = value;
}

std::vector<double> slots_by_layer(const train::EvalResult& result) {
  std::vector<double> slot_L;
  for (std::int64_t l = 0; l < result.load.n_layers(); ++l) slot_L.push_back(result.load.slots(l));
  return slot_L;
}

std::FILE* text_output(const std::string& json) { return json == "-" ? stderr : stdout; }

// Of what is no plain file, a pipe or a link to what is not there yet, the writing itself tells.
void check_writable(const std::vector<std::string>& paths, const parallel::Group& all) {
  parallel::by_first(all, [&] {
    for (const std::string& path : paths) {
      if (path.empty() || path == "-") continue;
      std::error_code error;
      const auto type = std::filesystem::symlink_status(path, error).type();
      if (std::filesystem::is_directory(path, error)) throw_input("{}: is a directory; give a file", path);
      if (type == std::filesystem::file_type::regular) {
        const OutputFile opened(path, OutputFile::Mode::append);
      } else if (type == std::filesystem::file_type::not_found) {
        const std::filesystem::path parent = std::filesystem::path(path).parent_path();
        if (::access(parent.empty() ? "." : parent.c_str(), W_OK) != 0)
          throw_input("{}: cannot be written: {}; choose another place", path,
                      std::generic_category().message(errno));
      }
    }
    return "";
  });
}

void write_json(const std::string& json, const Json& report) {
  if (json.empty()) return;
  if (json == "-")
    fmt::print("{}", to_text(report));
  else
    write_text_file(json, to_text(report));
}

}  // namespace switchyard::commands
