#include "plan/cpu_step.h"

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <numeric>
#include <string_view>
#include <utility>

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

constexpr int kFewestPasses = 5;
constexpr std::int64_t kMiB = std::int64_t{1} << 20;

// A part of a step that is timed, pass after pass.
class Piece {
 public:
  explicit Piece(const CpuStepSettings& settings, double share = 1)
      : now_(settings.now), at_least_(share * settings.seconds) {}
  virtual ~Piece() = default;
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;
  virtual void pass() = 0;

  bool is_done() const { return n_passes_ >= kFewestPasses && spent_ >= at_least_; }
  double share() const { return spent_ / at_least_; }  // of its time
  void timed_pass() {
    const double start = now_();
    pass();
    spent_ += now_() - start;
    ++n_passes_;
  }

 protected:
  double (*const now_)();

 private:
  double at_least_, spent_ = 0;  // seconds
  int n_passes_ = 0;
};

// Always the one that lags behind, so that the passes of each are spread over all of the time: what disturbs
// the machine for a moment is then in few passes of each piece, which their medians leave out, and not in most
// of one's.
void time_in_turns(const std::vector<std::unique_ptr<Piece>>& pieces) {
  while (true) {
    Piece* next = nullptr;
    for (const std::unique_ptr<Piece>& piece : pieces)
      if (!piece->is_done() && (next == nullptr || piece->share() < next->share())) next = piece.get();
    if (next == nullptr) return;
    next->timed_pass();
  }
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
class Layers : public Piece {
 public:
  Layers(const config::Run& run, const std::vector<config::LayerSpec>& layers, std::int64_t n_seq,
         const CpuStepSettings& settings)
      : Piece(settings),
        n_layers_(std::ssize(layers)),
        n_seq_(n_seq),
        n_tokens_(n_seq * run.train.seq_len),
        model_(config_of(run, layers), run.router, DType::f32, true),
        ctx_(context_of(run)),
        tokens_(n_seq, run.train.seq_len, std::min(kWords, run.model.vocab_size), run.model.sliding_window),
        loss_(static_cast<std::size_t>(n_tokens_)),
        forward_(ctx_, now_),
        backward_(ctx_, now_) {
    model_.allocate();
    model_.parameters().initialise(1);
    // Of a block that is made again nothing else changes: that is counted by whoever calls.
    const auto recompute =
        run.train.recompute == config::Recompute::swiglu ? run.train.recompute : config::Recompute::none;
    model_.plan(n_seq, run.train.seq_len, ctx_, recompute);
    forward();
    backward();
    ctx_.scratch.settle();
  }

  void pass() override {
    forward_.time(ctx_, [&] { forward(); });
    backward_.time(ctx_, [&] { backward(); });
  }

  LayerTime time() const { return {forward_.of_one(n_layers_), backward_.of_one(n_layers_)}; }

 private:
  static constexpr std::int64_t kWords = 256;

  static config::Model config_of(const config::Run& run, const std::vector<config::LayerSpec>& layers) {
    config::Model config = run.model;
    config.layers = layers;
    config.num_hidden_layers = std::ssize(layers);
    config.num_nextn_predict_layers = 0;
    config.vocab_size = std::min(kWords, config.vocab_size);
    return config;
  }

  void forward() { model_.forward(tokens_.batch(), ctx_); }
  void backward() {
    const Tensor loss_T(loss_.data(), Shape{n_tokens_}, DType::f32),
        loss_3(losses_.data(), Shape{3}, DType::f64);
    model_.routing().begin(ctx_);
    model_.routing().add_micro_batch(ctx_);
    model_.routing().add_losses(loss_3, tokens_.batch().tokens_B,
                                {.n_tokens = n_tokens_, .n_sequences = n_seq_}, ctx_);
    model_.loss_and_backward(loss_T, tokens_.batch(), 1.0 / static_cast<double>(n_tokens_), ctx_);
  }

  // One half of a pass, over all passes.
  class Half {
   public:
    Half(Context& ctx, double (*now)()) : now_(now), profile_(ctx, now, 0) {}
    template <class Work>
    void time(Context& ctx, const Work& work) {
      const double start = now_();
      ctx.profile = &profile_;
      profile_.begin_step();
      work();
      profile_.end_step();
      ctx.profile = nullptr;
      seconds_.push_back(now_() - start);
    }
    // By parts as the mean is, as long as the median.
    CpuStep of_one(std::int64_t n_layers) const {
      const double sum = std::accumulate(seconds_.begin(), seconds_.end(), 0.0);
      CpuStep step = parts_of(profile_, static_cast<double>(n_layers) * sum / quantile_of(seconds_, 0.5));
      step.output = 0;
      return step;
    }

   private:
    double (*now_)();
    ops::Profile profile_;
    std::vector<double> seconds_;
  };

  std::int64_t n_layers_, n_seq_, n_tokens_;
  model::Transformer model_;
  Context ctx_;
  RandomBatch tokens_;
  std::vector<float> loss_;
  std::array<double, 3> losses_{};
  Half forward_, backward_;
};

// A piece that is one call of a few operators.
class Call : public Piece {
 public:
  Call(const CpuStepSettings& settings, double share, std::function<void()> work)
      : Piece(settings, share), work_(std::move(work)) {
    work_();  // kernels are made, memory is touched
  }
  void pass() override {
    const double start = now_();
    work_();
    seconds_.push_back(now_() - start);
  }
  double seconds() const { return quantile_of(seconds_, 0.5); }

 private:
  std::function<void()> work_;
  std::vector<double> seconds_;
};

// A piece of the output layer, and how many of it a micro-batch has.
std::pair<std::unique_ptr<Call>, double> output_piece(const config::Run& run, const CpuStepSettings& settings) {
  constexpr std::int64_t kMostBytes = 256 * kMiB;  // of the weights and their gradient
  const std::int64_t D = run.model.hidden_size, V = run.model.vocab_size;
  const std::int64_t T = run.train.micro_batch_size * run.train.seq_len;
  const std::int64_t rows = ops::cpu::classifier_chunk_rows(T, V);
  const std::int64_t words = std::min(V, std::max<std::int64_t>(1, kMostBytes / (2 * D * size_of(DType::f32))));
  const std::int64_t n = 2 * words * D + 2 * rows * D;
  struct State {
    AlignedBuffer memory;
    std::vector<float> loss;
    std::vector<std::int32_t> target;
    Context ctx;
  };
  const auto state = std::make_shared<State>(
      State{.memory = allocate_aligned(n * size_of(DType::f32), "an output layer to time"),
            .loss = std::vector<float>(static_cast<std::size_t>(rows)),
            .target = std::vector<std::int32_t>(static_cast<std::size_t>(rows)),
            .ctx = context_of(run)});
  auto* const values = reinterpret_cast<float*>(state->memory.get());
  for (std::int64_t i = 0; i < n; ++i) values[i] = 0.01f * static_cast<float>(i % 97 - 48);
  const Tensor weight_VD(values, Shape{words, D}, DType::f32),
      dweight_VD(values + words * D, Shape{words, D}, DType::f32),
      x_TD(values + 2 * words * D, Shape{rows, D}, DType::f32),
      dx_TD(values + 2 * words * D + rows * D, Shape{rows, D}, DType::f32);
  for (std::size_t t = 0; t < state->target.size(); ++t)
    state->target[t] = static_cast<std::int32_t>(static_cast<std::int64_t>(t) * 7919 % words);
  const Tensor loss_T(state->loss.data(), Shape{rows}, DType::f32),
      target_T(state->target.data(), Shape{rows}, DType::i32);
  const double times =
      static_cast<double>(T) / static_cast<double>(rows) * static_cast<double>(V) / static_cast<double>(words);
  return {std::make_unique<Call>(settings, 1,
                                 [=] {
                                   ops::cpu::classifier_forward_backward_in_chunks(loss_T, dx_TD, dweight_VD,
                                                                                   x_TD, weight_VD, target_T,
                                                                                   1e-3, rows, state->ctx);
                                 }),
          times};
}

// A part of the update of all parameters, and how many of it there are.
std::pair<std::unique_ptr<Call>, double> optimizer_piece(const config::Run& run, std::int64_t parameters,
                                                         const CpuStepSettings& settings) {
  constexpr std::int64_t kMost = std::int64_t{16}
                                 << 20;  // four arrays of it are far larger than a core's caches
  const std::int64_t n = std::min(parameters, kMost);
  struct State {
    AlignedBuffer memory;
    double scale;
    Context ctx;
  };
  const auto state = std::make_shared<State>(
      State{.memory = allocate_aligned(4 * n * size_of(DType::f32), "an update to time"),
            .scale = 1,
            .ctx = context_of(run)});
  fill_bytes(state->memory.get(), 0, 4 * n * size_of(DType::f32), Device::cpu);
  const auto array = [&](std::int64_t i) {
    return Tensor(state->memory.get() + i * n * size_of(DType::f32), Shape{n}, DType::f32);
  };
  const Tensor value_N = array(0), moment1_N = array(1), moment2_N = array(2), gradient_N = array(3),
               scale_1(&state->scale, Shape{1}, DType::f64);
  const ops::AdamWStep numbers{
      .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .step = 1};
  return {std::make_unique<Call>(settings, 0.5,
                                 [=] {
                                   ops::fill_zero(gradient_N, state->ctx);
                                   (void)ops::sum_of_squares(gradient_N, state->ctx);
                                   ops::adamw_update(value_N, moment1_N, moment2_N, gradient_N, scale_1,
                                                     numbers, {}, state->ctx);
                                 }),
          static_cast<double>(parameters) / static_cast<double>(n)};
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
  std::vector<std::unique_ptr<Piece>> pieces;
  std::vector<const Layers*> layers;
  for (auto& [layer, times] : kinds) {
    if (layer == m.layers.back()) times += depths;  // a depth of multi-token prediction is such a layer, nearly
    const std::vector<config::LayerSpec> some(times > 1 ? 2 : 1, layer);
    auto piece = std::make_unique<Layers>(run, some, n_seq, settings);
    layers.push_back(piece.get());
    pieces.push_back(std::move(piece));
  }
  auto [output_call, outputs] = output_piece(run, settings);
  auto [optimizer_call, updates] = optimizer_piece(run, whole.parameters().count(), settings);
  const Call &output = *output_call, &optimizer = *optimizer_call;
  pieces.push_back(std::move(output_call));
  pieces.push_back(std::move(optimizer_call));
  time_in_turns(pieces);

  for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
    const auto& [layer, times] = kinds[kind];
    const LayerTime time = layers[kind]->time();
    // The last layer's activations are still there when its backward pass begins.
    const double again = run.train.recompute != config::Recompute::block ? 0
                         : layer == m.layers.back()                      ? times - 1
                                                                         : times;
    add(step, time.forward, micro_batches * of_sequences * (times + again + (counts_first ? times : 0)));
    add(step, time.backward, micro_batches * of_sequences * times);
  }
  step.output = micro_batches * (1 + depths) * outputs * output.seconds();
  step.optimizer = updates * optimizer.seconds();
  return step;
}

}  // namespace switchyard::plan
