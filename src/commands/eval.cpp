#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "checkpoint/model_directory.h"
#include "commands/commands.h"
#include "commands/eval_tasks.h"
#include "commands/options.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/threads.h"
#include "model/transformer.h"
#include "parallel/devices.h"
#include "parallel/launch.h"
#include "train/evaluator.h"

namespace switchyard::commands {

namespace {

struct Options {
  std::string checkpoint;
  std::vector<std::string> data;  // empty: what the run validates on
  std::int64_t seq_len = 0;  // 0: what the checkpoint was trained with; of a model directory 2048 or its most
  std::int64_t batch = 8;
  std::int64_t max_tokens = 0;  // 0: all
  std::int64_t threads = 0;     // 0: one a core
  std::string json;             // empty: none; "-": standard output
  std::string device = "auto";
  std::int64_t nproc = 0;  // ranks to start; 0: those that mpirun has started, or one
  std::string dtype;       // empty: on a CUDA device what the run trains in, else float32; float32, bfloat16
  TaskOptions tasks;
};

void describe(CLI::App& app, Options& options) {
  app.add_option(
         "CHECKPOINT", options.checkpoint,
         "A checkpoint directory, a run directory (its newest checkpoint), or a Hugging Face model directory")
      ->required();
  app.add_option(
         "--data", options.data,
         "Token shards: files, directories or quoted globs (default: the run's data.validation, by domain)")
      ->type_name("PATH_OR_GLOB");
  app.add_option("--seq-len", options.seq_len,
                 "Inputs of one window (default: the length trained with; of a Hugging Face directory 2048, or "
                 "max_position_embeddings where that is less; for tasks always that)")
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
  describe_threads(app, options.threads);
  app.add_option("--json", options.json, "Write the result as JSON to a file, or to standard output with -")
      ->type_name("FILE|-");
  describe_device(app, options.device);
  describe_nproc(app, options.nproc);
  describe_dtype(app, options.dtype);
  describe_tasks(app, options.tasks);
  app.footer(
      "Windows follow one another; every token but the first is predicted exactly once. The loss over all "
      "domains is the mean over their tokens.\n"
      "Examples:\n"
      "  switchyard eval runs/quickstart\n"
      "  switchyard eval runs/quickstart/checkpoints/step_000400 --data data/quickstart/legal --json -\n"
      "  switchyard eval runs/quickstart --task arc_easy.jsonl --shots 5");
}

void add_figures(Json& json, const router::BalanceFigures& figures) {
  for (const auto& [name, value] : router::named(figures)) json[name] = value;
}

// Of the forward pass, a token (model/cost.h): in all, as a static model's, and by layer.
Json flops_json(const train::EvalResult& result, const model::Transformer& model) {
  const model::FlopCounter counter(model);
  std::vector<double> slot_L;
  for (std::int64_t l = 0; l < result.load.n_layers(); ++l) slot_L.push_back(result.load.slots(l));
  const model::Flops real = counter.count(result.counts, slot_L), all = counter.count_static(result.counts);
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

// Of a domain or of all: `part` is a DomainLoss or the EvalResult.
template <typename Part>
void add_losses(Json& json, const Part& part) {
  json["loss"] = part.loss;
  json["perplexity"] = std::exp(part.loss);
  json["tokens"] = part.tokens;
  if (const auto bits = train::bits_per_byte(part.loss, part.tokens, part.text)) {
    json["bits_per_byte"] = *bits;
    json["bits_per_byte_is_estimated"] = part.text->is_estimate;
  }
}

Json whole_numbers(const std::vector<double>& counts) {
  return Json::list(std::vector<std::int64_t>(counts.begin(), counts.end()));
}

Json to_json(const train::EvalResult& result, const model::Transformer& model) {
  const auto figures = result.load.figures();
  Json layers(Json::Array{});
  for (std::int64_t l = 0; l < model.routing().n_main_layers(); ++l) {
    Json layer;
    layer["layer"] = model.routing().layer(l).layer();
    add_figures(layer, figures[static_cast<std::size_t>(l)]);
    layer["counts"] = whole_numbers(result.load.layer(l));
    layer["specialisation"] = result.load.specialisation(l);
    const auto count_DE = result.load.by_domain(l);
    for (std::size_t d = 0; d < count_DE.size(); ++d)
      layer["counts_by_domain"][result.domains[d].name] = whole_numbers(count_DE[d]);
    layers.push_back(std::move(layer));
  }
  Json balance;
  add_figures(balance, router::mean_of(figures));
  balance["layers"] = std::move(layers);
  Json domains(Json::Array{});
  for (const train::DomainLoss& domain : result.domains) {
    Json entry;
    entry["name"] = domain.name;
    add_losses(entry, domain);
    domains.push_back(std::move(entry));
  }
  Json report;
  add_losses(report, result);
  report["tokens_per_second"] = static_cast<double>(result.tokens) / result.seconds;
  report["domains"] = std::move(domains);
  report["balance"] = std::move(balance);
  report["drop_rate"] = result.load.drop_rate();
  report["flops"] = flops_json(result, model);
  return report;
}

// One line a domain, then one of all.
void print_losses(const train::EvalResult& result, std::FILE* to) {
  const std::string total = "all domains";
  std::size_t width = total.size();
  for (const train::DomainLoss& domain : result.domains) width = std::max(width, domain.name.size());
  fmt::print(to, "{:<{}}  {:>8}  {:>10}  {:>9}  {:>12}\n", "domain", width, "loss", "perplexity", "bits/byte",
             "tokens");
  const auto line = [&](const std::string& name, const auto& part) {
    const auto bits = train::bits_per_byte(part.loss, part.tokens, part.text);
    const std::string bits_text =
        bits ? fmt::format("{}{:.4f}", part.text->is_estimate ? "~" : "", *bits) : "unknown";
    fmt::print(to, "{:<{}}  {:8.4f}  {:10.3f}  {:>9}  {:>12}\n", name, width, part.loss, std::exp(part.loss),
               bits_text, part.tokens);
  };
  for (const train::DomainLoss& domain : result.domains) line(domain.name, domain);
  line(total, result);
  const auto estimated = [](const train::DomainLoss& domain) {
    return domain.text && domain.text->is_estimate;
  };
  if (std::any_of(result.domains.begin(), result.domains.end(), estimated))
    fmt::print(to, "~: estimated, by the bytes per token that meta.json states of the whole split\n");
  fmt::print(to, "{:.0f} tokens/s\n", static_cast<double>(result.tokens) / result.seconds);
}

void print_table(const train::EvalResult& result, const model::Transformer& model, std::FILE* to) {
  print_losses(result, to);
  if (model.routing().n_main_layers() == 0) return;
  const auto row = [&](const std::string& name, const router::BalanceFigures& f) {
    fmt::print(to, "{:>6}  {:7.4f}  {:8.2e}  {:7.4f}  {:8.4f}  {:11.3f}  {:8.4f}\n", name, f.gini, f.min_max,
               f.cv, f.max_vio, f.utilisation, f.entropy);
  };
  fmt::print(to, "{:>6}  {:>7}  {:>8}  {:>7}  {:>8}  {:>11}  {:>8}\n", "layer", "Gini", "min/max", "CV",
             "MaxVio", "utilisation", "entropy");
  const auto figures = result.load.figures();
  for (std::int64_t l = 0; l < model.routing().n_main_layers(); ++l)
    row(std::to_string(model.routing().layer(l).layer()), figures[static_cast<std::size_t>(l)]);
  row("mean", router::mean_of(figures));
}

int run_rank(const Options& options, parallel::World& world) {
  set_threads(static_cast<int>(options.threads > 0 ? options.threads : world.threads()));
  const parallel::Group all = parallel::all_ranks(world);
  const checkpoint::ModelDirectory directory(options.checkpoint);
  if (!options.tasks.files.empty())
    return evaluate_tasks(
        options.tasks,
        {.seq_len = options.seq_len, .batch = options.batch, .json = options.json, .device = options.device},
        directory,
        [&](Context& ctx) { return checkpoint::open_model(directory, {.dtype = options.dtype}, ctx); }, world);
  const config::Model& config = directory.model();
  // What a run says beside the model; a Hugging Face directory has none.
  const std::optional<config::Run> run = directory.run();
  train::EvalSettings settings{.seq_len = options.seq_len,
                               .batch = options.batch,
                               .max_tokens = options.max_tokens,
                               .begin_token = std::nullopt};
  if (settings.seq_len == 0 && run) settings.seq_len = run->train.seq_len;
  if (settings.seq_len == 0) {
    constexpr std::int64_t kSeqLen = 2048;
    settings.seq_len = std::min(kSeqLen, config.max_position_embeddings);
    log_info(fmt::format("--seq-len {}: the default for a directory that no run wrote", settings.seq_len));
  }
  if (settings.seq_len > config.max_position_embeddings)
    throw_input("--seq-len {}: the model has max_position_embeddings {}", settings.seq_len,
                config.max_position_embeddings);

  std::vector<config::DataEntry> entries;
  for (const std::string& path : options.data) entries.push_back({path, "data", std::nullopt});
  if (entries.empty() && run) entries = run->data.validation;
  if (entries.empty())
    throw_input("{}: {}; give --data", options.checkpoint,
                run ? "the run has no data.validation" : "a model directory says nothing of data");
  if (run && run->data.document_mask) {
    const config::Data data{.train = entries,
                            .validation = {},
                            .document_mask = true,
                            .eot_token = run->data.eot_token,
                            .begin_token = run->data.begin_token};
    settings.begin_token = train::find_begin_token(data, config.vocab_size);
  }
  const std::vector<train::Domain> domains = train::open_domains(entries, config.vocab_size, all);

  const parallel::DeviceChoice devices = parallel::take_device(options.device, world);
  parallel::log_devices(devices, world);
  Context ctx(devices.device);
  const auto model = checkpoint::open_model(directory, {.dtype = options.dtype}, ctx);
  model->plan(settings.batch, settings.seq_len, ctx);
  const train::EvalResult result = train::evaluate(*model, domains, settings, ctx, all);
  if (world.rank() != 0) return 0;
  const bool json_to_stdout = options.json == "-";
  print_table(result, *model, json_to_stdout ? stderr : stdout);
  const std::string text = to_text(to_json(result, *model));
  if (json_to_stdout) {
    fmt::print("{}", text);
  } else if (!options.json.empty()) {
    write_text_file(options.json, text);
  }
  return 0;
}

int run(const Options& options) {
  return parallel::run_ranks(static_cast<int>(options.nproc),
                             [&](parallel::World& world) { return run_rank(options, world); });
}

}  // namespace

const Command kEval = {
    "eval",
    "Loss, perplexity, bits per byte and expert balance of a checkpoint on token shards; or its "
    "score in tasks",
    with_options<Options, describe, run>};

}  // namespace switchyard::commands
