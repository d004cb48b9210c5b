#include "plan/cpu_step.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <string_view>

#include "core/context.h"
#include "core/device_memory.h"
#include "core/rng.h"
#include "core/statistics.h"
#include "model/transformer.h"
#include "ops/adamw.h"
#include "ops/classifier.h"
#include "ops/elementwise.h"
#include "ops/profile.h"

namespace switchyard::plan {

namespace {

constexpr int kFewestPasses = 3;
constexpr std::int64_t kMiB = std::int64_t{1} << 20;

// Seconds of one call, the median of some, after one that does not count: kernels are made, memory is touched.
double seconds_of(const std::function<void()>& work, double at_least) {
  work();
  std::vector<double> seconds;
  const double begin = ops::steady_seconds();
  while (seconds.size() < kFewestPasses || ops::steady_seconds() - begin < at_least) {
    const double start = ops::steady_seconds();
    work();
    seconds.push_back(ops::steady_seconds() - start);
  }
  return quantile_of(seconds, 0.5);
}

// Of what an operator does, by its name.
double CpuStep::*part_of(std::string_view name) {
  if (name.starts_with("attention_")) return &CpuStep::attention;
  if (name.starts_with("grouped_")) return &CpuStep::experts;
  if (name.starts_with("linear_")) return &CpuStep::products;
  if (name.starts_with("classifier_")) return &CpuStep::output;
  constexpr std::string_view kPasses[] = {
      "outside operators", "rmsnorm_",     "rope_",           "qk_norm_rope_", "swiglu_", "expert_swiglu_",
      "moe_dispatch_",     "moe_combine_", "moe_permutation", "fill_zero",     "copy",    "add",
      "sum_by_halves",     "bias_",        "embedding_",      "shift_tokens",  "mla_"};
  const bool passes = std::any_of(std::begin(kPasses), std::end(kPasses), [&](std::string_view prefix) {
    return prefix.ends_with('_') ? name.starts_with(prefix) : name == prefix;
  });
  return passes ? &CpuStep::passes : &CpuStep::router;
}

void add(CpuStep& sum, const CpuStep& more, double times) {
  for (double CpuStep::*part : {&CpuStep::attention, &CpuStep::experts, &CpuStep::products, &CpuStep::output,
                                &CpuStep::router, &CpuStep::passes, &CpuStep::optimizer})
    sum.*part += times * (more.*part);
}

// A micro-batch of random tokens, without documents.
class RandomBatch {
 public:
  RandomBatch(std::int64_t n_seq, std::int64_t seq_len, std::int64_t vocab_size, std::int64_t window)
      : values_(static_cast<std::size_t>(3 * n_seq * seq_len + 2 + n_seq)) {
    const std::int64_t T = n_seq * seq_len;
    const auto part = [&](std::int64_t first, std::int64_t n) {
      return Tensor(values_.data() + first, Shape{n}, DType::i32);
    };
    batch_ = {.token_T = part(0, T),
              .target_T = part(T, T),
              .kv_begin_T = part(2 * T, T),
              .n_seq = n_seq,
              .seq_len = seq_len,
              .training = true,
              .seed = 1,
              .rng_offset_2 = part(3 * T, 2),
              .tokens_B = part(3 * T + 2, n_seq)};
    std::uint64_t state = 1;
    for (std::int64_t t = 0; t < T; ++t) {
      for (const std::int64_t at : {t, T + t}) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        values_[static_cast<std::size_t>(at)] =
            static_cast<std::int32_t>((state >> 33) % static_cast<std::uint64_t>(vocab_size));
      }
      values_[static_cast<std::size_t>(2 * T + t)] =
          static_cast<std::int32_t>(window > 0 ? std::max<std::int64_t>(0, t % seq_len - window + 1) : 0);
    }
    std::fill_n(values_.end() - n_seq, n_seq, static_cast<std::int32_t>(seq_len));
  }
  const model::Batch& batch() const { return batch_; }

 private:
  std::vector<std::int32_t> values_;
  model::Batch batch_;
};

// What operators have taken since the profile began, divided by `times`.
CpuStep parts_of(const ops::Profile& profile, double times) {
  CpuStep step;
  for (const ops::Profile::Row& row : profile.rows()) step.*part_of(row.name) += row.seconds / times;
  return step;
}

// Of one layer, and of one micro-batch.
struct LayerTime {
  CpuStep forward, backward;
};

Context context_of(const config::Run& run) {
  Context ctx;
  ctx.matmul = model::matmul_type_of(run.train.dtype);
  ctx.e4m3_layers = run.train.dtype == config::ComputeType::fp8;
  return ctx;
}

// A model of `layers`, which are alike, with a few words; without what the output layer takes.
LayerTime time_layers(const config::Run& run, const std::vector<config::LayerSpec>& layers, std::int64_t n_seq,
                      const CpuStepSettings& settings) {
  constexpr std::int64_t kWords = 256;
  config::Model config = run.model;
  config.layers = layers;
  config.num_hidden_layers = std::ssize(layers);
  config.num_nextn_predict_layers = 0;
  config.vocab_size = std::min(kWords, config.vocab_size);
  model::Transformer model(config, run.router, DType::f32, true);
  model.allocate();
  model.parameters().initialise(1);
  Context ctx = context_of(run);
  // Of a block that is made again nothing else changes: that is counted by whoever calls.
  const auto recompute =
      run.train.recompute == config::Recompute::swiglu ? run.train.recompute : config::Recompute::none;
  model.plan(n_seq, run.train.seq_len, ctx, recompute);
  const RandomBatch tokens(n_seq, run.train.seq_len, config.vocab_size, config.sliding_window);
  const std::int64_t T = n_seq * run.train.seq_len;
  std::vector<float> loss(static_cast<std::size_t>(T));
  std::array<double, 3> losses{};
  const Tensor loss_T(loss.data(), Shape{T}, DType::f32), loss_3(losses.data(), Shape{3}, DType::f64);
  ops::Profile forward(ctx, ops::steady_seconds, 0), backward(ctx, ops::steady_seconds, 0);
  std::vector<double> forward_seconds, backward_seconds;
  const auto timed = [&](ops::Profile& profile, std::vector<double>& seconds, bool counts, const auto& work) {
    const double start = ops::steady_seconds();
    if (counts) {
      ctx.profile = &profile;
      profile.begin_step();
    }
    work();
    if (counts) profile.end_step();
    ctx.profile = nullptr;
    if (counts) seconds.push_back(ops::steady_seconds() - start);
  };
  const auto pass = [&](bool counts) {
    timed(forward, forward_seconds, counts, [&] { model.forward(tokens.batch(), ctx); });
    timed(backward, backward_seconds, counts, [&] {
      model.routing().begin(ctx);
      model.routing().add_micro_batch(ctx);
      model.routing().add_losses(loss_3, tokens.batch().tokens_B, {.n_tokens = T, .n_sequences = n_seq}, ctx);
      model.loss_and_backward(loss_T, tokens.batch(), 1.0 / static_cast<double>(T), ctx);
    });
  };
  pass(false);
  ctx.scratch.settle();
  const double begin = ops::steady_seconds();
  while (forward_seconds.size() < kFewestPasses || ops::steady_seconds() - begin < settings.seconds) pass(true);
  // By parts as the mean is, as long as the median.
  const auto result = [&](const ops::Profile& profile, const std::vector<double>& seconds) {
    const auto n = static_cast<double>(seconds.size());
    const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / n;
    CpuStep step = parts_of(profile, n * static_cast<double>(layers.size()) * mean / quantile_of(seconds, 0.5));
    step.output = 0;
    return step;
  };
  return {result(forward, forward_seconds), result(backward, backward_seconds)};
}

// Of one micro-batch.
double time_output(const config::Run& run, const CpuStepSettings& settings) {
  constexpr std::int64_t kMostBytes = 256 * kMiB;  // of the weights and their gradient
  const std::int64_t D = run.model.hidden_size, V = run.model.vocab_size;
  const std::int64_t T = run.train.micro_batch_size * run.train.seq_len;
  const std::int64_t rows = ops::cpu::classifier_chunk_rows(T, V);
  const std::int64_t words = std::min(V, std::max<std::int64_t>(1, kMostBytes / (2 * D * size_of(DType::f32))));
  const std::int64_t n = 2 * words * D + 2 * rows * D;
  const AlignedBuffer memory = allocate_aligned(n * size_of(DType::f32), "an output layer to time");
  auto* const values = reinterpret_cast<float*>(memory.get());
  for (std::int64_t i = 0; i < n; ++i) values[i] = 0.01f * static_cast<float>(i % 97 - 48);
  const Tensor weight_VD(values, Shape{words, D}, DType::f32),
      dweight_VD(values + words * D, Shape{words, D}, DType::f32),
      x_TD(values + 2 * words * D, Shape{rows, D}, DType::f32),
      dx_TD(values + 2 * words * D + rows * D, Shape{rows, D}, DType::f32);
  std::vector<float> loss(static_cast<std::size_t>(rows));
  std::vector<std::int32_t> target(static_cast<std::size_t>(rows));
  for (std::size_t t = 0; t < target.size(); ++t)
    target[t] = static_cast<std::int32_t>(static_cast<std::int64_t>(t) * 7919 % words);
  const Tensor loss_T(loss.data(), Shape{rows}, DType::f32), target_T(target.data(), Shape{rows}, DType::i32);
  Context ctx = context_of(run);
  const double seconds = seconds_of(
      [&] {
        ops::cpu::classifier_forward_backward_in_chunks(loss_T, dx_TD, dweight_VD, x_TD, weight_VD, target_T,
                                                        1e-3, rows, ctx);
      },
      settings.seconds);
  return seconds * static_cast<double>(T) / static_cast<double>(rows) * static_cast<double>(V) /
         static_cast<double>(words);
}

// Of all parameters, once a step.
double time_optimizer(const config::Run& run, std::int64_t parameters, const CpuStepSettings& settings) {
  constexpr std::int64_t kMost = std::int64_t{16}
                                 << 20;  // four arrays of it are far larger than a core's caches
  const std::int64_t n = std::min(parameters, kMost);
  const AlignedBuffer memory = allocate_aligned(4 * n * size_of(DType::f32), "an update to time");
  fill_bytes(memory.get(), 0, 4 * n * size_of(DType::f32), Device::cpu);
  const auto array = [&](std::int64_t i) {
    return Tensor(memory.get() + i * n * size_of(DType::f32), Shape{n}, DType::f32);
  };
  double scale = 1;
  const Tensor scale_1(&scale, Shape{1}, DType::f64);
  Context ctx = context_of(run);
  const ops::AdamWStep numbers{
      .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .step = 1};
  const double seconds = seconds_of(
      [&] {
        ops::fill_zero(array(3), ctx);
        (void)ops::sum_of_squares(array(3), ctx);
        ops::adamw_update(array(0), array(1), array(2), array(3), scale_1, numbers, {}, ctx);
      },
      settings.seconds / 2);
  return seconds * static_cast<double>(parameters) / static_cast<double>(n);
}

}  // namespace

double CpuStep::total() const { return attention + experts + products + output + router + passes + optimizer; }

std::vector<std::pair<const char*, double>> CpuStep::parts() const {
  return {{"attention", attention}, {"experts", experts}, {"other products", products},
          {"output layer", output}, {"router", router},   {"passes", passes},
          {"optimizer", optimizer}};
}

CpuStep mean_of(const CpuStep& a, const CpuStep& b) {
  CpuStep mean;
  add(mean, a, 0.5);
  add(mean, b, 0.5);
  return mean;
}

CpuStep predict_cpu_step(const config::Run& run, const CpuStepSettings& settings) {
  const config::Model& m = run.model;
  const std::int64_t B = run.train.micro_batch_size;
  const std::int64_t n_seq = std::clamp<std::int64_t>(settings.most_tokens / run.train.seq_len, 1, B);
  const double of_sequences = static_cast<double>(B) / static_cast<double>(n_seq);
  const model::Transformer whole(m, run.router, DType::f32, true);
  const auto depths = static_cast<double>(whole.n_mtp_depths());
  const auto micro_batches = static_cast<double>(run.train.global_batch_size / B);
  const bool counts_first =
      micro_batches > 1 && whole.routing().n_layers() > 0 && whole.routing().needs_global_sums();

  // Layers of one kind are timed together: two at most, so that neither finds all of its weights in the caches.
  CpuStep step;
  std::vector<std::pair<config::LayerSpec, double>> kinds;
  for (const config::LayerSpec& layer : m.layers) {
    const auto found =
        std::find_if(kinds.begin(), kinds.end(), [&](const auto& kind) { return kind.first == layer; });
    found == kinds.end() ? (void)kinds.emplace_back(layer, 1) : (void)++found->second;
  }
  for (auto& [layer, times] : kinds) {
    if (layer == m.layers.back()) times += depths;  // a depth of multi-token prediction is such a layer, nearly
    const std::vector<config::LayerSpec> some(times > 1 ? 2 : 1, layer);
    const LayerTime time = time_layers(run, some, n_seq, settings);
    // The last layer's activations are still there when its backward pass begins.
    const double again = run.train.recompute != config::Recompute::block ? 0
                         : layer == m.layers.back()                      ? times - 1
                                                                         : times;
    add(step, time.forward, micro_batches * of_sequences * (times + again + (counts_first ? times : 0)));
    add(step, time.backward, micro_batches * of_sequences * times);
  }
  step.output = micro_batches * (1 + depths) * time_output(run, settings);
  step.optimizer = time_optimizer(run, whole.parameters().count(), settings);
  return step;
}

}  // namespace switchyard::plan
