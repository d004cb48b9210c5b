#include "train/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "checkpoint/model_directory.h"
#include "checkpoint/shared_directory.h"
#include "checkpoint/upcycling.h"
#include "config/names.h"
#include "core/file.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/threads.h"
#include "ops/device.h"
#include "parallel/agreement.h"
#include "parallel/watch.h"
#include "train/evaluator.h"
#include "train/optimizer.h"
#include "train/resume_checks.h"
#include "train/router_fit.h"
#include "train/spike.h"

namespace switchyard::train {

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Products' FLOP/s (profile_report.h), measured once a process. 0 on a device, where nothing is measured.
double product_rate_of(Context& ctx) {
  if (ctx.device != Device::cpu) return 0;
  static std::mutex mutex;
  static std::map<std::pair<MatmulType, int>, double> measured;
  const std::lock_guard lock(mutex);
  const auto [at, is_new] = measured.try_emplace({ctx.matmul, thread_count()});
  if (is_new) at->second = measure_product_rate(ctx);
  return at->second;
}

constexpr double kManyEpochs = 4;  // what repeated data are worth: Muennighoff et al., arXiv 2305.16264

}  // namespace

TrainingRun::TrainingRun(const config::Run& run, const std::filesystem::path& out, const Resume& resume,
                         parallel::World& world, Device device, AskTasks ask_tasks)
    : run_(run),
      out_(out),
      world_(world),
      ask_tasks_(std::move(ask_tasks)),
      all_(parallel::all_ranks(world)),
      data_(run, all_),
      step_(run_, data_, world, device,
            [&](const model::Transformer& model, const MemoryPlan& plan, const Available& available) {
              if (is_first()) describe_memory(model, plan, available, device);
            }),
      flop_counter_(step_.model()),
      load_average_(step_.model().routing().n_layers(), std::max<std::int64_t>(1, run.model.num_experts)),
      data_fingerprint_(data_fingerprint(data_.train, data_.validation, run_.data)) {
  begin(resume);
  if (device != Device::cpu) {
    step_.rehearse(is_evaluated());  // what does not fit is refused before anything is written
    world.transport->forget_counts();
  }
  mark("run directory");
  parallel::by_first(all_, [&] {
    outputs_.emplace(out, run_, existing_run(resume), state_.step);
    return "";
  });
  checkpoint::check_shared_directory(out_, all_);
  product_rate_ = product_rate_of(step_.context());
  all_.sum_numbers(std::span(&product_rate_, 1));
  parallel::set_checkpoint_note(last_checkpoint_note());
  if (is_first()) describe(resume);
  if (run_.log.profile && state_.step < run_.train.steps) begin_profile();
}

ExistingRun TrainingRun::existing_run(const Resume& resume) const {
  if (!resume.wanted) return ExistingRun::refuse;
  const std::optional<std::int64_t> first_logged = MetricsLog::first_step(out_ / "metrics.jsonl");
  if (!resume.checkpoint) {  // it ended before its first checkpoint
    if (first_logged.value_or(1) > 1)
      throw_input(
          "{}: has no checkpoint, and its log begins with step {}: the run went on from another run's "
          "checkpoint; "
          "give that to --resume again, or choose another --out",
          out_.string(), *first_logged);
    return ExistingRun::go_on;
  }
  if (resume.named) {
    const std::filesystem::path named = checkpoint::resolve_checkpoint(*resume.checkpoint);
    std::error_code absent;
    const bool is_own =
        std::filesystem::equivalent(checkpoint::checkpoint_path(out_, state_.step), named, absent);
    // Begun in this directory by the same command, which ended before its first checkpoint.
    const bool is_same = !is_own && checkpoint::checkpoint_steps(out_).empty() &&
                         std::filesystem::exists(out_ / "config.json") &&
                         read_text_file(out_ / "config.json") == run_.resolved_json &&
                         first_logged.value_or(state_.step + 1) == state_.step + 1;
    if (!is_own) return is_same ? ExistingRun::go_on : ExistingRun::refuse;
  }
  if (state_.step >= run_.train.steps) return ExistingRun::leave;
  return resume.named ? ExistingRun::go_back : ExistingRun::go_on;
}

// Of all ranks: steps are recorded on all of them or on none.
void TrainingRun::begin_profile() {
  rates_ = measure_rates(step_.context());
  profile_.emplace(step_.context());
  step_.context().profile = &*profile_;
}

void TrainingRun::report_profile() {
  step_.context().profile = nullptr;
  if (!is_first()) return;
  const Device device = step_.context().device;
  for (const std::string& line : table_of(*profile_, rates_, device, world_.size()))
    outputs_->console().line(line);
  write_text_file(outputs_->directory() / "profile.json",
                  to_text(json_of(*profile_, rates_, device, world_.size())));
}

void TrainingRun::begin(const Resume& resume) {
  model::Transformer& model = step_.model();
  state_.seed = run_.train.seed;
  if (!resume.checkpoint) {
    mark("initial weights");
    model.parameters().initialise(run_.train.seed);
    if (resume.initial_weights) {
      const checkpoint::ModelDirectory directory(*resume.initial_weights, all_);
      directory.check_model(run_.model);
      std::optional<std::vector<std::string>> strict;
      if (resume.strict) strict = differences_of_tokens(run_.data, directory.path());
      directory.load_weights(run_.model, run_.router, run_.train.seed, strict, model.parameters());
      if (resume.fit_tokens > 0) fit_router(directory, resume.fit_tokens);
      if (is_first()) {
        log_info(fmt::format("begins with the weights of {}", directory.path().string()));
        warn_of_other_tokens(run_.data, directory.path());
      }
    }
    if (resume.dense_weights) {
      const auto upcycled = checkpoint::upcycle(*resume.dense_weights, run_.model, model.parameters(), all_);
      if (is_first()) {
        log_info(fmt::format("begins with the weights of {}: {}", upcycled.directory.string(), upcycled.how));
        warn_of_other_tokens(run_.data, upcycled.directory);
      }
      if (resume.fit_tokens > 0) cluster_router(*resume.dense_weights, resume.fit_tokens);
    }
    model.round_weights(step_.context());
    return;
  }
  const checkpoint::Checkpoint checkpoint(*resume.checkpoint, all_);
  checkpoint.check_resumable(run_);
  check_router(run_, checkpoint);
  check_data(checkpoint, data_fingerprint_, resume.allow_new_data);
  check_meanings(run_, checkpoint, model.parameters().rows());
  try {
    load(checkpoint);
  } catch (const InputError&) {
    // Its files are whole (the manifest says so): what does not fit is what another router keeps.
    const std::string differences = router_differences(run_, checkpoint);
    if (differences.empty()) throw;
    throw_input("{}: cannot be resumed with this configuration: {}; use the checkpoint's or start a new run",
                checkpoint.path().string(), differences);
  }
  if (is_first()) warn_of_changes(run_, checkpoint);
}

// Its gate, and what it sees, are the directory's.
void TrainingRun::fit_router(const checkpoint::ModelDirectory& directory, std::int64_t tokens) {
  const std::string own_type = directory.router().type;
  if (run_.router.type != "lpr" || run_.router.own.word("similarity") != "cosine")
    throw_input(
        "--fit-router: router.type is \"{}\"; only \"lpr\" of similarity \"cosine\" is fitted to a gate; "
        "set them, or remove it",
        run_.router.type);
  if (!run_.router.own.boolean("prototype_routing"))
    throw_input(
        "--fit-router: router.prototype_routing is false, so that no prototype chooses; set it to true");
  if (own_type == "lpr" || own_type == "kmeans")
    throw_input("--fit-router: {} has a router of type \"{}\", which has no linear gate to fit to; remove it",
                directory.path().string(), own_type);
  Context ctx(step_.context().device);
  const auto own = checkpoint::open_model(directory, {.dtype = "float32"}, ctx);
  const std::int64_t read =
      fit_to_gates(*own, data_.train, fit_settings(tokens), step_.model().parameters(), ctx);
  log_info(
      fmt::format("router lpr: encoder.weight, encoder.bias and expert_keys fitted to the gates on {} tokens{}",
                  read, run_.router.own.boolean("prototype_addend") ? ", out_proj.weight set to 0" : ""));
}

// What the routers see is the dense model's: with random gates, experts that are copies give the same.
void TrainingRun::cluster_router(const std::filesystem::path& dense, std::int64_t tokens) {
  if (run_.router.type == "lpr" || run_.router.type == "kmeans")
    throw_input(
        "--fit-router: a router of type \"{}\" has no linear gate that could begin with clusters; remove it",
        run_.router.type);
  Context ctx(step_.context().device);
  config::Model config = run_.model;
  config.num_nextn_predict_layers = 0;
  model::Transformer own(config, run_.router, DType::f32, false);
  own.allocate(ctx.device);
  own.parameters().initialise(run_.train.seed);
  const checkpoint::Upcycled upcycled = checkpoint::upcycle(dense, config, own.parameters(), all_);
  own.round_weights(ctx);
  const std::int64_t read =
      cluster_gates(own, data_.train, fit_settings(tokens), upcycled.n, step_.model().parameters(), ctx);
  if (is_first())
    log_info(fmt::format("router {}: gates set to {} clusters a layer of what they see of {} tokens",
                         run_.router.type, config.num_experts / upcycled.n, read));
}

CalibrationSettings TrainingRun::fit_settings(std::int64_t tokens) const {
  return {.seq_len = run_.train.seq_len,
          .batch = run_.train.micro_batch_size,
          .tokens = tokens,
          .begin_token = data_.begin_token};
}

void TrainingRun::load(const checkpoint::Checkpoint& checkpoint) {
  ParameterStore& parameters = step_.model().parameters();
  checkpoint.load_weights(parameters);
  checkpoint.load_state(parameters,
                        std::vector<checkpoint::NamedTensor>{{"balance.load_average", load_average_.state()}});
  step_.model().round_weights(step_.context());
  state_ = checkpoint.state();
}

// Before any of it is taken.
void TrainingRun::describe_memory(const model::Transformer& model, const MemoryPlan& plan,
                                  const Available& available, Device device) const {
  // Of several ranks, each with its own device, it has been said already (parallel/devices.h).
  if (device != Device::cpu && world_.size() == 1) log_info("computes on " + ops::describe_device(device));
  const std::string ranks = world_.size() > 1
                                ? fmt::format("{} ranks of {} thread{}; memory of a rank", world_.size(),
                                              thread_count(), thread_count() == 1 ? "" : "s")
                                : fmt::format("{} threads; memory", thread_count());
  log_info(fmt::format(
      "{:.1f}M parameters; {} as planned{}:", static_cast<double>(model.parameters().count()) * 1e-6, ranks,
      available.bytes ? fmt::format(", of {:.1f} MiB free on {}",
                                    static_cast<double>(*available.bytes) / (1 << 20), available.where)
                      : ""));
  for (const std::string& line : table_of(plan, device)) log_info(line);
}

void TrainingRun::describe(const Resume& resume) const {
  if (step_.context().device != Device::cpu)
    log_info(fmt::format("workspace, as measured: {:.1f} MiB",
                         static_cast<double>(step_.memory().workspace) / (1 << 20)));
  if (product_rate_ > 0)
    log_info(fmt::format("this machine multiplies matrices in {} at {:.0f} GFLOP/s", name_of(run_.train.dtype),
                         product_rate_ * 1e-9));
  describe_data();
  if (resume.checkpoint)
    log_info(fmt::format("resumed from {} after step {}", resume.checkpoint->string(), state_.step));
}

void TrainingRun::describe_data() const {
  const auto samples = static_cast<std::uint64_t>(run_.train.steps * run_.train.global_batch_size);
  std::string repeated;
  for (std::size_t d = 0; d < data_.train.size(); ++d) {
    const Domain& domain = data_.train[d];
    const double epochs = epochs_of(samples, d);
    log_info(fmt::format("data: domain {}: {} tokens in {} shard{}; the run reads them {:.3g} times",
                         domain.name, domain.stream.size(), domain.stream.shards().size(),
                         domain.stream.shards().size() == 1 ? "" : "s", epochs));
    if (epochs > kManyEpochs)
      repeated += fmt::format("{}{} {:.3g} times", repeated.empty() ? "" : ", ", domain.name, epochs);
  }
  if (!repeated.empty())
    log_warning(
        fmt::format("the data repeat: domain {}; beyond {} times a model learns little more from them; "
                    "add data or lower train.steps",
                    repeated, kManyEpochs));
}

// How often so many samples of the run show the whole of a domain.
double TrainingRun::epochs_of(std::uint64_t samples, std::size_t domain) const {
  const double share = static_cast<double>(data_.sampler.samples_per_block()[domain]) /
                       static_cast<double>(data::Sampler::kMixBlock);
  const auto windows = (data_.train[domain].stream.size() - 1) / run_.train.seq_len;
  return static_cast<double>(samples) * share / static_cast<double>(windows);
}

double TrainingRun::most_epochs() const {
  double most = 0;
  for (std::size_t d = 0; d < data_.train.size(); ++d) most = std::max(most, epochs_of(state_.samples, d));
  return most;
}

StepResult TrainingRun::step(std::string& spike) {
  StepResult result = step_.compute(state_.step, state_.samples);
  spike = reason_to_leave_out(result);
  if (spike.empty()) {
    step_.update(learning_rate(run_.train, state_.step + 1), state_.updates + 1);
    load_average_.update(result.load);
    learned(run_.train.spike, state_.spikes, result.loss, result.grad_norm);
    state_.updates += 1;
  } else {
    left_out(state_.spikes);
  }
  state_.step += 1;
  state_.tokens += run_.train.global_batch_size * run_.train.seq_len;
  state_.samples += static_cast<std::uint64_t>(run_.train.global_batch_size);
  return result;
}

// Before the optimizer and the routers learn from a step. A loss that is not finite ends the run where the run
// is too young to tell a bad batch from bad weights, or where the weights themselves are not finite and there
// is nothing to go back to.
std::string TrainingRun::reason_to_leave_out(const StepResult& result) const {
  const double loss = result.loss + result.mtp_loss;
  const bool finite = std::isfinite(loss) && std::isfinite(result.grad_norm);
  if (!finite && (!detects_spikes() || state_.spikes.losses.size() < kLeastHistory ||
                  (!step_.weights_are_finite() && !find_latest()))) {
    if (!std::isfinite(loss)) stop_for("loss", step_.cause_of_loss());
    stop_for("gradient", step_.cause_of_gradient());
  }
  if (!detects_spikes()) return "";
  return spike_reason(run_.train.spike, state_.spikes, std::isfinite(loss) ? result.loss : loss,
                      result.grad_norm);
}

void TrainingRun::stop_for(const char* what, const std::string& tensor) const {
  throw_run(
      "step {}: the {} is not finite; the first such tensor: {}; {}; lower train.lr or raise "
      "train.warmup_ratio",
      state_.step + 1, what, tensor, last_checkpoint_note());
}

std::optional<std::filesystem::path> TrainingRun::find_latest() const {
  const auto mine = is_first() ? checkpoint::find_latest(out_) : std::nullopt;
  const std::string path = all_.text_of_first(mine ? mine->string() : "");
  return path.empty() ? std::nullopt : std::optional<std::filesystem::path>(path);
}

std::string TrainingRun::last_checkpoint_note() const {
  const auto latest = find_latest();
  return latest ? "the last checkpoint is " + latest->string() : "no checkpoint had been written yet";
}

std::filesystem::path TrainingRun::good_checkpoint(const std::string& spike) const {
  constexpr std::int64_t kMostTimesBack = 3;
  std::vector<std::int64_t> good;  // ascending
  for (const std::int64_t step : checkpoint::checkpoint_steps(out_))
    if (step <= state_.step &&
        checkpoint::read_run_state(checkpoint::checkpoint_path(out_, step)).spikes.skipped_in_row == 0)
      good.push_back(step);
  if (good.empty() || times_back_ == kMostTimesBack)
    throw_run(
        "step {}: {} steps in a row were left out (train.spike), of the last one {}; {}; lower train.lr, raise "
        "train.warmup_ratio, or look at the data",
        state_.step, state_.spikes.skipped_in_row, spike,
        good.empty() ? "there is no checkpoint to go back to"
                     : fmt::format("going back {} times has not helped, the last time to {}", times_back_,
                                   checkpoint::checkpoint_path(out_, back_to_).string()));
  // Each time in a row one checkpoint farther: the newest may have been on its way already.
  std::int64_t target = good.back();
  if (times_back_ > 0) {
    const auto farther = std::lower_bound(good.begin(), good.end(), back_to_);
    target = farther == good.begin() ? good.front() : *std::prev(farther);
  }
  return checkpoint::checkpoint_path(out_, target);
}

void TrainingRun::go_back(const std::string& spike) {
  const std::filesystem::path target =
      all_.text_of_first(is_first() ? good_checkpoint(spike).string() : std::string());
  const checkpoint::RunState before = state_;
  load(checkpoint::Checkpoint(target, all_));
  back_to_ = state_.step;
  state_.samples = before.samples;
  state_.train_seconds = before.train_seconds;
  state_.spikes.skipped = before.spikes.skipped;
  state_.spikes.rollbacks = before.spikes.rollbacks + 1;
  ++times_back_;
  // What was to be saved is no longer there. Until the run is past the place where it failed, its checkpoints
  // are no sign that going back has helped.
  save_is_due_ = false;
  last_save_ = Clock::now();
  back_from_ = std::max(back_from_, before.step);
  if (is_first())
    log_warning(
        fmt::format("step {}: {} steps in a row were left out, of the last one {}: going back to {}, with the "
                    "data after sample {}",
                    before.step, before.spikes.skipped_in_row, spike, target.string(), before.samples));
  parallel::by_first(all_, [&] {
    outputs_->go_back(state_.step);
    return "";
  });
  parallel::set_checkpoint_note(last_checkpoint_note());
}

// Of steps by number alone, not of saves by the clock or by a signal: the run that goes on from a checkpoint is
// the one that was never saved there.
void TrainingRun::settle_if_due() {
  if (due(run_.train.eval_every) || due(run_.checkpoint.every))
    step_.settle_routers(state_.step, state_.samples);
}

std::optional<EvalResult> TrainingRun::evaluate_if_due() {
  if (data_.validation.empty() || !due(run_.train.eval_every)) return std::nullopt;
  const EvalSettings settings{.seq_len = run_.train.seq_len,
                              .batch = run_.train.micro_batch_size,
                              .max_tokens = run_.train.eval_tokens,
                              .begin_token = data_.begin_token,
                              .share_of_domain = run_.train.eval_mix == config::EvalMix::training
                                                     ? data_.training_shares()
                                                     : std::vector<double>{}};
  const AsEvaluated as_evaluated(step_.context());
  try {
    const EvalResult result = evaluate(step_.model(), data_.validation, settings, step_.context(), all_);
    step_.count_windows();
    return result;
  } catch (const DivergedError& error) {
    if (!detects_spikes() || state_.step == run_.train.steps || !find_latest()) throw;
    if (is_first()) {
      outputs_->console().clear_bar();
      log_warning(fmt::format("step {} is not evaluated: {}", state_.step, error.what()));
    }
    return std::nullopt;
  }
}

std::vector<TaskScore> TrainingRun::ask_tasks_if_due() {
  if (!ask_tasks_ || !due(run_.train.eval_every)) return {};
  model::Transformer& model = step_.model();
  Context& ctx = step_.context();
  const AsEvaluated as_evaluated(ctx);
  const auto forward = [&](const model::Batch& batch) {
    in_rounds(model, batch.n_seq * batch.seq_len, all_, ctx, [&] { model.forward(batch, ctx); });
  };
  const std::vector<TaskScore> scores = ask_tasks_(model, ctx, all_, forward);
  step_.count_windows();
  return scores;
}

void TrainingRun::save_if_due(const EvalResult* validation, bool stopped) {
  save_is_due_ = save_is_due_ || due(run_.checkpoint.every);
  // Amid steps that are left out a checkpoint would hold no newer weights, and take the place of one that the
  // run may have to go back to.
  const bool is_good = state_.spikes.skipped_in_row == 0;
  if (!(save_is_due_ && is_good) && !stopped && state_.step != run_.train.steps) return;
  save_is_due_ = false;
  if (is_first()) {
    outputs_->console().clear_bar();
    outputs_->sync();  // so that the lines up to a checkpoint are on the disk when it is
  }
  state_.val_loss = validation ? std::optional(validation->loss) : std::nullopt;
  checkpoint::save_checkpoint(
      out_, step_.model().parameters(), state_, run_,
      std::vector<checkpoint::NamedTensor>{{"balance.load_average", load_average_.state()}}, data_fingerprint_,
      all_);
  if (is_first()) {
    const std::string saved = checkpoint::checkpoint_path(out_, state_.step).string();
    outputs_->console().line("saved " + saved + (run_.checkpoint.verify ? "" : ", not read back"));
    parallel::set_checkpoint_note("the last checkpoint is " + saved);
  }
  parallel::by_first(all_, [&] {
    checkpoint::prune_checkpoints(out_, run_.checkpoint);
    return "";
  });
  if (is_good && state_.step > back_from_) times_back_ = 0;
  last_save_ = Clock::now();
}

double TrainingRun::seconds_left() const {
  return seconds_since(start_) / static_cast<double>(state_.step - first_step_) *
         static_cast<double>(run_.train.steps - state_.step);
}

void TrainingRun::warn_of_steps_left_out() const {
  const checkpoint::SpikeHistory& spikes = state_.spikes;
  if (spikes.skipped_in_row > 0)
    log_warning(
        fmt::format("the run ends amid {} steps in a row that were left out: its weights are those of step {}",
                    spikes.skipped_in_row, state_.step - spikes.skipped_in_row));
  if (spikes.skipped > 0)
    log_warning(fmt::format("{} steps were left out (train.spike), and the run went back {} times",
                            spikes.skipped, spikes.rollbacks));
}

// Rounds do not stay: which steps are done in rounds follows from the step alone, so that a resumed run repeats
// it.
void TrainingRun::count_redone(const ExpertNeed& experts) {
  if (experts.rounds == 1) return;
  ++steps_redone_;
  constexpr std::int64_t kOften = 50;
  if (!is_first() || warned_of_redone_ || steps_redone_ * kOften < state_.step - first_step_ ||
      steps_redone_ < 3)
    return;
  warned_of_redone_ = true;
  log_warning(fmt::format(
      "step {}: {} of {} steps had to be done again in rounds, since a rank's experts had no room for "
      "their rows; the result is right, but slow: raise parallel.expert_room, which is {}",
      state_.step, steps_redone_, state_.step - first_step_, run_.parallel.expert_room));
}

void TrainingRun::warn_of_late_kernels() {
  const ops::LateKernels late = ops::late_kernels();
  if (world_.size() == 1 || !is_first() || late.count == 0 || warned_of_late_kernels_) return;
  warned_of_late_kernels_ = true;
  log_warning(fmt::format(
      "step {}: {} kernel{}, first of {}, ran for the first time, and a device that loads a kernel while ranks "
      "wait for each other may keep them waiting; set CUDA_MODULE_LOADING=EAGER to load all at the start",
      state_.step, late.count, late.count == 1 ? "" : "s", late.first));
}

TrainingRun::Wishes TrainingRun::agree_on_wishes(bool stop_requested) const {
  const double minutes = run_.checkpoint.every_minutes;
  const bool save = is_first() && minutes > 0 && seconds_since(last_save_) >= 60 * minutes;
  std::array<double, 2> wishes = {stop_requested ? 1.0 : 0.0, save ? 1.0 : 0.0};
  all_.sum_numbers(wishes);
  return {.stop = wishes[0] > 0, .save = wishes[1] > 0};
}

RunEnd TrainingRun::run(const volatile std::sig_atomic_t& stop_requested) {
  const std::int64_t steps = run_.train.steps;
  const auto tokens_a_step = static_cast<double>(run_.train.global_batch_size * run_.train.seq_len);
  if (state_.step >= steps) {
    // The process that did the last step may have ended before it had put the checkpoints in order. Of one that
    // is not the newest nothing is known to be too much.
    parallel::by_first(all_, [&] {
      const std::vector<std::int64_t> saved = checkpoint::checkpoint_steps(out_);
      if (!saved.empty() && saved.back() == state_.step) checkpoint::prune_checkpoints(out_, run_.checkpoint);
      return "";
    });
    if (is_first())
      outputs_->console().line(fmt::format("nothing to do: step {} of {} is done", state_.step, steps));
  }
  start_ = last_save_ = Clock::now();
  first_step_ = state_.step;
  Clock::time_point last_step = start_;
  bool stopped = false;
  while (state_.step < steps && !stopped) {
    mark_step(state_.step + 1);
    const Clock::time_point step_start = Clock::now();
    std::string spike;
    if (profile_) profile_->begin_step();
    const StepResult result = step(spike);
    if (profile_) profile_->end_step();
    count_redone(result.experts);
    const double tokens_per_second = tokens_a_step / seconds_since(step_start);
    const Wishes wishes = agree_on_wishes(stop_requested != 0);
    stopped = wishes.stop;
    save_is_due_ = save_is_due_ || wishes.save;
    if (run_.log.check_replicas > 0 && state_.step % run_.log.check_replicas == 0)
      check_replicas(step_.model().parameters(), step_.mesh(), state_.step);

    const bool goes_back = !spike.empty() && (state_.spikes.skipped_in_row >= run_.train.spike.patience ||
                                              !step_.weights_are_finite());
    std::optional<EvalResult> validation;
    std::vector<TaskScore> tasks;
    if (!goes_back) {
      settle_if_due();
      validation = evaluate_if_due();
      if (validation || data_.validation.empty()) tasks = ask_tasks_if_due();
    }
    state_.train_seconds += seconds_since(last_step);
    last_step = Clock::now();
    const RankFigures ranks = rank_watch_.gather(
        world_, all_,
        step_.context().device != Device::cpu ? std::optional(result.exchange_seconds) : std::nullopt);
    const StepOutcome outcome{
        .result = result,
        .state = state_,
        .lr = learning_rate(run_.train, state_.step),
        .tokens_per_second = tokens_per_second,
        .epoch = most_epochs(),
        .product_rate = product_rate_,
        .load = load_average_,
        .validation = validation ? &*validation : nullptr,
        .tasks = tasks,
        .ranks = ranks,
        .ideal_bytes = step_.ideal_bytes(),
        .expert_ranks = step_.mesh().expert.size(),
        .even_rows = static_cast<double>(run_.train.micro_batch_size * run_.train.seq_len *
                                         config::slots_per_token(run_.router, run_.model)),
        .steps_redone = steps_redone_};
    if (is_first()) outputs_->append(state_.step, step_record(outcome, step_.model(), flop_counter_));
    if (!spike.empty()) {
      if (is_first()) outputs_->console().clear_bar();
      if (goes_back) {
        go_back(spike);
        start_ = Clock::now();
        first_step_ = state_.step;
        continue;
      }
      if (is_first()) log_warning(fmt::format("step {} is left out: {}", state_.step, spike));
    }
    warn_of_late_kernels();
    if (is_first()) {
      outputs_->console().step(step_report(outcome, step_.model(), steps, seconds_left()),
                               validation || due(run_.log.every) || state_.step == first_step_ + 1);
      for (const TaskScore& task : tasks) outputs_->console().line(format_task(state_.step, task));
    }
    save_if_due(outcome.validation, stopped);
  }
  all_.barrier();  // the others have written what they write
  if (profile_) report_profile();
  if (is_first()) {
    warn_of_steps_left_out();
    outputs_->close();
  }
  return stopped && state_.step < steps ? RunEnd::interrupted : RunEnd::finished;
}

}  // namespace switchyard::train
