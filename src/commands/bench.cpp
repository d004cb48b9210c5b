#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "bench/measure.h"
#include "bench/report.h"
#include "checkpoint/model_directory.h"
#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/evaluation.h"
#include "commands/options.h"
#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/threads.h"
#include "ops/device.h"
#include "parallel/world.h"
#include "router/router.h"
#include "train/memory_plan.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string path;
  std::vector<std::string> overrides;                                         // "a.b=c"
  std::int64_t batch = 8, prompt = 0, new_tokens = 0, rounds = 5, steps = 1;  // 0: by the model
  bool training = false, no_training = false;                                 // neither: where a run is there
  std::string compare;                                                        // empty; "static"
  std::int64_t static_k = 0;                                                  // 0: max_experts
  std::int64_t threads = 0;                                                   // 0: the run's, or one a core
  std::string json;  // empty: none; "-": standard output
  std::string device = "auto";
  std::string dtype;
};

void describe(CLI::App& app, Options& options) {
  app.add_option("CONFIG|MODEL", options.path,
                 "A configuration of a run or a config.json, whose weights are random; or a checkpoint, run or "
                 "Hugging Face model directory")
      ->required();
  app.add_option("--set", options.overrides, "Override one key of the configuration; may be repeated")
      ->type_name("a.b=value")
      ->take_all()
      ->expected(1);
  const auto size = [&](const char* name, std::int64_t& value, const std::string& help) {
    return app.add_option(name, value, help)->type_name("N")->transform(whole_number(1, "", config::kMaxSize));
  };
  size("--batch", options.batch, "Sequences that are read and generated at once, beside one alone")
      ->capture_default_str();
  size("--prompt", options.prompt, "Tokens of a prompt (default: 512, or what the model has room for)");
  size("--new-tokens", options.new_tokens, "Tokens behind it, one by one (default: 64, likewise)");
  size("--rounds", options.rounds, "How often each is measured")->capture_default_str();
  size("--steps", options.steps, "Optimizer steps of a round")->capture_default_str();
  CLI::Option* const training =
      app.add_flag("--training", options.training, "Measure training of a model that no run is known of, too");
  app.add_flag("--no-training", options.no_training, "Measure no training of a run or its configuration")
      ->excludes(training);
  app.add_option(
         "--compare", options.compare,
         "static: in turns with the same model whose every token goes to the same number of experts, so "
         "that saved FLOPs stand beside saved time; for top_p, dynamic_k and expert_threshold")
      ->check(CLI::IsMember({"static"}));
  size("--static-k", options.static_k, "That number (default: router.max_experts)");
  describe_threads(app, options.threads);
  app.add_option("--json", options.json, "Write the result as JSON to a file, or to standard output with -")
      ->type_name("FILE|-");
  describe_device(app, options.device);
  app.add_option("--dtype", options.dtype,
                 "What to compute in (default: training in train.dtype, all else as generate does: on a CUDA "
                 "device in train.dtype, else in float32)")
      ->type_name("DTYPE")
      ->transform(type_name({"float32", "bfloat16"}));
  app.footer(
      "Tokens are random, no data are needed, and nothing is written but --json. products and copies are the "
      "shares of what this machine does at most of the one and of the other; roofline is the share that the "
      "operators' least times have in the time that was taken.\n"
      "Examples:\n"
      "  switchyard bench configs/quickstart.json\n"
      "  switchyard bench path/to/hf_model --batch 16 --json bench.json\n"
      "  switchyard bench configs/quickstart.json --set router.type=top_p --compare static");
}

// What a configuration of a run says where there is none: of a model alone.
std::string run_of_model(const std::string& config_json, const std::string& origin, std::int64_t positions) {
  constexpr std::int64_t kSeqLen = 512, kBatch = 4;
  const Json model = parse_stored_json(config_json, origin);
  Json run(Json::Object{{"data", Json::Object{{"train", Json::Array{"random tokens"}}}},
                        {"train", Json::Object{{"steps", 1},
                                               {"seq_len", std::min(kSeqLen, positions)},
                                               {"micro_batch_size", kBatch},
                                               {"global_batch_size", kBatch}}}});
  if (const Json& router = model["router"]; router.is_object()) run["router"] = router;
  return to_line(run);
}

// Of a directory the model is what its weights are of.
void refuse_other_models(const Options& options) {
  for (const std::string& override_text : options.overrides)
    if (override_text.starts_with("model."))
      throw_input(
          "--set {}: the model of {} is what its weights are of; give a configuration to measure another",
          override_text, options.path);
}

struct Found {
  std::optional<checkpoint::ModelDirectory> directory;
  bench::Subject subject;
};

void find_subject(const Options& options, Found& found) {
  const auto schemas = router::router_schemas();
  const auto parse = [&](const std::string& text, const std::string& origin,
                         const std::optional<std::string>& model) {
    return config::parse_run(text, origin, options.overrides, schemas, model, checkpoint::vocab_size_of);
  };
  bool is_run = true;
  config::Run& run = found.subject.run;
  if (std::error_code error; fs::is_directory(options.path, error)) {
    refuse_other_models(options);
    const checkpoint::ModelDirectory& directory = found.directory.emplace(options.path);
    found.subject.directory = &directory;
    is_run = directory.checkpoint().has_value();
    const std::string origin = (directory.path() / (is_run ? "run.json" : "config.json")).string();
    run = is_run
              ? parse(directory.checkpoint()->run_config_json(), origin, std::nullopt)
              : parse(run_of_model(directory.config_json(), origin, directory.model().max_position_embeddings),
                      origin, config::model_to_hf_json(directory.model()));
  } else if (fs::exists(options.path, error)) {
    const std::string text = read_text_file(options.path);
    is_run = config::looks_like_run(text, options.path);
    if (is_run) {
      run = parse(text, options.path, std::nullopt);
    } else {
      const config::Model model = config::parse_model(text, options.path);
      run = parse(run_of_model(text, options.path, model.max_position_embeddings), options.path,
                  config::model_to_hf_json(model));
    }
  } else {
    throw_input(
        "{}: no such file or directory; give a configuration (configs/ has some), a checkpoint, a run or a "
        "Hugging Face model directory",
        options.path);
  }
  found.subject.name = options.path;
  found.subject.trains = options.training || (is_run && !options.no_training);
  found.subject.why_not_trained =
      is_run ? "--no-training"
             : "a model alone says nothing of training; --training measures it with train.* of --set";
}

// One process, whatever the run has.
void be_alone(config::Run& run) {
  config::Parallel alone;
  alone.threads = run.parallel.threads;
  if (run.parallel.expert > 1 || run.parallel.ranks > 1)
    log_info(fmt::format("one process is measured: parallel.expert ({}) and parallel.ranks ({}) have no effect",
                         run.parallel.expert, run.parallel.ranks));
  if (run.data.document_mask)
    log_info("random tokens have no documents: attention is measured without data.document_mask");
  run.parallel = alone;
}

config::ComputeType inference_type(const Options& options, const config::Run& run, Device device) {
  if (options.dtype == "bfloat16") return config::ComputeType::bfloat16;
  const bool as_trained = options.dtype.empty() && device == Device::cuda;
  return as_trained && run.train.dtype != config::ComputeType::float32 ? config::ComputeType::bfloat16
                                                                       : config::ComputeType::float32;
}

std::int64_t static_k_of(const Options& options, const config::Run& run) {
  if (options.compare.empty()) {
    if (options.static_k > 0) throw_input("--static-k: is of --compare static; add that or remove it");
    return 0;
  }
  if (std::none_of(run.model.layers.begin(), run.model.layers.end(),
                   [](const auto& layer) { return layer.moe; }))
    throw_input("--compare static: the model has no layer with experts; there is nothing to compare");
  if (!bench::has_dynamic_number(run.router)) {
    std::vector<std::string> dynamic;
    for (const config::RouterSchema& schema : router::router_schemas())
      if (bench::has_dynamic_number(config::default_of(schema, run.model)))
        dynamic.push_back(std::string(schema.type));
    throw_input(
        "--compare static: router.type is \"{}\", which sends every token to {} experts: it is static already; "
        "compare one of {} (--set router.type=...), or leave the option out",
        run.router.type, run.model.num_experts_per_tok, fmt::join(dynamic, ", "));
  }
  const std::int64_t k = options.static_k > 0 ? options.static_k : run.router.own.integer("max_experts");
  if (k > run.model.num_experts)
    throw_input("--static-k: is {}, more than the model has experts ({})", k, run.model.num_experts);
  return k;
}

// Where nothing is said, as much as the model has room for.
bench::Settings settings_of(const Options& options, const config::Run& run) {
  constexpr std::int64_t kPrompt = 512, kNewTokens = 64;
  const std::int64_t positions = run.model.max_position_embeddings;
  bench::Settings settings{.batch = options.batch,
                           .rounds = options.rounds,
                           .steps = options.steps,
                           .static_k = static_k_of(options, run)};
  settings.new_tokens = options.new_tokens > 0
                            ? options.new_tokens
                            : std::clamp<std::int64_t>((positions - options.prompt) / 4, 1, kNewTokens);
  settings.prompt = options.prompt > 0 ? options.prompt
                                       : std::clamp<std::int64_t>(positions - settings.new_tokens, 1, kPrompt);
  if (settings.prompt + settings.new_tokens > positions)
    throw_input("--prompt {} and --new-tokens {}: the model has max_position_embeddings {}; lower one of them",
                settings.prompt, settings.new_tokens, positions);
  return settings;
}

int run(const Options& options) {
  Found found;
  find_subject(options, found);
  config::Run& run = found.subject.run;
  be_alone(run);
  set_threads(static_cast<int>(options.threads > 0 ? options.threads : run.parallel.threads));
  const bench::Settings settings = settings_of(options, run);
  const Device device = ops::choose_device(options.device);
  if (!options.dtype.empty())
    run.train.dtype =
        options.dtype == "bfloat16" ? config::ComputeType::bfloat16 : config::ComputeType::float32;
  parallel::World alone = parallel::make_lone_world();
  for (const std::string& line : train::choose_micro_batch(run, alone, device, std::nullopt)) log_info(line);
  found.subject.inference_type = inference_type(options, run, device);
  const bench::Report report = bench::measure(found.subject, settings, device);

  for (const std::string& line : bench::lines_of(report, found.subject, settings, device))
    fmt::print(text_output(options.json), "{}\n", line);
  write_json(options.json, bench::json_of(report, found.subject, settings, device));
  if (std::fflush(stdout) != 0) throw_input("standard output cannot be written");
  return 0;
}

}  // namespace

const Command kBench = {"bench", "Speed and memory of training, prompts and generating",
                        with_options<Options, describe, run>};

}  // namespace switchyard::commands
