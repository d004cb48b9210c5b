#include "train/step.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "core/log.h"
#include "ops/attention.h"
#include "ops/device.h"
#include "ops/elementwise.h"
#include "ops/linear.h"

namespace switchyard::train {

namespace {

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
  std::string reason =
      "the router reads how evenly attention is spread (router.estimator), which cuDNN does not say";
  if (!needs_attention_entropy(model.routing()))
    reason = ops::cudnn_attention_unavailable_reason(
        {.n_seq = run.train.micro_batch_size,
         .seq_len = run.train.seq_len,
         .n_heads = m.num_attention_heads,
         .n_kv_heads = m.mla ? m.num_attention_heads : m.num_key_value_heads,
         .head_dim = m.head_dim,
         .v_head_dim = m.mla ? m.mla->v_head_dim : m.head_dim,
         .scale = 1,
         .window = m.sliding_window},
        device);
  if (!reason.empty()) throw_input("train.attention: is \"cudnn\": {}; or set it to \"flash\"", reason);
}

// What the run needs, if the device has so much.
MemoryPlan checked_plan(model::Transformer& model, const config::Run& run, Device device) {
  check_attention(run, model, device);
  MemoryPlan plan = plan_memory(model, run.train);
  const auto free_bytes = ops::free_memory(device);
  if (free_bytes) check_fits(plan, *free_bytes, ops::describe_device(device));
  return plan;
}

double sum_of(const Tensor& losses) {
  const float* const loss = losses.as<float>();
  return std::accumulate(loss, loss + losses.numel(), 0.0);
}

}  // namespace

Step::Step(const config::Run& run, const TrainingData& data, parallel::Communicator& communicator,
           Device device)
    : run_(run),
      data_(data),
      communicator_(communicator),
      micro_batches_(run.train.global_batch_size / run.train.micro_batch_size / communicator.size()),
      ctx_(device),
      model_(run.model, run.router, model::dtype_of(run.train.dtype, device), true),
      memory_(checked_plan(model_, run, device)),
      optimizer_(run.train, model_.parameters()),
      buffers_(run.train.micro_batch_size, run.train.seq_len, data.begin_token, run.model.sliding_window,
               device, micro_batches_),
      domain_MB_(static_cast<std::size_t>(micro_batches_),
                 std::vector<std::size_t>(static_cast<std::size_t>(run.train.micro_batch_size))),
      window_(static_cast<std::size_t>(run.train.seq_len) + 1),
      loss_MT_(device, {micro_batches_, micro_tokens()}),
      mtp_loss_MKT_(device, {micro_batches_, model_.n_mtp_depths(), micro_tokens()}),
      count_MLBE_(device, {micro_batches_, model_.routing().n_layers(), run.train.micro_batch_size,
                           run.model.num_experts}),
      dropped_ML_(device, {micro_batches_, model_.routing().n_layers()}),
      figures_(device, {kFigures}) {
  SY_CHECK(micro_batches_ * run.train.micro_batch_size * communicator.size() == run.train.global_batch_size,
           "a global batch of {} is not cut evenly for {} ranks", run.train.global_batch_size,
           communicator.size());
  ctx_.attention = run.train.attention;
  ctx_.matmul = model::matmul_type_of(run.train.dtype);
  ops::open_stream(ctx_);
  if (!ops::has_fast_matmul(ctx_.matmul, ctx_.device))
    log_warning(
        "train.dtype is \"bfloat16\", but this processor has no bfloat16 products (they need AVX-512): "
        "operands "
        "are rounded and multiplied in float32, which is slower than \"float32\"");
  take_memory();
}

void Step::take_memory() {
  model_.allocate(ctx_.device);
  const std::int64_t n_depths = model_.n_mtp_depths();
  micro_losses_ =
      allocate_aligned((1 + n_depths) * micro_tokens() * size_of(DType::f32), "losses", ctx_.device);
  const Tensor losses(micro_losses_.get(), Shape{(1 + n_depths) * micro_tokens()}, DType::f32, ctx_.device);
  loss_T_ = losses.slice(0, micro_tokens());
  mtp_loss_KT_ =
      losses.slice(micro_tokens(), n_depths * micro_tokens()).reshape(Shape{n_depths, micro_tokens()});
  model_.plan(run_.train.micro_batch_size, run_.train.seq_len, ctx_, run_.train.recompute);
}

void Step::rehearse() {
  const std::vector<double> mtp_dloss_K(static_cast<std::size_t>(model_.n_mtp_depths()));
  const model::Batch batch = load_micro_batch(0);
  do_or_replay(micro_step_, [&] { forward_backward(batch, false, mtp_dloss_K); });
  memory_.workspace = ctx_.scratch.reserved();
}

// This rank's part of the global batch: neighbouring samples, so that any number of ranks trains on the same.
void Step::read_data(std::int64_t step, std::uint64_t first_sample) {
  const std::int64_t B = run_.train.micro_batch_size;
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    const std::int64_t first = (communicator_.rank() * micro_batches_ + micro) * B;  // in the global batch
    buffers_.set_rng_offset(step, first, micro);
    for (std::int64_t b = 0; b < B; ++b) {
      const data::Sampler::Sample sample =
          data_.sampler.at(static_cast<std::int64_t>(first_sample) + first + b);
      data_.train[sample.domain].stream.read(sample.window * run_.train.seq_len, window_);
      buffers_.set_sequence(b, window_, micro);
      domain_MB_[static_cast<std::size_t>(micro)][static_cast<std::size_t>(b)] = sample.domain;
    }
  }
}

model::Batch Step::load_micro_batch(std::int64_t micro) {
  model::Batch batch = buffers_.load(ctx_, micro);
  batch.training = true;
  batch.seed = run_.train.seed;
  return batch;
}

// Positions of the whole global batch that have a target, for each depth of multi-token prediction: with a
// document mask they depend on the data, and the first backward pass needs them.
std::vector<double> Step::count_mtp_targets() {
  std::vector<double> count_K(static_cast<std::size_t>(model_.n_mtp_depths()));
  if (count_K.empty()) return count_K;
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro)
    for (std::size_t k = 0; k < count_K.size(); ++k)
      count_K[k] += static_cast<double>(
          model::mtp_target_count(buffers_.on_host(micro), static_cast<std::int64_t>(k) + 1));
  communicator_.all_reduce_sum(
      Tensor(count_K.data(), Shape{static_cast<std::int64_t>(count_K.size())}, DType::f64), ctx_);
  return count_K;
}

// The counts of the whole global batch before the first backward pass needs them. With one micro-batch its own
// forward pass gives them; with several, all are run forward once more: exact, for a third more work.
void Step::count_global_batch() {
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    const model::Batch batch = load_micro_batch(micro);
    do_or_replay(count_step_, [&] {
      model_.forward(batch, ctx_);
      model_.forward_mtp(batch, ctx_);
      model_.routing().add_micro_batch(ctx_);
    });
  }
  sum_routing_over_ranks();
}

void Step::do_or_replay(ops::Replay& replay, const std::function<void()>& work) {
  if (!steps_are_alike()) return work();
  const bool was_recorded = replay.n_recorded() > 0;
  replay.run(ctx_, work);
  if (!was_recorded && replay.n_recorded() > 0)
    log_info(fmt::format("a micro-batch is replayed as a CUDA graph of {} operations", replay.n_recorded()));
}

void Step::sum_routing_over_ranks() {
  if (model_.routing().n_layers() > 0) communicator_.all_reduce_sum(model_.routing().global_sums(), ctx_);
}

void Step::forward_backward(const model::Batch& batch, bool count_first, std::span<const double> mtp_dloss_K) {
  router::RoutingStep& routing = model_.routing();
  model_.forward(batch, ctx_);
  model_.forward_mtp(batch, ctx_);
  if (!count_first) {
    routing.add_micro_batch(ctx_);
    if (routing.needs_global_sums()) sum_routing_over_ranks();
  }
  routing.add_losses(figures_.on_device().slice(kBalance, 3), batch.tokens_B,
                     {.n_tokens = batch_tokens(), .n_sequences = run_.train.global_batch_size}, ctx_);
  const model::MtpLoss mtp{mtp_loss_KT_, mtp_dloss_K};
  model_.loss_and_backward(loss_T_, batch, 1.0 / static_cast<double>(batch_tokens()), ctx_, &mtp);
}

// What one micro-batch has written, beside that of the others.
void Step::keep_results(std::int64_t micro) {
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

// What the step has written on the device: the one place where the host waits for it. Then the sums of ranks.
StepResult Step::read_back(std::span<const double> mtp_share_K) {
  loss_MT_.read_back();
  mtp_loss_MKT_.read_back();
  count_MLBE_.read_back();
  dropped_ML_.read_back();
  figures_.read_back();
  const router::RoutingStep& routing = model_.routing();
  StepResult result{.load = LoadCounts(routing.n_layers(), std::max<std::int64_t>(1, run_.model.num_experts),
                                       static_cast<std::int64_t>(data_.train.size()))};
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    result.loss += sum_of(loss_MT_.on_host().slice(micro, 1));
    const Tensor mtp_loss_KT =
        mtp_loss_MKT_.on_host().slice(micro, 1).reshape(Shape{model_.n_mtp_depths(), micro_tokens()});
    for (std::size_t k = 0; k < mtp_share_K.size(); ++k)
      result.mtp_loss += mtp_share_K[k] * sum_of(mtp_loss_KT.slice(static_cast<std::int64_t>(k), 1));
    if (routing.n_layers() > 0)
      result.load.add(count_MLBE_.on_host().slice(micro, 1).reshape(routing.counts().count_LBE.shape()),
                      dropped_ML_.on_host().slice(micro, 1).reshape(routing.counts().dropped_L.shape()),
                      domain_MB_[static_cast<std::size_t>(micro)]);
    result.tokens += model::count_tokens(buffers_.on_host(micro));
  }
  // Token counts are far below the 2^53 up to which doubles are exact.
  std::array<double, 7> sums = {result.loss,
                                result.mtp_loss,
                                figures_.values[kBalance],
                                figures_.values[kZ],
                                figures_.values[kRouter],
                                static_cast<double>(result.tokens.tokens),
                                static_cast<double>(result.tokens.keys)};
  communicator_.all_reduce_sum(Tensor(sums.data(), Shape{7}, DType::f64), ctx_);
  if (routing.n_layers() > 0) communicator_.all_reduce_sum(result.load.sums(), ctx_);
  result.loss = sums[0] / static_cast<double>(batch_tokens());
  result.mtp_loss = sums[1];
  result.balance_loss = sums[2];
  result.z_loss = sums[3];
  result.router_loss = sums[4];
  result.tokens = {static_cast<std::int64_t>(sums[5]), static_cast<std::int64_t>(sums[6])};
  result.grad_norm = std::sqrt(figures_.values[kGradSquares]);
  return result;
}

StepResult Step::compute(std::int64_t step, std::uint64_t first_sample) {
  ParameterStore& parameters = model_.parameters();
  router::RoutingStep& routing = model_.routing();
  // Whether a gradient needs sums over the whole global batch, and whether one forward pass gives them all.
  const bool needs_sums = routing.needs_global_sums();
  const bool count_first = needs_sums && micro_batches_ > 1;
  const std::int64_t n_depths = model_.n_mtp_depths();
  read_data(step, first_sample);
  // A depth's mean is over the positions that have a target; one without any (all documents are short) adds
  // nothing.
  std::vector<double> mtp_share_K = count_mtp_targets(), mtp_dloss_K;
  for (double& share : mtp_share_K) {
    share = share > 0 ? 1.0 / (share * static_cast<double>(n_depths)) : 0.0;
    mtp_dloss_K.push_back(run_.train.mtp_loss_coef * share);
  }
  routing.begin(ctx_);
  ops::fill_zero(figures_.on_device(), ctx_);
  if (count_first) count_global_batch();
  ops::fill_zero(parameters.grads(), ctx_);
  for (std::int64_t micro = 0; micro < micro_batches_; ++micro) {
    const model::Batch batch = load_micro_batch(micro);
    do_or_replay(micro_step_, [&] { forward_backward(batch, count_first, mtp_dloss_K); });
    keep_results(micro);
  }
  communicator_.all_reduce_sum(parameters.grads(), ctx_);
  if (!needs_sums) sum_routing_over_ranks();
  optimizer_.measure(parameters, figures_.on_device().slice(kGradSquares, 1), ctx_);
  return read_back(mtp_share_K);
}

void Step::update(double lr, std::int64_t n) {
  optimizer_.update(model_.parameters(), figures_.on_device().slice(kGradSquares, 1), lr, n, ctx_);
  model_.routing().after_step(ctx_);
}

bool Step::weights_are_finite() const {
  Context ctx(ctx_.device);
  return std::isfinite(ops::sum_of_squares(model_.parameters().values(), ctx));
}

std::string Step::cause_of_loss() const {
  Context ctx(ctx_.device);
  for (std::size_t i = 0; i < model_.parameters().rows().size(); ++i)
    if (!std::isfinite(ops::sum_of_squares(model_.parameters().value(i), ctx)))
      return "the weights of " + model_.parameters().rows()[i].name;
  std::string where = "the logits of lm_head";
  bool found = false;
  model_.visit_activations([&](std::int64_t layer, const std::string& name, const Tensor& tensor) {
    if (found || std::isfinite(ops::sum_of_squares(tensor, ctx))) return;
    where = layer < 0 ? name : fmt::format("layer {}, {}", layer, name);
    found = true;
  });
  return where;
}

std::string Step::cause_of_gradient() const {
  Context ctx(ctx_.device);
  for (std::size_t i = model_.parameters().rows().size(); i-- > 0;)  // the order of the backward pass
    if (!std::isfinite(ops::sum_of_squares(model_.parameters().grad(i), ctx)))
      return model_.parameters().rows()[i].name;
  return "none alone, only the sum of all overflows";
}

}  // namespace switchyard::train
