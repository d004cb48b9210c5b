#include <algorithm>
#include <csignal>
#include <filesystem>

#include "checkpoint/model_directory.h"
#include "checkpoint/run_state.h"
#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/options.h"
#include "commands/training_tasks.h"
#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/signal_thread.h"
#include "core/threads.h"
#include "machine/findings.h"
#include "machine/read.h"
#include "parallel/devices.h"
#include "parallel/launch.h"
#include "parallel/watch.h"
#include "router/router.h"
#include "tokenizer/tokenizer.h"
#include "train/memory_plan.h"
#include "train/ranks.h"
#include "train/run.h"
#include "train/token_data.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string config;
  std::vector<std::string> overrides;  // "a.b=c"
  std::string out;                     // empty: runs/<name of the config file>
  std::string resume;                  // empty: do not; "auto"; or a checkpoint or run directory
  std::string init_from;        // empty: random weights; or a model directory, checkpoint or run directory
  std::string upcycle_from;     // empty: not; or the same of a dense model
  bool strict = false;          // of init_from: the router must be theirs, too
  std::int64_t fit_router = 0;  // tokens; 0: what begins anew is random
  bool allow_new_data = false;  // resume although the data are not those of the checkpoint
  std::string device = "auto";  // auto, cpu, cuda
  std::int64_t nproc = 0;       // ranks to start; 0: those that mpirun has started, or one
};

void describe(CLI::App& app, Options& options) {
  app.add_option("CONFIG", options.config,
                 "The run: a JSON file (configs/ has ready ones, docs/configuration.md the keys)")
      ->required();
  app.add_option("--set", options.overrides, "Override one key of the configuration; may be repeated")
      ->type_name("a.b=value")
      ->take_all()
      ->expected(1);
  app.add_option("--out", options.out,
                 "Run directory for config.json, metrics.jsonl and checkpoints/ "
                 "(default: runs/<name of CONFIG>)")
      ->type_name("DIR");
  app.add_option("--resume", options.resume,
                 "'auto': go on from the newest checkpoint in the run directory, or start if there is none; "
                 "or a checkpoint or run directory to go on from")
      ->type_name("auto|DIR");
  app.add_flag("--allow-new-data", options.allow_new_data,
               "Resume although the shards are not those that the checkpoint was trained on");
  app.add_option(
         "--init-from", options.init_from,
         "Begin with the weights of a Hugging Face model directory, a checkpoint or a run; a CONFIG without "
         "'model' takes theirs. With --resume auto it holds only while there is no checkpoint yet. Where the "
         "run "
         "has another router, what that lacks begins anew, and is listed")
      ->type_name("DIR");
  app.add_option(
         "--upcycle-from", options.upcycle_from,
         "Begin with the weights of a dense model, of whose networks the experts become copies or slices "
         "(docs/upcycling.md). With --resume auto as --init-from")
      ->type_name("DIR");
  app.add_option(
         "--fit-router", options.fit_router,
         "Begin the router not at random, but fitted over so many tokens of data.train: with --init-from one "
         "of type "
         "lpr to the weights' linear gate; with --upcycle-from a linear gate to clusters of what it sees")
      ->type_name("TOKENS")
      ->transform(whole_number(1));
  app.add_flag("--strict", options.strict,
               "With --init-from: refuse weights of another router or number of experts a token, and data "
               "whose documents "
               "begin or end with other tokens");
  describe_device(app, options.device);
  describe_nproc(app, options.nproc);
  app.footer(
      "Examples:\n"
      "  switchyard train configs/qwen3_moe_cpu_small.json\n"
      "  switchyard train configs/qwen3_moe_cpu_small.json --set train.seed=7 --set train.lr=1e-3 --out "
      "runs/seed7\n"
      "  switchyard train configs/qwen3_moe_cpu_small.json --resume auto\n"
      "Ctrl-C finishes the step, saves a checkpoint and exits with code 130; --resume auto goes on from "
      "there.");
}

volatile std::sig_atomic_t stop_signal = 0;

// The first signal asks the loop to save and stop; a second one of the same kind ends the process as usual. Of
// SIGHUP there may be two at once, of a terminal that is closed and of its shell.
void request_stop(int signal) {
  stop_signal = signal;
  std::signal(signal, signal == SIGHUP ? SIG_IGN : SIG_DFL);
}

// The run whose checkpoint, checkpoints/ or directory a user has named: as the path has it, since
// RUN/checkpoints may be a link to another disk. `checkpoint`: what the path means.
fs::path run_directory_of(const std::string& named, const fs::path& checkpoint) {
  fs::path path = fs::absolute(named).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // RUN/
  const auto is_run_of_it = [&](const fs::path& run) {
    std::error_code absent;
    return fs::equivalent(checkpoint::checkpoints_directory(run), checkpoint.parent_path(), absent);
  };
  for (const fs::path& run : {path, path.parent_path(), path.parent_path().parent_path()})
    if (is_run_of_it(run)) return run;
  return checkpoint.parent_path().parent_path();
}

// Where --resume points, and the run directory that goes with it.
train::Resume find_resume(const Options& options, fs::path& out) {
  train::Resume resume{.wanted = !options.resume.empty(), .checkpoint = std::nullopt};
  if (!resume.wanted) return resume;
  if (options.resume == "auto") {
    resume.checkpoint = checkpoint::find_latest(out);
    if (!resume.checkpoint) log_info(out.string() + " has no checkpoint yet: starting from the beginning");
    return resume;
  }
  resume.named = true;
  resume.checkpoint = fs::canonical(checkpoint::resolve_checkpoint(options.resume));
  if (options.out.empty()) out = run_directory_of(options.resume, *resume.checkpoint);
  return resume;
}

// With --init-from, a configuration without `model` has the model of the weights, and one
// without model.vocab_size theirs; else that is the data's.
config::Run load_run(const Options& options) {
  const auto schemas = router::router_schemas();
  if (options.init_from.empty())
    return config::load_run(options.config, options.overrides, schemas, std::nullopt,
                            checkpoint::vocab_size_of);
  const fs::path config = fs::path(options.config);
  if (config::looks_like_run(read_text_file(config), options.config))
    return config::load_run(options.config, options.overrides, schemas, std::nullopt, [&](const auto&) {
      return checkpoint::ModelDirectory(options.init_from).model().vocab_size;
    });
  const checkpoint::ModelDirectory directory(options.init_from);
  std::optional<config::Router> router;
  if (directory.run()) router = directory.run()->router;
  return config::load_run(options.config, options.overrides, schemas, directory.config_json(), {}, router);
}

// What `generate` could not read would be found out when the training is paid for.
void check_tokenizers(const config::Data& data) {
  for (const fs::path& path : checkpoint::tokenizers_beside(data)) {
    try {
      tokenizer::load_hugging_face(path);
    } catch (const InputError& error) {
      throw_input(
          "{}. The trained model could not be asked with text: prepare the data with another tokenizer, or "
          "take "
          "this file away to train all the same",
          error.what());
    }
  }
}

// What ranks must agree on, which only the first one looks for: files change while they look.
struct Beginning {
  fs::path out;
  train::Resume resume;
};
Beginning find_beginning(const Options& options) {
  fs::path out =
      options.out.empty() ? fs::path("runs") / fs::path(options.config).stem() : fs::path(options.out);
  train::Resume resume = find_resume(options, out);
  const auto begin_with = [&](const char* option, const std::string& given,
                              std::optional<fs::path>& directory) {
    if (given.empty()) return;
    if (resume.checkpoint) {
      log_info(fmt::format("{} {} has no effect: the run goes on from its own checkpoint", option, given));
    } else {
      directory = given;
    }
  };
  begin_with("--init-from", options.init_from, resume.initial_weights);
  begin_with("--upcycle-from", options.upcycle_from, resume.dense_weights);
  resume.allow_new_data = options.allow_new_data;
  resume.strict = options.strict;
  resume.fit_tokens = options.fit_router;
  return {out, resume};
}

// The first rank's paths on all of them.
Beginning beginning_of_all(const Options& options, const parallel::Group& all) {
  Beginning found;
  if (all.place() == 0) found = find_beginning(options);
  const auto path_of_first = [&](const fs::path& mine) { return fs::path(all.text_of_first(mine.string())); };
  const auto optional_of_first = [&](const std::optional<fs::path>& mine) {
    const fs::path path = path_of_first(mine.value_or(""));
    return path.empty() ? std::nullopt : std::optional(path);
  };
  Beginning beginning{.out = path_of_first(found.out), .resume = {}};
  beginning.resume.wanted = !options.resume.empty();
  beginning.resume.named = found.resume.named;
  beginning.resume.checkpoint = optional_of_first(found.resume.checkpoint);
  beginning.resume.initial_weights = optional_of_first(found.resume.initial_weights);
  beginning.resume.dense_weights = optional_of_first(found.resume.dense_weights);
  beginning.resume.allow_new_data = options.allow_new_data;
  beginning.resume.strict = options.strict;
  beginning.resume.fit_tokens = options.fit_router;
  return beginning;
}

// Of what would make all of it slow, the first: `switchyard doctor` has the rest.
void warn_of_threads(const parallel::World& world) {
  const machine::CoreFacts cores = machine::read_cores();
  const bool forked = world.launcher == "--nproc", alone = world.size() == 1;
  const int usable = forked || alone ? static_cast<int>(cores.usable.size()) : world.cores * world.node_size;
  const std::vector<machine::Finding> findings = machine::thread_findings(
      cores, {.threads = thread_count(), .ranks = world.node_size, .cores = usable, .forked = forked});
  if (!findings.empty()) log_warning(machine::sentence_of(findings.front()));
}

// "auto" is one sequence at least.
void check_ranks(config::Run run, int size, Device device) {
  if (run.train.micro_batch_size == config::Train::kAutoMicroBatch) run.train.micro_batch_size = 1;
  train::check_ranks(run, size, device);
}

// Where it is "auto". A run that goes on keeps what it took, so that its steps are the same.
void choose_micro_batch(config::Run& run, const Beginning& beginning, parallel::World& world, Device device) {
  if (run.train.micro_batch_size != config::Train::kAutoMicroBatch) return;
  std::optional<std::int64_t> before;
  if (beginning.resume.checkpoint) {
    const fs::path& checkpoint = *beginning.resume.checkpoint;
    const Json stored =
        parse_stored_json(checkpoint::read_run_record(checkpoint).config_json, checkpoint.string());
    before = stored["train"]["micro_batch_size"].integer();
  }
  for (const std::string& line : train::choose_micro_batch(run, world, device, before))
    if (world.rank() == 0) log_info(line);
  train::check_ranks(run, world.size(), device);
}

constexpr int kStopSignals[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};

// `nohup` has SIGHUP ignored, and so it stays.
void stop_at(int signal) {
  if (signal == SIGHUP && std::signal(SIGHUP, SIG_IGN) == SIG_IGN) return;
  std::signal(signal, request_stop);
}

int run_rank(const Options& options, parallel::World& world) {
  const SignalThread signal_thread(kStopSignals);
  const parallel::Group all = parallel::all_ranks(world);
  mark("configuration");
  config::Run run = load_run(options);
  train::expect_same_everywhere(all, "the configuration", run.resolved_json,
                                "give all machines the same file and the same --set");
  parallel::set_patience(run.parallel.patience);
  if (world.size() > 1)
    train::expect_same_everywhere(all, "the program", std::to_string(crc32_of_file("/proc/self/exe")),
                                  "start the same build everywhere");
  const parallel::DeviceChoice devices = parallel::take_device(options.device, world);
  check_ranks(run, world.size(), devices.device);
  train::check_windows(run, devices);
  parallel::log_devices(devices, world);
  set_threads(static_cast<int>(run.parallel.threads > 0 ? run.parallel.threads : world.threads()));
  if (world.rank() == 0 && devices.device == Device::cpu) warn_of_threads(world);
  mark("which run it is");
  const Beginning beginning = beginning_of_all(options, all);
  choose_micro_batch(run, beginning, world, devices.device);
  if (world.rank() == 0) {
    train::warn_of_idle_ranks(run.train, world.size());
    train::advise_on_rows(run, devices);
    check_tokenizers(run.data);
  }
  train::TrainingRun training(run, beginning.out, beginning.resume, world, devices.device,
                              tasks_of_training(run, world.rank() == 0));

  for (const int signal : kStopSignals) stop_at(signal);
  const train::RunEnd end = training.run(stop_signal);
  const double own_signal = stop_signal;  // one rank alone may have got it
  const std::vector<double> signals = all.gather_numbers(std::span(&own_signal, 1));
  const int signal = static_cast<int>(*std::max_element(signals.begin(), signals.end()));
  if (end == train::RunEnd::finished) {
    if (world.rank() == 0) log_info("done: " + beginning.out.string());
    return 0;
  }
  if (world.rank() == 0) log_warning("stopped by a signal after saving; go on with --resume auto");
  return 128 + signal;
}

int run(const Options& options) {
  if (!options.init_from.empty() && !options.upcycle_from.empty())
    throw_input("--upcycle-from {}: not together with --init-from {}: a run begins with one model; remove one",
                options.upcycle_from, options.init_from);
  const bool upcycles = options.init_from.empty();
  const std::string& weights = upcycles ? options.upcycle_from : options.init_from;
  if (!weights.empty() && !options.resume.empty() && options.resume != "auto")
    throw_input("{} {}: not together with --resume {}: a run either begins with weights or goes on; remove one",
                upcycles ? "--upcycle-from" : "--init-from", weights, options.resume);
  if (options.strict && options.init_from.empty())
    throw_input("--strict: there are no weights to be strict with; add --init-from or remove it");
  if (options.fit_router > 0 && options.init_from.empty() && options.upcycle_from.empty())
    throw_input(
        "--fit-router: there are no weights to fit a router to; add --init-from or --upcycle-from, or remove "
        "it");
  if (options.allow_new_data && options.resume.empty())
    throw_input("--allow-new-data: a run that is not resumed has no data yet; add --resume or remove it");
  std::signal(SIGPIPE, SIG_IGN);  // what a run prints is the least of it (train/console.h)
  return parallel::run_ranks(static_cast<int>(options.nproc),
                             [&](parallel::World& world) { return run_rank(options, world); });
}

}  // namespace

const Command kTrain = {"train", "Train a model as a configuration says", with_options<Options, describe, run>};

}  // namespace switchyard::commands
