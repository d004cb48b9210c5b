#include "train/step.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "core/log.h"
#include "core/progress.h"
#include "ops/attention.h"
#include "ops/device.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "parallel/devices.h"

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

// Likewise products in FP8.
void check_products(const config::Run& run, Device device) {
  if (run.train.dtype != config::ComputeType::fp8) return;
  const std::string reason = ops::e4m3_unavailable_reason(device);
  if (!reason.empty()) throw_input("train.dtype: is \"fp8\": {}; or set it to \"bfloat16\"", reason);
}

// What the run needs, if there is so much.
MemoryPlan checked_plan(model::Transformer& model, const config::Run& run, const parallel::Mesh& mesh,
                        const parallel::World& world, Device device, const Step::Planned& planned) {
  check_attention(run, model, device);
  check_products(run, device);
  const Available available = available_to(world, device);
  double room = run.parallel.expert_room;
  if (room == config::Parallel::kAutoRoom) room = config::Parallel::kWorstRoom;
  const auto plan_with = [&](const config::Run& other, double some) {
    model.parameters().place(
        placement_of(mesh, other.parallel.zero, sums_beside_backward(other, mesh.all.size(), device)));
    return plan_memory(model, other, mesh, some, device);
  };
  // On a CPU pages that nobody touches cost nothing. On a device there is room for what fits.
  if (device != Device::cpu && available.bytes && run.parallel.expert_room == config::Parallel::kAutoRoom &&
      mesh.expert.size() > 1)
    room = largest_room(mesh, [&](double some) {
      return static_cast<double>(plan_with(run, some).before_workspace()) <=
             kUsableOfDevice * static_cast<double>(*available.bytes);
    });
  const MemoryPlan plan = plan_with(run, room);
  if (planned) planned(model, plan, available);
  check_fits_everywhere(plan, available, device, parallel::describe_rank(world, device), mesh.all, [&] {
    return what_fits([&](const config::Run& other) { return plan_with(other, room); }, run, mesh.all.size(),
                     *available.bytes, device);
  });
  return plan;
}

// The sum of the losses of each sequence, in double.
std::vector<double> sums_of_sequences(const Tensor& losses, std::int64_t seq_len) {
  std::vector<double> sums;
  for (const float* loss = losses.as<float>(); loss < losses.as<float>() + losses.numel(); loss += seq_len)
    sums.push_back(std::accumulate(loss, loss + seq_len, 0.0));
  return sums;
}

double sum_of(std::span<const double> values) { return std::accumulate(values.begin(), values.end(), 0.0); }

}  // namespace

Step::Step(const config::Run& run, const TrainingData& data, parallel::World& world, Device device,
           const Planned& planned)
    : run_(run),
      data_(data),
      transport_(*world.transport),
      mesh_(parallel::make_mesh(world, static_cast<int>(run.parallel.expert), device,
                                run.parallel.sums == config::Sums::library, run.parallel.symmetric_memory)),
      mine_(micro_batches_of(run.train, world.rank(), world.size())),
      ctx_(device),
      model_(run.model, run.router, model::dtype_of(run.train.dtype, device), true),
      memory_(checked_plan(model_, run, mesh_, world, device, planned)),
      gradient_sums_(model_.parameters(), mesh_, run.parallel.zero,
                     sums_beside_backward(run, world.size(), device)),
      optimizer_(run.train, model_.parameters(), mesh_, run.parallel.zero, device),
      buffers_(run.train.micro_batch_size, run.train.seq_len, data.begin_token, run.model.sliding_window,
               device, mine_.run),
      domain_MB_(static_cast<std::size_t>(mine_.run),
                 std::vector<std::size_t>(static_cast<std::size_t>(run.train.micro_batch_size))),
      window_(static_cast<std::size_t>(run.train.seq_len) + 1),
      loss_MT_(device, {mine_.run, micro_tokens()}),
      mtp_loss_MKT_(device, {mine_.run, model_.n_mtp_depths(), micro_tokens()}),
      count_MLBE_(device,
                  {mine_.run, model_.routing().n_layers(), run.train.micro_batch_size, run.model.num_experts}),
      dropped_ML_(device, {mine_.run, model_.routing().n_layers()}),
      figure_M3_(device, {mine_.run, kFigures}),
      grad_squares_1_(device, {1}) {
  ctx_.attention = run.train.attention;
  ctx_.matmul = model::matmul_type_of(run.train.dtype);
  ctx_.e4m3_layers = run.train.dtype == config::ComputeType::fp8;
  ops::open_stream(ctx_);
  if (world.rank() == 0 && ctx_.e4m3_layers && !ops::has_fast_matmul(MatmulType::e4m3, ctx_.device))
    log_warning(
        "train.dtype is \"fp8\", but a CPU has no FP8 products: operands are rounded and multiplied in "
        "float32, "
        "which is slower than \"float32\"");
  else if (world.rank() == 0 && !ops::has_fast_matmul(ctx_.matmul, ctx_.device))
    log_warning(
        "train.dtype is \"bfloat16\", but this processor has no fast bfloat16 products (Intel's are those of "
        "AMX, "
        "AMD's of AVX-512): operands are rounded and multiplied in float32, which is no faster than "
        "\"float32\"");
  take_memory();
}

void Step::take_memory() {
  mark("memory of the model");
  if (is_symmetric()) model_.parameters().take_at_least(largest_of_ranks(model_.parameter_bytes()));
  model_.allocate(ctx_.device);
  const std::int64_t n_depths = model_.n_mtp_depths();
  micro_figures_ = allocate_aligned(kFigures * size_of(DType::f64), "losses", ctx_.device);
  figure_3_ = Tensor(micro_figures_.get(), Shape{kFigures}, DType::f64, ctx_.device);
  micro_losses_ =
      allocate_aligned((1 + n_depths) * micro_tokens() * size_of(DType::f32), "losses", ctx_.device);
  const Tensor losses(micro_losses_.get(), Shape{(1 + n_depths) * micro_tokens()}, DType::f32, ctx_.device);
  loss_T_ = losses.slice(0, micro_tokens());
  mtp_loss_KT_ =
      losses.slice(micro_tokens(), n_depths * micro_tokens()).reshape(Shape{n_depths, micro_tokens()});
  model_.plan(run_.train.micro_batch_size, run_.train.seq_len, ctx_, run_.train.recompute);
  if (!run_.train.same_bits) return;
  std::int64_t bytes = 0;
  for (const Tensor& sum : sums_of_micro_batches(true)) bytes += sum.nbytes();
  for (std::int64_t i = 0; i < waiting_halves(mine_.run); ++i)
    halves_.push_back(allocate_aligned(bytes, "gradients of halves", ctx_.device));
}

std::vector<Tensor> Step::sums_of_micro_batches(bool with_counts) const {
  const router::RoutingStep& routing = model_.routing();
  std::vector<Tensor> sums = {model_.parameters().sum_of_grads()};
  if (with_counts && routing.n_layers() > 0) sums.push_back(routing.global_sums());
  if (routing.gradient_sums().defined()) sums.push_back(routing.gradient_sums());
  return sums;
}

void Step::rehearse(bool evaluates) {
  const std::vector<double> mtp_dloss_K(static_cast<std::size_t>(model_.n_mtp_depths()));
  const model::Batch batch = load_micro_batch(0);
  if (mine_.run > 1 && gradient_sums_.in_backward(false) != gradient_sums_.in_backward(true))
    do_micro_batch(batch, false, false, mtp_dloss_K);
  do_micro_batch(batch, true, false, mtp_dloss_K);
  ops::synchronise(ctx_);  // a kernel that fails does so here, and the staging memory is free again
  if (mesh_.all.size() > 1) {
    rehearse_rest(evaluates);
    ops::synchronise(ctx_);
  }
  if (is_symmetric()) {
    ctx_.scratch.settle(largest_of_ranks(ctx_.scratch.peak()));
    ctx_.beside.scratch.settle(largest_of_ranks(ctx_.beside.scratch.peak()));
    parallel::register_memory(mesh_);
  } else {
    ctx_.scratch.settle();
  }
  memory_.workspace = memory_.first_workspace = ctx_.scratch.reserved() + ctx_.beside.scratch.reserved();
  exchange_seconds();  // which are not the run's
  ops::expect_no_new_kernels();
}

// What it writes is written before it is next read, but for what routers keep: that is put back. Weights and
// moments stay as they are, since the norm of the gradient is not a number.
void Step::rehearse_rest(bool evaluates) {
  ParameterStore& parameters = model_.parameters();
  router::RoutingStep& routing = model_.routing();
  const std::vector<double> mtp_dloss_K(static_cast<std::size_t>(model_.n_mtp_depths()));
  model::Batch batch = load_micro_batch(0);
  if ((needs_global_sums() && mine_.run > 1) || routing.settle_tokens() > 0) {
    do_or_replay(count_step_, [&] { count_micro_batch(batch); });
    forward_backward(batch, true, gradient_sums_.in_backward(true), mtp_dloss_K);
  }
  keep_results(0);
  for_each_micro_batch(sums_of_micro_batches(true), [](std::int64_t) {});
  routing.begin(ctx_);
  sum_routing_over_ranks();
  sum_gradient_sums_over_ranks();
  gradient_sums_.sum_rest(ctx_);
  optimizer_.measure(parameters, grad_squares_1_.on_device(), ctx_);
  std::vector<HostCopy> kept;
  for (std::size_t i = 0; i < parameters.rows().size(); ++i)
    if (parameters.is_here(i) && !parameters.rows()[i].trained) kept.emplace_back(parameters.value(i));
  grad_squares_1_.values[0] = std::numeric_limits<double>::quiet_NaN();
  copy(grad_squares_1_.on_device(), grad_squares_1_.on_host());
  update(0, 1);
  for (const HostCopy& row : kept) row.write_back();
  (void)weights_are_finite();
  if (mesh_.expert.size() > 1 && memory_.expert_room < mesh_.expert.size()) {
    model_.set_rounds(2);
    forward_backward(batch, false, gradient_sums_.in_backward(true), mtp_dloss_K);
    model_.set_rounds(1);
  }
  if (!evaluates) return;
  batch.training = false;
  const AsEvaluated as_evaluated(ctx_);
  model_.forward(batch, ctx_);
  model_.loss(loss_T_, batch, ctx_);
}

bool Step::is_symmetric() const {
  return run_.parallel.symmetric_memory && ctx_.device != Device::cpu && mesh_.all.size() > 1;
}
std::int64_t Step::largest_of_ranks(std::int64_t bytes) const {
  const auto mine = static_cast<double>(bytes);  // far below 2^53
  const std::vector<double> of_ranks = mesh_.all.gather_numbers(std::span(&mine, 1));
  return static_cast<std::int64_t>(*std::max_element(of_ranks.begin(), of_ranks.end()));
}

double Step::exchange_seconds() {
  const double now = ops::exchange_seconds(ctx_.device);
  return now - std::exchange(exchange_seconds_before_, now);
}

// This rank's part of the global batch: neighbouring samples, so that any number of ranks trains on the same.
void Step::read_data(std::int64_t step, std::uint64_t first_sample) {
  const std::int64_t B = run_.train.micro_batch_size;
  for (std::int64_t micro = 0; micro < mine_.run; ++micro) {
    const std::int64_t first = (mine_.first + micro) * B;  // in the global batch
    buffers_.set_rng_offset(step, first, micro);
    for (std::int64_t b = 0; b < B; ++b) {
      if (micro >= mine_.count) {
        buffers_.set_sequence(b, {}, micro);
        continue;
      }
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
  for (std::int64_t micro = 0; micro < mine_.run; ++micro)
    for (std::size_t k = 0; k < count_K.size(); ++k)
      count_K[k] += static_cast<double>(
          model::mtp_target_count(buffers_.on_host(micro), static_cast<std::int64_t>(k) + 1));
  mesh_.all.sum_numbers(count_K);
  return count_K;
}

// The counts of the whole global batch before the first backward pass needs them. With one micro-batch its own
// forward pass gives them; with several, all are run forward once more: exact, for a third more work.
void Step::count_global_batch() {
  for_each_micro_batch(std::array{model_.routing().global_sums()}, [&](std::int64_t micro) {
    const model::Batch batch = load_micro_batch(micro);
    do_or_replay(count_step_, [&] { count_micro_batch(batch); });
  });
  sum_routing_over_ranks();
}

void Step::count_micro_batch(const model::Batch& batch) {
  model_.forward(batch, ctx_);
  model_.forward_mtp(batch, ctx_);
  model_.routing().add_micro_batch(ctx_);
}

void Step::for_each_micro_batch(std::span<const Tensor> sums,
                                const std::function<void(std::int64_t)>& micro_step) {
  if (run_.train.same_bits) return add_by_halves(0, mine_.run, 0, sums, micro_step);
  for (const Tensor& sum : sums) ops::fill_zero(sum, ctx_);
  for (std::int64_t micro = 0; micro < mine_.run; ++micro) micro_step(micro);
}

void Step::add_by_halves(std::int64_t first, std::int64_t last, std::size_t depth, std::span<const Tensor> sums,
                         const std::function<void(std::int64_t)>& micro_step) {
  if (last - first == 1) {
    for (const Tensor& sum : sums) ops::fill_zero(sum, ctx_);
    return micro_step(first);
  }
  const std::int64_t middle = first + (last - first + 1) / 2;
  const auto for_each_kept = [&](const auto& f) {
    std::byte* memory = halves_[depth].get();
    for (const Tensor& sum : sums) {
      f(Tensor(memory, sum.shape(), sum.dtype(), sum.device()), sum);
      memory += sum.nbytes();
    }
  };
  add_by_halves(first, middle, depth + 1, sums, micro_step);
  for_each_kept([&](const Tensor& kept, const Tensor& sum) { ops::copy(kept, sum, ctx_); });
  add_by_halves(middle, last, depth + 1, sums, micro_step);
  for_each_kept([&](const Tensor& kept, const Tensor& sum) {
    ops::sum_by_halves(sum, {}, std::array{kept, sum}, ctx_);
  });
}

void Step::do_or_replay(Recorded& recorded, const std::function<void()>& work) {
  if (!steps_are_alike() || model_.in_rounds()) return work();
  const bool was_recorded = recorded.replay.n_recorded() > 0;
  const auto sent = [&] { return transport_.counts().sent_bytes; };
  const auto before = sent();
  const auto counted_work = [&] {
    const auto before_work = sent();
    work();
    for (std::size_t kind = 0; kind < parallel::kTrafficKinds; ++kind)
      recorded.sent_bytes[kind] = sent()[kind] - before_work[kind];
  };
  recorded.replay.run(ctx_, std::ref(counted_work), mesh_.all.size() == 1);
  // What is replayed sends without saying so, and a recording that fails says so without sending.
  for (std::size_t kind = 0; kind < parallel::kTrafficKinds; ++kind)
    transport_.count_sent(static_cast<parallel::Traffic>(kind),
                          recorded.sent_bytes[kind] - (sent()[kind] - before[kind]));
  if (!was_recorded && recorded.replay.n_recorded() > 0 && mesh_.all.place() == 0)
    log_info(fmt::format("a micro-batch is replayed as a CUDA graph of {} operations",
                         recorded.replay.n_recorded()));
}

void Step::sum_routing_over_ranks() {
  if (model_.routing().n_layers() > 0)
    mesh_.all.sum(model_.routing().global_sums(), parallel::Traffic::sums, ctx_);
}

void Step::sum_gradient_sums_over_ranks() {
  if (model_.routing().gradient_sums().defined())
    mesh_.all.sum(model_.routing().gradient_sums(), parallel::Traffic::sums, ctx_);
}

void Step::do_micro_batch(const model::Batch& batch, bool is_last, bool count_first,
                          std::span<const double> mtp_dloss_K) {
  const bool sum_layers = gradient_sums_.in_backward(is_last);
  do_or_replay(sum_layers ? summing_step_ : micro_step_,
               [&] { forward_backward(batch, count_first, sum_layers, mtp_dloss_K); });
}

void Step::forward_backward(const model::Batch& batch, bool count_first, bool sum_layers,
                            std::span<const double> mtp_dloss_K) {
  router::RoutingStep& routing = model_.routing();
  model_.forward(batch, ctx_);
  model_.forward_mtp(batch, ctx_);
  if (!count_first) {
    routing.add_micro_batch(ctx_);
    if (routing.needs_global_sums()) sum_routing_over_ranks();
  }
  ops::fill_zero(figure_3_, ctx_);
  routing.add_losses(figure_3_, batch.tokens_B,
                     {.n_tokens = batch_tokens(), .n_sequences = run_.train.global_batch_size}, ctx_);
  const model::MtpLoss mtp{mtp_loss_KT_, mtp_dloss_K};
  LayerSums sums(gradient_sums_, ctx_);
  model_.loss_and_backward(loss_T_, batch, 1.0 / static_cast<double>(batch_tokens()), ctx_, &mtp,
                           sum_layers ? sums.calls() : model::BackwardCalls{});
  sums.join();
}

// What one micro-batch has written, beside that of the others.
void Step::keep_results(std::int64_t micro) {
  const auto keep = [&](const Tensor& of_step_M, const Tensor& of_micro) {
    if (of_micro.numel() > 0) ops::copy(of_step_M.slice(micro, 1).reshape(of_micro.shape()), of_micro, ctx_);
  };
  keep(loss_MT_.on_device(), loss_T_);
  keep(mtp_loss_MKT_.on_device(), mtp_loss_KT_);
  keep(figure_M3_.on_device(), figure_3_);
  if (const router::RoutingStep& routing = model_.routing(); routing.n_layers() > 0) {
    keep(count_MLBE_.on_device(), routing.counts().count_LBE);
    keep(dropped_ML_.on_device(), routing.counts().dropped_L);
  }
}

// What the step has written on the device: the one place where the host waits for it. Then the sums of ranks:
// losses by sequence, in the order of the global batch, so that they are the same numbers on any number of
// ranks.
StepResult Step::read_back(std::span<const double> mtp_share_K) {
  loss_MT_.read_back();
  mtp_loss_MKT_.read_back();
  count_MLBE_.read_back();
  dropped_ML_.read_back();
  figure_M3_.read_back();
  grad_squares_1_.read_back();
  count_windows();
  const router::RoutingStep& routing = model_.routing();
  const std::int64_t n_depths = model_.n_mtp_depths();
  StepResult result{.load = LoadCounts(routing.n_layers(), std::max<std::int64_t>(1, run_.model.num_experts),
                                       static_cast<std::int64_t>(data_.train.size()))};
  // Sums of micro-batch and sequence; of a depth, micro-batch and sequence.
  std::vector<double> loss_MB = sums_of_sequences(loss_MT_.on_host(), run_.train.seq_len);
  const std::vector<double> mtp_loss_MKB = sums_of_sequences(mtp_loss_MKT_.on_host(), run_.train.seq_len);
  for (std::int64_t micro = 0; micro < mine_.run; ++micro) {
    if (routing.n_layers() > 0)
      result.load.add(count_MLBE_.on_host().slice(micro, 1).reshape(routing.counts().count_LBE.shape()),
                      dropped_ML_.on_host().slice(micro, 1).reshape(routing.counts().dropped_L.shape()),
                      domain_MB_[static_cast<std::size_t>(micro)]);
    result.tokens += model::count_tokens(buffers_.on_host(micro));
  }
  // Token counts are far below the 2^53 up to which doubles are exact.
  std::array<double, 2> counts = {static_cast<double>(result.tokens.tokens),
                                  static_cast<double>(result.tokens.keys)};
  mesh_.all.sum_numbers(counts);
  result.tokens = {static_cast<std::int64_t>(counts[0]), static_cast<std::int64_t>(counts[1])};
  Context host;
  if (routing.n_layers() > 0) mesh_.all.sum(result.load.sums(), parallel::Traffic::sums, host);

  result.loss = sum_of(mesh_.all.gather_numbers(loss_MB)) / static_cast<double>(batch_tokens());
  const std::vector<double> mtp_loss = mesh_.all.gather_numbers(mtp_loss_MKB);
  const auto B = static_cast<std::size_t>(run_.train.micro_batch_size);
  for (std::size_t at = 0; at < mtp_loss.size(); at += B)
    result.mtp_loss +=
        mtp_share_K[at / B % static_cast<std::size_t>(n_depths)] * sum_of(std::span(mtp_loss).subspan(at, B));
  const std::vector<double> figures = mesh_.all.gather_numbers(figure_M3_.values);
  for (std::size_t at = 0; at < figures.size(); at += kFigures) {
    result.balance_loss += figures[at + kBalance];
    result.z_loss += figures[at + kZ];
    result.router_loss += figures[at + kRouter];
  }
  result.grad_norm = std::sqrt(grad_squares_1_.values[0]);
  return result;
}

// All micro-batches forward and backward: gradients, and the sums of routing if no gradient needs them first.
void Step::run_micro_batches(std::span<const double> mtp_dloss_K) {
  router::RoutingStep& routing = model_.routing();
  // Whether a gradient needs sums over the whole global batch that one forward pass does not give.
  const bool count_first = needs_global_sums() && mine_.run > 1;
  routing.begin(ctx_);
  if (count_first) count_global_batch();
  for_each_micro_batch(sums_of_micro_batches(!count_first), [&](std::int64_t micro) {
    const model::Batch batch = load_micro_batch(micro);
    do_micro_batch(batch, micro + 1 == mine_.run, count_first, mtp_dloss_K);
    keep_results(micro);
  });
}

bool Step::needs_global_sums() const {
  return model_.routing().n_layers() > 0 && model_.routing().needs_global_sums();
}

StepResult Step::compute(std::int64_t step, std::uint64_t first_sample) {
  ParameterStore& parameters = model_.parameters();
  const std::int64_t n_depths = model_.n_mtp_depths();
  read_data(step, first_sample);
  // A depth's mean is over the positions that have a target; one without any (all documents are short) adds
  // nothing.
  std::vector<double> mtp_share_K = count_mtp_targets(), mtp_dloss_K;
  for (double& share : mtp_share_K) {
    share = share > 0 ? 1.0 / (share * static_cast<double>(n_depths)) : 0.0;
    mtp_dloss_K.push_back(run_.train.mtp_loss_coef * share);
  }
  std::optional<StepResult> result;
  const auto finish = [&] {
    mark("sum of gradients");
    gradient_sums_.sum_rest(ctx_);
    if (!needs_global_sums()) sum_routing_over_ranks();
    sum_gradient_sums_over_ranks();
    optimizer_.measure(parameters, grad_squares_1_.on_device(), ctx_);
    result.emplace(read_back(mtp_share_K));
  };
  // A device is waited for once a step: there it is finished before anyone knows whether all rows had room.
  const bool on_device = ctx_.device != Device::cpu;
  const ExpertNeed experts = in_rounds(model_, micro_tokens(), mesh_.all, ctx_, [&] {
    run_micro_batches(mtp_dloss_K);
    if (on_device) finish();
  });
  if (!on_device) finish();
  result->experts = experts;
  result->exchange_seconds = exchange_seconds();
  if (ctx_.device == Device::cpu) ctx_.scratch.settle();  // a device's graphs keep what rehearse() settled
  return *result;
}

void Step::update(double lr, std::int64_t n) {
  mark("optimizer");
  optimizer_.update(model_.parameters(), grad_squares_1_.on_device(), lr, n, ctx_);
  model_.routing().after_step(ctx_);
}

void Step::settle_routers(std::int64_t step, std::uint64_t first_sample) {
  router::RoutingStep& routing = model_.routing();
  const std::int64_t batches = (routing.settle_tokens() + batch_tokens() - 1) / batch_tokens();
  for (std::int64_t i = 0; i < batches; ++i) {
    mark("settling of routers", i);
    read_data(step, first_sample + static_cast<std::uint64_t>(i * run_.train.global_batch_size));
    in_rounds(model_, micro_tokens(), mesh_.all, ctx_, [&] {
      routing.begin(ctx_);
      count_global_batch();
    });
    routing.settle(static_cast<double>(i) / static_cast<double>(i + 1), ctx_);
    ops::synchronise(ctx_);  // the staging memory is free again
  }
  if (batches > 0) count_windows();
}

void Step::count_windows() {
  const Tensor bytes_1 = model_.window_bytes_1();
  if (!bytes_1.defined()) return;
  transport_.count_sent(parallel::Traffic::tokens,
                        static_cast<std::int64_t>(HostCopy(bytes_1)->as<double>()[0]));
  ops::fill_zero(bytes_1, ctx_);
}

bool Step::weights_are_finite() const {
  Context ctx(ctx_.device);
  return !mesh_.all.any(!std::isfinite(ops::sum_of_squares(model_.parameters().values(), ctx)));
}

// What the first rank that has found something says.
std::string Step::first_finding(const std::string& mine, const std::string& nothing) const {
  for (const std::string& finding : mesh_.all.gather_text(mine))
    if (!finding.empty()) return finding;
  return nothing;
}

std::string Step::cause_of_loss() const {
  Context ctx(ctx_.device);
  const ParameterStore& parameters = model_.parameters();
  std::string where;
  for (const RowPiece& piece : parameters.held(RowArray::value))
    if (where.empty() && !std::isfinite(ops::sum_of_squares(piece.tensor_N, ctx)))
      where = "the weights of " + parameters.rows()[piece.row].name;
  if (where.empty())
    model_.visit_activations([&](std::int64_t layer, const std::string& name, const Tensor& tensor) {
      if (!where.empty() || std::isfinite(ops::sum_of_squares(tensor, ctx))) return;
      where = layer < 0 ? name : fmt::format("layer {}, {}", layer, name);
    });
  return first_finding(where, "the logits of lm_head");
}

std::string Step::cause_of_gradient() const {
  Context ctx(ctx_.device);
  const ParameterStore& parameters = model_.parameters();
  const std::vector<RowPiece> pieces = parameters.owned(RowArray::gradient);
  std::string where;
  for (auto piece = pieces.rbegin(); piece != pieces.rend() && where.empty();
       ++piece)  // as the backward pass goes
    if (!std::isfinite(ops::sum_of_squares(piece->tensor_N, ctx))) where = parameters.rows()[piece->row].name;
  return first_finding(where, "none alone, only the sum of all overflows");
}

}  // namespace switchyard::train
