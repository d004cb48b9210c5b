#include <csignal>
#include <filesystem>

#include "checkpoint/model_directory.h"
#include "checkpoint/tokenizer_record.h"
#include "commands.h"
#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/threads.h"
#include "ops/device.h"
#include "parallel/communicator.h"
#include "router/registry.h"
#include "tokenizer/tokenizer.h"
#include "train/token_data.h"
#include "train/trainer.h"

namespace switchyard {

namespace {

namespace fs = std::filesystem;

volatile std::sig_atomic_t stop_signal = 0;

// The first signal asks the loop to save and stop; a second one of the same kind ends the process as usual.
void request_stop(int signal) {
  stop_signal = signal;
  std::signal(signal, SIG_DFL);
}

// Where --resume points, and the run directory that goes with it.
train::Resume find_resume(const TrainOptions& options, fs::path& out) {
  train::Resume resume{.wanted = !options.resume.empty(), .checkpoint = std::nullopt};
  if (!resume.wanted) return resume;
  if (options.resume == "auto") {
    resume.checkpoint = checkpoint::find_latest(out);
    if (!resume.checkpoint) log_info(out.string() + " has no checkpoint yet: starting from the beginning");
    return resume;
  }
  resume.checkpoint = fs::canonical(checkpoint::resolve_checkpoint(options.resume));
  if (options.out.empty()) out = resume.checkpoint->parent_path().parent_path();
  return resume;
}

// With --init-from, a configuration without `model` has the model of the weights, and one
// without model.vocab_size theirs; else that is the data's.
config::Run load_run(const TrainOptions& options) {
  const auto schemas = router::router_schemas();
  if (options.init_from.empty())
    return config::load_run(options.config, options.overrides, schemas, std::nullopt,
                            checkpoint::vocab_size_of);
  const fs::path config = fs::path(options.config);
  if (config::looks_like_run(read_text_file(config), options.config))
    return config::load_run(options.config, options.overrides, schemas, std::nullopt, [&](const auto&) {
      return checkpoint::ModelDirectory(options.init_from).model().vocab_size;
    });
  return config::load_run(options.config, options.overrides, schemas,
                          checkpoint::ModelDirectory(options.init_from).config_json());
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

}  // namespace

int run_train(const TrainOptions& options) {
  if (!options.init_from.empty() && !options.resume.empty() && options.resume != "auto")
    throw_input(
        "--init-from {}: not together with --resume {}: a run either begins with weights or goes on; "
        "remove one",
        options.init_from, options.resume);
  if (options.allow_new_data && options.resume.empty())
    throw_input("--allow-new-data: a run that is not resumed has no data yet; add --resume or remove it");
  const config::Run run = load_run(options);
  check_tokenizers(run.data);
  set_threads(static_cast<int>(run.parallel.threads));
  fs::path out =
      options.out.empty() ? fs::path("runs") / fs::path(options.config).stem() : fs::path(options.out);
  train::Resume resume = find_resume(options, out);
  if (!options.init_from.empty()) {
    if (resume.checkpoint) {
      log_info("--init-from " + options.init_from + " has no effect: the run goes on from its own checkpoint");
    } else {
      resume.initial_weights = options.init_from;
    }
  }
  resume.allow_new_data = options.allow_new_data;
  const auto communicator = parallel::make_single_process();
  train::Trainer trainer(run, out, resume, *communicator, ops::choose_device(options.device));

  std::signal(SIGINT, request_stop);
  std::signal(SIGTERM, request_stop);
  if (trainer.run(stop_signal) == train::RunEnd::finished) {
    log_info("done: " + out.string());
    return 0;
  }
  log_warning("stopped by a signal after saving; go on with --resume auto");
  return 128 + stop_signal;
}

}  // namespace switchyard
