#include "train/trainer.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "checkpoint/checkpoint.h"
#include "checkpoint/model_directory.h"
#include "config/names.h"
#include "core/log.h"
#include "core/threads.h"
#include "ops/attention.h"
#include "ops/device.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "train/console.h"
#include "train/data_fingerprint.h"
#include "train/evaluator.h"
#include "train/product_rate.h"
#include "train/resume_checks.h"
#include "train/schedule.h"
#include "train/spike.h"

namespace switchyard::train {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr double kManyEpochs = 4;  // what repeated data are worth: Muennighoff et al., arXiv 2305.16264

// Bytes of the process's largest resident set.
std::int64_t peak_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

std::vector<data::Sampler::Domain> sampler_domains(const std::vector<Domain>& domains) {
  std::vector<data::Sampler::Domain> list;
  for (const Domain& domain : domains) list.push_back({domain.name, domain.stream.size(), domain.weight});
  return list;
}

void add_figures(MetricsRecord& record, const router::BalanceFigures& figures) {
  record.add("gini", figures.gini)
      .add("min_max", figures.min_max)
      .add("cv", figures.cv)
      .add("max_vio", figures.max_vio)
      .add("utilisation", figures.utilisation)
      .add("entropy", figures.entropy);
}

// What an evaluation counted in each layer: exact figures, and the counts of each domain.
std::vector<MetricsRecord> evaluated_layers(const EvalResult& result, const model::Transformer& model) {
  std::vector<MetricsRecord> records;
  const auto figures = result.load.figures();
  for (std::int64_t l = 0; l < model.routing().n_main_layers(); ++l) {
    MetricsRecord layer, counts;
    layer.add("layer", model.routing().layer(l).layer());
    add_figures(layer, figures[static_cast<std::size_t>(l)]);
    const auto count_DE = result.load.by_domain(l);
    for (std::size_t d = 0; d < count_DE.size(); ++d)
      counts.add(result.domains[d].name, std::vector<std::int64_t>(count_DE[d].begin(), count_DE[d].end()));
    layer.add("specialisation", result.load.specialisation(l)).add("counts_by_domain", counts);
    records.push_back(std::move(layer));
  }
  return records;
}

bool needs_attention_entropy(const router::RoutingStep& routing) {
  bool needs = false;
  for (std::int64_t l = 0; l < routing.n_layers(); ++l)
    needs = needs || routing.layer(l).router().needs_attention_entropy();
  return needs;
}

// Before memory is taken: refuses what cuDNN's attention cannot do here.
void check_attention(const config::Run& run, const model::Transformer& model, Device device) {
  if (run.train.attention != AttentionBackend::cudnn) return;
  const config::Model& m = run.model;
  std::string obstacle =
      "the router reads how evenly attention is spread (router.estimator), which cuDNN does not say";
  if (!needs_attention_entropy(model.routing()))
    obstacle =
        ops::cudnn_attention_obstacle({.n_seq = run.train.micro_batch_size,
                                       .seq_len = run.train.seq_len,
                                       .n_heads = m.num_attention_heads,
                                       .n_kv_heads = m.mla ? m.num_attention_heads : m.num_key_value_heads,
                                       .head_dim = m.head_dim,
                                       .v_head_dim = m.mla ? m.mla->v_head_dim : m.head_dim,
                                       .scale = 1,
                                       .window = m.sliding_window},
                                      device);
  if (!obstacle.empty()) throw_input("train.attention: is \"cudnn\": {}; or set it to \"flash\"", obstacle);
}

}  // namespace

Trainer::Trainer(const config::Run& run, const std::filesystem::path& out, const Resume& resume,
                 parallel::Communicator& communicator, Device device)
    : run_(run),
      communicator_(communicator),
      micro_batches_(run.train.global_batch_size / run.train.micro_batch_size),
      begin_token_(run.data.document_mask ? std::optional(find_begin_token(run.data, run.model.vocab_size))
                                          : std::nullopt),
      train_domains_(open_domains(run.data.train, run.model.vocab_size)),
      val_domains_(open_domains(run.data.validation, run.model.vocab_size)),
      sampler_(sampler_domains(train_domains_), run.train.seq_len, run.train.seed),
      ctx_(device),
      model_(run.model, run.router, model::dtype_of(run.train.dtype, device), true),
      optimizer_(run.train, model_.parameters()),
      step_load_(model_.routing().n_layers(), std::max<std::int64_t>(1, run.model.num_experts),
                 static_cast<std::int64_t>(train_domains_.size())),
      flop_counter_(model_),
      load_average_(model_.routing().n_layers(), std::max<std::int64_t>(1, run.model.num_experts)),
      buffers_(run.train.micro_batch_size, run.train.seq_len, begin_token_, run.model.sliding_window, device,
               micro_batches_),
      domain_MB_(static_cast<std::size_t>(micro_batches_),
                 std::vector<std::size_t>(static_cast<std::size_t>(run.train.micro_batch_size))),
      window_(static_cast<std::size_t>(run.train.seq_len) + 1),
      loss_MT_(device, {micro_batches_, micro_tokens()}),
      mtp_loss_MKT_(device, {micro_batches_, model_.n_mtp_depths(), micro_tokens()}),
      count_MLBE_(device, {micro_batches_, model_.routing().n_layers(), run.train.micro_batch_size,
                           run.model.num_experts}),
      dropped_ML_(device, {micro_batches_, model_.routing().n_layers()}),
      figures_(device, {kFigures}) {
  check_attention(run, model_, device);
  ctx_.attention = run.train.attention;
  ops::open_stream(ctx_);
  memory_ = plan_memory(model_, run.train);
  const auto free_bytes = ops::free_memory(device);
  if (free_bytes) check_fits(memory_, *free_bytes, ops::describe_device(device));
  model_.allocate(device);
  const std::int64_t n_depths = model_.n_mtp_depths();
  micro_losses_ = allocate_aligned((1 + n_depths) * micro_tokens() * size_of(DType::f32), "losses", device);
  const Tensor losses(micro_losses_.get(), Shape{(1 + n_depths) * micro_tokens()}, DType::f32, device);
  loss_T_ = losses.slice(0, micro_tokens());
  mtp_loss_KT_ =
      losses.slice(micro_tokens(), n_depths * micro_tokens()).reshape(Shape{n_depths, micro_tokens()});
  ctx_.matmul = model::matmul_type_of(run.train.dtype);
  if (!ops::has_fast_matmul(ctx_.matmul, ctx_.device))
    log_warning(
        "train.dtype is \"bfloat16\", but this processor has no bfloat16 products (they need AVX-512): "
        "operands "
        "are rounded and multiplied in float32, which is slower than \"float32\"");
  model_.plan(run.train.micro_batch_size, run.train.seq_len, ctx_, run.train.recompute);
  state_.seed = run.train.seed;
  data_fingerprint_ = data_fingerprint(train_domains_, val_domains_, run_.data);
  if (resume.checkpoint) {
    const checkpoint::Checkpoint checkpoint(*resume.checkpoint);
    checkpoint.check_resumable(run_);
    check_data(checkpoint, data_fingerprint_, resume.allow_new_data);
    warn_of_changes(run_, checkpoint);
    try {
      load(checkpoint);
    } catch (const InputError&) {
      // Its files are whole (the manifest says so): what does not fit is what another router keeps.
      const std::string differences = router_differences(run_, checkpoint);
      if (differences.empty()) throw;
      throw_input("{}: cannot be resumed with this configuration: {}; use the checkpoint's or start a new run",
                  checkpoint.path().string(), differences);
    }
  } else {
    model_.parameters().initialise(run.train.seed);
    if (resume.initial_weights) {
      const checkpoint::ModelDirectory directory(*resume.initial_weights);
      directory.check_model(run_.model);
      directory.weights().load(run_.model, model_.parameters());
      log_info(fmt::format("begins with the weights of {}", directory.path().string()));
      warn_of_other_tokens(run_.data, directory.path());
    }
    model_.round_weights(ctx_);
  }
  if (ctx_.device != Device::cpu) rehearse();

  directory_.emplace(out, run_, resume.wanted ? ExistingRun::continue_it : ExistingRun::refuse);
  open_logs();
  product_rate_ = measure_product_rate(ctx_);

  if (ctx_.device != Device::cpu) log_info("computes on " + ops::describe_device(ctx_.device));
  log_info(fmt::format("{:.1f}M parameters; {} threads; memory:",
                       static_cast<double>(model_.parameters().count()) * 1e-6, thread_count()));
  for (const std::string& line : table_of(memory_)) log_info(line);
  if (product_rate_ > 0)
    log_info(fmt::format("this machine multiplies matrices in {} at {:.0f} GFLOP/s", name_of(run_.train.dtype),
                         product_rate_ * 1e-9));
  describe_data();
  if (resume.checkpoint)
    log_info(fmt::format("resumed from {} after step {}", resume.checkpoint->string(), state_.step));
}

void Trainer::load(const checkpoint::Checkpoint& checkpoint) {
  checkpoint.load_weights(model_.parameters());
  checkpoint.load_state(model_.parameters(),
                        std::vector<checkpoint::NamedTensor>{{"balance.load_average", load_average_.state()}});
  model_.round_weights(ctx_);
  state_ = checkpoint.state();
}

// What a resumed run, or one that went back, writes goes on from its step.
void Trainer::open_logs() {
  metrics_.reset();
  MetricsLog::truncate_after(directory_->metrics_path(), state_.step);
  metrics_.emplace(directory_->metrics_path());
  if (run_.log.tensorboard) tensorboard_.emplace(directory_->tensorboard_path(), state_.step);
}

// How often so many samples of the run show the whole of a domain.
double Trainer::epochs_of(std::uint64_t samples, std::size_t domain) const {
  const double share =
      static_cast<double>(sampler_.samples_per_block()[domain]) / static_cast<double>(data::Sampler::kMixBlock);
  const auto windows = (train_domains_[domain].stream.size() - 1) / run_.train.seq_len;
  return static_cast<double>(samples) * share / static_cast<double>(windows);
}

double Trainer::most_epochs() const {
  double most = 0;
  for (std::size_t d = 0; d < train_domains_.size(); ++d) most = std::max(most, epochs_of(state_.samples, d));
  return most;
}

void Trainer::describe_data() const {
  const auto samples = static_cast<std::uint64_t>(run_.train.steps * run_.train.global_batch_size);
  std::string repeated;
  for (std::size_t d = 0; d < train_domains_.size(); ++d) {
    const Domain& domain = train_domains_[d];
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

// One micro-batch of padding, of which nothing is kept: workspace grows to what a step needs, so that a model
// that does not fit is refused before anything is written.
void Trainer::rehearse() {
  const std::vector<double> mtp_dloss_K(static_cast<std::size_t>(model_.n_mtp_depths()));
  const model::Batch batch = load_micro_batch(0);
  do_or_replay(micro_step_, [&] { forward_backward(batch, false, mtp_dloss_K); });
  memory_.workspace = ctx_.scratch.reserved();
}

void Trainer::read_data() {
  const auto first_sample = static_cast<std::int64_t>(state_.samples);
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    buffers_.set_place(state_.step, micro * run_.train.micro_batch_size, micro);
    for (std::int64_t b = 0; b < run_.train.micro_batch_size; ++b) {
      const data::Sampler::Sample sample = sampler_.at(first_sample + micro * run_.train.micro_batch_size + b);
      train_domains_[sample.domain].stream.read(sample.window * run_.train.seq_len, window_);
      buffers_.set_sequence(b, window_, micro);
      domain_MB_[static_cast<std::size_t>(micro)][static_cast<std::size_t>(b)] = sample.domain;
    }
  }
}

model::Batch Trainer::load_micro_batch(std::int64_t micro) {
  model::Batch batch = buffers_.load(ctx_, micro);
  batch.training = true;
  batch.seed = run_.train.seed;
  return batch;
}

// Positions of the whole global batch that have a target, for each depth of multi-token prediction: with a
// document mask they depend on the data, and the first backward pass needs them.
std::vector<double> Trainer::count_mtp_targets() {
  std::vector<double> count_K(static_cast<std::size_t>(model_.n_mtp_depths()));
  if (count_K.empty()) return count_K;
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro)
    for (std::size_t k = 0; k < count_K.size(); ++k)
      count_K[k] += static_cast<double>(
          model::mtp_target_count(buffers_.on_host(micro), static_cast<std::int64_t>(k) + 1));
  communicator_.all_reduce_sum(
      Tensor(count_K.data(), Shape{static_cast<std::int64_t>(count_K.size())}, DType::f64));
  return count_K;
}

// The counts of the whole global batch before the first backward pass needs them. With one micro-batch its own
// forward pass gives them; with several, all are run forward once more: exact, for a third more work.
void Trainer::count_global_batch() {
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    const model::Batch batch = load_micro_batch(micro);
    do_or_replay(count_step_, [&] {
      model_.forward(batch, ctx_);
      model_.forward_mtp(batch, ctx_);
      model_.routing().add_micro_batch(ctx_);
    });
  }
  sum_over_ranks();
}

void Trainer::do_or_replay(ops::Replay& replay, const std::function<void()>& work) {
  if (!steps_are_alike()) return work();
  const bool was_recorded = replay.n_recorded() > 0;
  replay.run(ctx_, work);
  if (!was_recorded && replay.n_recorded() > 0)
    log_info(fmt::format("a micro-batch is replayed as a CUDA graph of {} operations", replay.n_recorded()));
}

void Trainer::sum_over_ranks() {
  if (model_.routing().n_layers() > 0) communicator_.all_reduce_sum(model_.routing().global_sums());
}

// What the step has written on the device: the one place where the host waits for it.
void Trainer::read_back(StepResult& result, std::span<const double> mtp_share_K) {
  loss_MT_.read_back();
  mtp_loss_MKT_.read_back();
  count_MLBE_.read_back();
  dropped_ML_.read_back();
  figures_.read_back();
  const auto sum_of = [](const Tensor& losses_T) {
    const float* const loss = losses_T.as<float>();
    return std::accumulate(loss, loss + losses_T.numel(), 0.0);
  };
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    result.loss += sum_of(loss_MT_.on_host().slice(micro, 1));
    const Tensor mtp_loss_KT =
        mtp_loss_MKT_.on_host().slice(micro, 1).reshape(Shape{model_.n_mtp_depths(), micro_tokens()});
    for (std::size_t k = 0; k < mtp_share_K.size(); ++k)
      result.mtp_loss += mtp_share_K[k] * sum_of(mtp_loss_KT.slice(static_cast<std::int64_t>(k), 1));
    if (model_.routing().n_layers() > 0)
      step_load_.add(count_MLBE_.on_host().slice(micro, 1).reshape(model_.routing().counts().count_LBE.shape()),
                     dropped_ML_.on_host().slice(micro, 1).reshape(model_.routing().counts().dropped_L.shape()),
                     domain_MB_[static_cast<std::size_t>(micro)]);
    step_tokens_ += model::count_tokens(buffers_.on_host(micro));
  }
  result.loss /= static_cast<double>(run_.train.global_batch_size * run_.train.seq_len);
  result.balance_loss = figures_.values[kBalance];
  result.z_loss = figures_.values[kZ];
  result.router_loss = figures_.values[kRouter];
  result.grad_norm = std::sqrt(figures_.values[kGradSquares]);
}

void Trainer::forward_backward(const model::Batch& batch, bool count_first,
                               std::span<const double> mtp_dloss_K) {
  const std::int64_t batch_tokens = run_.train.global_batch_size * run_.train.seq_len;
  model_.forward(batch, ctx_);
  model_.forward_mtp(batch, ctx_);
  if (!count_first) {
    model_.routing().add_micro_batch(ctx_);
    if (model_.routing().needs_global_sums()) sum_over_ranks();
  }
  model_.routing().add_losses(figures_.on_device().slice(kBalance, 3), batch.tokens_B,
                              {.n_tokens = batch_tokens, .n_sequences = run_.train.global_batch_size}, ctx_);
  const model::MtpLoss mtp{mtp_loss_KT_, mtp_dloss_K};
  model_.loss_and_backward(loss_T_, batch, 1.0 / static_cast<double>(batch_tokens), ctx_, &mtp);
}

Trainer::StepResult Trainer::step() {
  ParameterStore& parameters = model_.parameters();
  const std::int64_t batch_tokens = run_.train.global_batch_size * run_.train.seq_len;
  // Whether a gradient needs sums over the whole global batch, and whether one forward pass gives them all.
  const bool needs_sums = model_.routing().needs_global_sums();
  const bool count_first = needs_sums && micro_batches_ > 1;
  const std::int64_t n_depths = model_.n_mtp_depths();
  read_data();
  // A depth's mean is over the positions that have a target; one without any (all documents are short) adds
  // nothing.
  std::vector<double> mtp_share_K = count_mtp_targets(), mtp_dloss_K;
  for (double& share : mtp_share_K) {
    share = share > 0 ? 1.0 / (share * static_cast<double>(n_depths)) : 0.0;
    mtp_dloss_K.push_back(run_.train.mtp_loss_coef * share);
  }
  StepResult result;
  result.lr = learning_rate(run_.train, state_.step + 1);
  step_load_.clear();
  step_tokens_ = {};
  model_.routing().begin(ctx_);
  ops::fill_zero(figures_.on_device(), ctx_);
  if (count_first) count_global_batch();
  ops::fill_zero(parameters.grads(), ctx_);

  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    const model::Batch batch = load_micro_batch(micro);
    do_or_replay(micro_step_, [&] { forward_backward(batch, count_first, mtp_dloss_K); });
    const auto keep = [&](const Tensor& of_step_M, const Tensor& of_micro) {
      if (of_micro.numel() > 0) ops::copy(of_step_M.slice(micro, 1).reshape(of_micro.shape()), of_micro, ctx_);
    };
    keep(loss_MT_.on_device(), loss_T_);
    keep(mtp_loss_MKT_.on_device(), mtp_loss_KT_);
    if (const router::RoutingStep& routing = model_.routing(); routing.n_layers() > 0) {
      keep(count_MLBE_.on_device(), routing.counts().count_LBE);
      keep(dropped_ML_.on_device(), routing.counts().dropped_L);
    }
  }
  communicator_.all_reduce_sum(parameters.grads());
  if (!needs_sums) sum_over_ranks();
  const Tensor grad_squares_1 = figures_.on_device().slice(kGradSquares, 1);
  optimizer_.measure(parameters, grad_squares_1, ctx_);
  read_back(result, mtp_share_K);
  result.spike = reason_to_leave_out(result);
  if (result.spike.empty()) {
    optimizer_.update(parameters, grad_squares_1, result.lr, state_.updates + 1, ctx_);
    model_.routing().after_step(ctx_);
    load_average_.update(step_load_);
    learned(run_.train.spike, state_.spikes, result.loss, result.grad_norm);
    state_.updates += 1;
  } else {
    left_out(state_.spikes);
  }

  state_.step += 1;
  state_.tokens += batch_tokens;
  state_.samples += static_cast<std::uint64_t>(run_.train.global_batch_size);
  return result;
}

// Before the optimizer and the routers learn from a step. A loss that is not finite ends the run where the run
// is too young to tell a bad batch from bad weights, or where the weights themselves are not finite and there
// is nothing to go back to.
std::string Trainer::reason_to_leave_out(const StepResult& result) const {
  const double loss = result.loss + result.mtp_loss;
  const bool finite = std::isfinite(loss) && std::isfinite(result.grad_norm);
  if (!finite && (!detects_spikes() || state_.spikes.losses.size() < kLeastHistory ||
                  (!weights_are_finite() && !checkpoint::find_latest(directory_->path())))) {
    if (!std::isfinite(loss)) stop_for_loss();
    stop_for_gradient();
  }
  if (!detects_spikes()) return "";
  return spike_reason(run_.train.spike, state_.spikes, std::isfinite(loss) ? result.loss : loss,
                      result.grad_norm);
}

bool Trainer::weights_are_finite() const {
  Context ctx(ctx_.device);
  return std::isfinite(ops::sum_of_squares(model_.parameters().values(), ctx));
}

void Trainer::go_back(const StepResult& result) {
  constexpr std::int64_t kMostTimesBack = 3;
  std::vector<std::filesystem::path> good;  // newest first
  for (const std::int64_t step : checkpoint::checkpoint_steps(directory_->path())) {
    const std::filesystem::path path = checkpoint::checkpoint_path(directory_->path(), step);
    if (step <= state_.step && checkpoint::read_run_state(path).spikes.skipped_in_row == 0)
      good.insert(good.begin(), path);
  }
  if (good.empty() || times_back_ == kMostTimesBack)
    throw_run(
        "step {}: {} steps in a row were left out (train.spike), of the last one {}; {}; lower train.lr, raise "
        "train.warmup_ratio, or look at the data",
        state_.step, state_.spikes.skipped_in_row, result.spike,
        good.empty()
            ? "there is no checkpoint to go back to"
            : fmt::format("going back {} times has not helped, the last time to {}", times_back_,
                          good[std::min(good.size(), static_cast<std::size_t>(times_back_)) - 1].string()));
  // Each time in a row one checkpoint farther: the newest may have been on its way already.
  const std::filesystem::path& target = good[std::min(good.size() - 1, static_cast<std::size_t>(times_back_))];
  const checkpoint::RunState before = state_;
  load(checkpoint::Checkpoint(target));
  state_.samples = before.samples;
  state_.train_seconds = before.train_seconds;
  state_.spikes.skipped = before.spikes.skipped;
  state_.spikes.rollbacks = before.spikes.rollbacks + 1;
  ++times_back_;
  open_logs();
  log_warning(
      fmt::format("step {}: {} steps in a row were left out, of the last one {}: going back to {}, with the "
                  "data behind sample {}",
                  before.step, before.spikes.skipped_in_row, result.spike, target.string(), before.samples));
}

std::string Trainer::last_checkpoint_note() const {
  const auto latest = checkpoint::find_latest(directory_->path());
  return latest ? "the last checkpoint is " + latest->string() : "no checkpoint had been written yet";
}

void Trainer::stop_for_loss() const {
  std::string where = "the logits of lm_head";
  bool found = false;
  Context ctx(ctx_.device);
  for (std::size_t i = 0; i < model_.parameters().rows().size() && !found; ++i) {
    if (std::isfinite(ops::sum_of_squares(model_.parameters().value(i), ctx))) continue;
    where = "the weights of " + model_.parameters().rows()[i].name;
    found = true;
  }
  model_.visit_activations([&](std::int64_t layer, const std::string& name, const Tensor& tensor) {
    if (found || std::isfinite(ops::sum_of_squares(tensor, ctx))) return;
    where = layer < 0 ? name : fmt::format("layer {}, {}", layer, name);
    found = true;
  });
  throw_run(
      "step {}: the loss is not finite; the first such tensor: {}; {}; lower train.lr or raise "
      "train.warmup_ratio",
      state_.step + 1, where, last_checkpoint_note());
}

void Trainer::stop_for_gradient() const {
  Context ctx(ctx_.device);
  std::string where = "none alone, only the sum of all overflows";
  for (std::size_t i = model_.parameters().rows().size(); i-- > 0;) {  // the order of the backward pass
    if (std::isfinite(ops::sum_of_squares(model_.parameters().grad(i), ctx))) continue;
    where = model_.parameters().rows()[i].name;
    break;
  }
  throw_run(
      "step {}: the gradient is not finite; the first such tensor: {}; {}; lower train.lr or raise "
      "train.warmup_ratio",
      state_.step + 1, where, last_checkpoint_note());
}

// Over the main layers alone, which are what an evaluation sees.
router::BalanceFigures Trainer::headline_figures() const {
  const auto layers = load_average_.figures();
  return router::mean_of(std::span(layers).first(static_cast<std::size_t>(model_.routing().n_main_layers())));
}

std::vector<double> Trainer::step_slots() const {
  std::vector<double> slot_L;
  for (std::int64_t l = 0; l < model_.routing().n_main_layers(); ++l) slot_L.push_back(step_load_.slots(l));
  return slot_L;
}

// Of the forward pass, a token: what was computed, what it would be with every slot taken, and the share saved.
void Trainer::add_flops(MetricsRecord& record) const {
  const double tokens = static_cast<double>(step_tokens_.tokens);
  const double real = flop_counter_.count(step_tokens_, step_slots()).total() / tokens;
  const double all = flop_counter_.count_static(step_tokens_).total() / tokens;
  record.add("flops_per_token", real).add("flops_per_token_static", all).add("flops_saved", 1 - real / all);
}

// When, how long, with how much memory, and at which share of the machine's rate of products the step ran. A
// training step is three times its forward pass: the gradients of inputs and of weights are a product each.
void Trainer::add_machine(MetricsRecord& record, double tokens_per_second) const {
  record
      .add("wall_time",
           std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count())
      .add("train_seconds", state_.train_seconds)
      .add("memory_bytes", peak_memory());
  if (product_rate_ > 0)
    record.add("product_rate_share", 3 * flop_counter_.count(step_tokens_, step_slots()).total() /
                                         static_cast<double>(step_tokens_.tokens) * tokens_per_second /
                                         product_rate_);
}

void Trainer::write_metrics(const StepResult& result, double tokens_per_second, const EvalResult* validation) {
  MetricsRecord record;
  record.add("step", state_.step).add("tokens", state_.tokens).add("loss", result.loss);
  if (model_.n_mtp_depths() > 0) record.add("mtp_loss", result.mtp_loss);
  record.add("lr", result.lr).add("grad_norm", result.grad_norm).add("tokens_per_second", tokens_per_second);
  add_machine(record, tokens_per_second);
  record.add("epoch", most_epochs())
      .add("skipped", state_.spikes.skipped)
      .add("rollbacks", state_.spikes.rollbacks);
  const auto layers = load_average_.figures();
  add_figures(record, headline_figures());
  record.add("balance_loss", result.balance_loss)
      .add("z_loss", result.z_loss)
      .add("router_loss", result.router_loss)
      .add("drop_rate", step_load_.drop_rate());
  add_flops(record);
  std::vector<MetricsRecord> layer_records;
  for (std::int64_t l = 0; l < model_.routing().n_layers(); ++l) {
    MetricsRecord layer;
    layer.add("layer", model_.routing().layer(l).layer());
    add_figures(layer, layers[static_cast<std::size_t>(l)]);
    const auto load_E = step_load_.layer(l);
    layer.add("counts", std::vector<std::int64_t>(load_E.begin(), load_E.end()));
    layer_records.push_back(std::move(layer));
  }
  record.add("layers", layer_records);
  if (validation) {
    record.add("val_loss", validation->loss).add("val_tokens", validation->tokens);
    if (const auto bits = bits_per_byte(validation->loss, validation->tokens, validation->text))
      record.add("val_bits_per_byte", *bits);
    MetricsRecord balance, domain_losses;
    add_figures(balance, router::mean_of(validation->load.figures()));
    for (const DomainLoss& domain : validation->domains) domain_losses.add(domain.name, domain.loss);
    record.add("val_balance", balance)
        .add("val_loss_by_domain", domain_losses)
        .add("val_layers", evaluated_layers(*validation, model_));
  }
  metrics_->append(record);
  if (tensorboard_) tensorboard_->append(state_.step, record.json());
}

void Trainer::save(const EvalResult* validation) {
  metrics_->sync();  // so that the lines up to a checkpoint are on the disk when it is
  state_.val_loss = validation ? std::optional(validation->loss) : std::nullopt;
  checkpoint::save_checkpoint(
      directory_->path(), model_.parameters(), state_, run_,
      std::vector<checkpoint::NamedTensor>{{"balance.load_average", load_average_.state()}}, data_fingerprint_);
  checkpoint::prune_checkpoints(directory_->path(), run_.checkpoint);
  if (state_.spikes.skipped_in_row == 0) times_back_ = 0;
}

RunEnd Trainer::run(const volatile std::sig_atomic_t& stop_requested) {
  Console console;
  const std::int64_t steps = run_.train.steps;
  const std::int64_t tokens_a_step = run_.train.global_batch_size * run_.train.seq_len;
  const EvalSettings eval_settings{.seq_len = run_.train.seq_len,
                                   .batch = run_.train.micro_batch_size,
                                   .max_tokens = run_.train.eval_tokens,
                                   .begin_token = begin_token_};
  if (state_.step >= steps)
    console.line(fmt::format("nothing to do: step {} of {} is done", state_.step, steps));
  const auto due = [&](std::int64_t every) {
    return state_.step == steps || (every > 0 && state_.step % every == 0);
  };
  Clock::time_point start = Clock::now(), last_save = start, last_step = start;
  std::int64_t first_step = state_.step;
  bool stopped = false, save_is_due = false;
  while (state_.step < steps && !stopped) {
    const Clock::time_point step_start = Clock::now();
    const StepResult result = step();
    const double tokens_per_second = static_cast<double>(tokens_a_step) / seconds_since(step_start);
    stopped = stop_requested != 0;

    std::optional<EvalResult> validation;
    if (!val_domains_.empty() && due(run_.train.eval_every)) {
      ctx_.attention = AttentionBackend::flash;  // as `switchyard eval` computes
      validation = evaluate(model_, val_domains_, eval_settings, ctx_);
      ctx_.attention = run_.train.attention;
    }
    state_.train_seconds += seconds_since(last_step);
    last_step = Clock::now();
    const EvalResult* const evaluated = validation ? &*validation : nullptr;
    write_metrics(result, tokens_per_second, evaluated);
    if (!result.spike.empty()) {
      console.clear_bar();
      if (state_.spikes.skipped_in_row >= run_.train.spike.patience || !weights_are_finite()) {
        go_back(result);
        start = Clock::now();
        first_step = state_.step;
        continue;
      }
      log_warning(fmt::format("step {} is left out: {}", state_.step, result.spike));
    }
    const double minutes = run_.checkpoint.every_minutes;
    save_is_due =
        save_is_due || due(run_.checkpoint.every) || (minutes > 0 && seconds_since(last_save) >= 60 * minutes);
    // Amid steps that are left out a checkpoint would hold no newer weights, and take the place of one that the
    // run may have to go back to.
    if ((save_is_due && state_.spikes.skipped_in_row == 0) || stopped || state_.step == steps) {
      save_is_due = false;
      console.clear_bar();
      save(evaluated);
      last_save = Clock::now();
    }

    StepReport report{
        .step = state_.step,
        .steps = steps,
        .loss = result.loss,
        .mtp_loss = model_.n_mtp_depths() > 0 ? std::optional(result.mtp_loss) : std::nullopt,
        .val_loss = validation ? std::optional(validation->loss) : std::nullopt,
        .val_bits_per_byte =
            validation ? bits_per_byte(validation->loss, validation->tokens, validation->text) : std::nullopt,
        .lr = result.lr,
        .grad_norm = result.grad_norm,
        .tokens_per_second = tokens_per_second,
        .gini = std::nullopt,
        .seconds_left = seconds_since(start) / static_cast<double>(state_.step - first_step) *
                        static_cast<double>(steps - state_.step)};
    if (model_.routing().n_layers() > 0) report.gini = headline_figures().gini;
    console.step(report, validation || due(run_.log.every) || state_.step == first_step + 1);
  }
  if (state_.spikes.skipped_in_row > 0)
    log_warning(
        fmt::format("the run ends amid {} steps in a row that were left out: its weights are those of step {}",
                    state_.spikes.skipped_in_row, state_.step - state_.spikes.skipped_in_row));
  if (state_.spikes.skipped > 0)
    log_warning(fmt::format("{} steps were left out (train.spike), and the run went back {} times",
                            state_.spikes.skipped, state_.spikes.rollbacks));
  metrics_->close();
  if (tensorboard_) tensorboard_->close();
  return stopped && state_.step < steps ? RunEnd::interrupted : RunEnd::finished;
}

}  // namespace switchyard::train
