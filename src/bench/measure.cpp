#include "bench/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <tuple>

#include "bench/random_tokens.h"
#include "config/config.h"
#include "config/router_schema.h"
#include "core/error.h"
#include "core/process_memory.h"
#include "core/statistics.h"
#include "generate/generator.h"
#include "model/transformer.h"
#include "ops/device.h"
#include "parallel/world.h"
#include "router/router.h"
#include "train/step.h"

namespace switchyard::bench {

namespace {

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// A model under test: as configured, or the static one beside it.
struct Variant {
  bool is_static = false;
  config::Run run;
};

std::vector<Variant> variants_of(const Subject& subject, const Settings& settings) {
  std::vector<Variant> variants = {{false, subject.run}};
  if (settings.static_k > 0) {
    variants.push_back({true, subject.run});
    std::tie(variants[1].run.model, variants[1].run.router) = static_model(subject.run, settings.static_k);
  }
  return variants;
}

// Every value that both models have, by name.
void copy_values(ParameterStore& to, const ParameterStore& from) {
  for (std::size_t i = 0; i < to.rows().size(); ++i) {
    const auto found = std::find_if(from.rows().begin(), from.rows().end(),
                                    [&](const Parameter& row) { return row.name == to.rows()[i].name; });
    SY_CHECK(found != from.rows().end(), "no {}", to.rows()[i].name);
    copy(to.value(i), from.value(static_cast<std::size_t>(found - from.rows().begin())));
  }
}

// Of the last forward pass: experts that its tokens went to, in all layers. Waits for a device.
double slots_of(const model::Transformer& model) {
  if (model.routing().n_layers() == 0) return 0;
  const HostCopy count_LBE(model.routing().counts().count_LBE);
  const std::int64_t n =
      count_LBE->numel() / model.routing().n_layers() * model.routing().n_main_layers();  // without prediction
  const std::int32_t* const count = count_LBE->as<std::int32_t>();
  return std::accumulate(count, count + n, 0.0);
}

double experts_per_token(const model::Transformer& model, double slots, std::int64_t tokens) {
  const std::int64_t layers = model.routing().n_main_layers();
  return layers == 0 ? 0 : slots / static_cast<double>(layers * tokens);
}

// What operators do in `pass`, divided by `n`.
std::vector<ops::Profile::Row> work_of_pass(Context& ctx, double n, const std::function<void()>& pass) {
  ops::Profile profile(ctx, ops::steady_seconds, 0);
  ctx.profile = &profile;
  profile.begin_step();
  try {
    pass();
  } catch (...) {
    ctx.profile = nullptr;
    throw;
  }
  profile.end_step();
  ctx.profile = nullptr;
  std::vector<ops::Profile::Row> rows = profile.rows();
  for (ops::Profile::Row& row : rows) {
    row.seconds /= n;
    row.bytes /= n;
    for (double& flops : row.flops) flops /= n;
  }
  return rows;
}

// Optimizer steps of one variant. Of a step's micro-batches two at most are measured, the update once: the rest
// takes as long.
class Training {
 public:
  Training(const Subject& subject, const Variant& variant, Device device)
      : variant_(variant),
        run_(measured_run(variant.run)),
        data_(random_data(run_, run_.train.global_batch_size)),
        world_(parallel::make_lone_world()),
        step_(run_, data_, world_, device) {
    ParameterStore& parameters = step_.model().parameters();
    parameters.initialise(run_.train.seed);
    if (subject.directory && !variant.is_static) subject.directory->weights().load(run_.model, parameters);
    part_.kind = Kind::training;
    part_.is_static = variant.is_static;
    part_.type = run_.train.dtype;
    part_.sequences = variant.run.train.global_batch_size;
    part_.tokens = part_.sequences * run_.train.seq_len;
    part_.micro_batches = part_.sequences / run_.train.micro_batch_size;
    part_.micro_batches_measured = run_.train.global_batch_size / run_.train.micro_batch_size;
  }

  model::Transformer& model() { return step_.model(); }

  // Once weights are there: until memory has grown, kernels are made, and a device has recorded its work.
  void warm_up() {
    step_.model().round_weights(step_.context());
    const int steps = step_.context().device == Device::cpu ? 1 : 3;
    for (int i = 0; i < steps; ++i) one_step();
    memory_ = memory();
  }

  void round(std::int64_t steps) {
    double sum = 0;
    for (std::int64_t i = 0; i < steps; ++i) {
      part_.seconds_N.push_back(one_step());
      sum += part_.seconds_N.back();
    }
    part_.seconds_R.push_back(sum / static_cast<double>(steps));
  }

  // Untimed: what a step does.
  void profile() {
    Context& ctx = step_.context();
    std::optional<train::StepResult> result;
    part_.work = work_of_pass(ctx, 1 / repeated(), [&] { result = step_.compute(n_, 0); });
    const auto update = work_of_pass(ctx, 1, [&] { learn(); });
    part_.work.insert(part_.work.end(), update.begin(), update.end());
    double slots = 0;
    for (std::int64_t l = 0; l < step_.model().routing().n_main_layers(); ++l) slots += result->load.slots(l);
    part_.experts_per_token = experts_per_token(step_.model(), slots, result->tokens.tokens);
  }

  const Part& part() const { return part_; }
  const Memory& final_memory() const { return memory_; }

 private:
  static config::Run measured_run(config::Run run) {
    constexpr std::int64_t kMostMicroBatches = 2;
    run.train.global_batch_size =
        std::min(run.train.global_batch_size, kMostMicroBatches * run.train.micro_batch_size);
    return run;
  }

  // How often the step that was asked for does what is measured of micro-batches.
  double repeated() const {
    return static_cast<double>(part_.micro_batches) / static_cast<double>(part_.micro_batches_measured);
  }

  void learn() {
    ++n_;
    step_.update(train::learning_rate(run_.train, std::min(n_, run_.train.steps)), n_);
  }

  // Seconds of the whole step.
  double one_step() {
    const double start = ops::steady_seconds();
    step_.compute(n_, 0);
    const double computed = ops::steady_seconds();
    learn();
    ops::synchronise(step_.context());
    const double end = ops::steady_seconds();
    return repeated() * (computed - start) + (end - computed);
  }

  Memory memory() const {
    const train::MemoryPlan& plan = step_.memory();
    return {.kind = Kind::training,
            .is_static = variant_.is_static,
            .sequences = run_.train.micro_batch_size,
            .weights = plan.parameters + plan.weights,
            .gradients = plan.gradients + plan.halves,
            .moments = plan.moments,
            .activations = plan.activations,
            .workspace = step_.context().scratch.reserved() + step_.context().beside.scratch.reserved()};
  }

  const Variant& variant_;
  config::Run run_;
  train::TrainingData data_;
  parallel::World world_;
  train::Step step_;
  std::int64_t n_ = 0;
  Part part_;
  Memory memory_;
};

// Prompts and the tokens behind them, of so many sequences at once. Of one model one at a time.
class Inference {
 public:
  Inference(model::Transformer& model, Context& ctx, const Subject& subject, bool is_static, std::int64_t n_seq,
            const Settings& settings)
      : model_(model),
        ctx_(ctx),
        settings_(settings),
        n_seq_(n_seq),
        generator_(model, settings.prompt + settings.new_tokens, ctx, n_seq),
        token_Bn_(random_tokens(n_seq * settings.prompt, model.config().vocab_size, 1)),
        new_token_NB_(random_tokens(n_seq * settings.new_tokens, model.config().vocab_size, 2)) {
    for (Part* part : {&prefill_, &decode_}) {
      part->is_static = is_static;
      part->type = subject.inference_type;
      part->sequences = n_seq;
    }
    prefill_.kind = Kind::prefill;
    prefill_.tokens = n_seq * settings.prompt;
    decode_.kind = Kind::decode;
    decode_.tokens = n_seq;
  }

  // Counts experts, piece by piece, as append() cuts a prompt.
  void warm_up() {
    generator_.restart();
    const std::int64_t most =
        generate::Generator::plan_of(settings_.prompt + settings_.new_tokens, n_seq_).most_tokens;
    double slots = 0;
    for (std::int64_t first = 0, n = 0; first < settings_.prompt; first += n) {
      n = std::min(most, settings_.prompt - first);
      generator_.append(random_tokens(n_seq_ * n, model_.config().vocab_size, 3));
      slots += slots_of(model_);
    }
    prefill_.experts_per_token = experts_per_token(model_, slots, prefill_.tokens);
    slots = 0;
    for (std::int64_t i = 0; i < settings_.new_tokens; ++i) {
      generator_.append(new_tokens(i));
      slots += slots_of(model_);
    }
    decode_.experts_per_token = experts_per_token(model_, slots, n_seq_ * settings_.new_tokens);
  }

  void round() {
    generator_.restart();
    double start = ops::steady_seconds();
    generator_.append(token_Bn_);
    prefill_.seconds_N.push_back(ops::steady_seconds() - start);
    prefill_.seconds_R.push_back(prefill_.seconds_N.back());
    double sum = 0;
    for (std::int64_t i = 0; i < settings_.new_tokens; ++i) {
      start = ops::steady_seconds();
      generator_.append(new_tokens(i));
      decode_.seconds_N.push_back(ops::steady_seconds() - start);
      sum += decode_.seconds_N.back();
    }
    decode_.seconds_R.push_back(sum / static_cast<double>(settings_.new_tokens));
  }

  void profile() {
    generator_.restart();
    prefill_.work = work_of_pass(ctx_, 1, [&] { generator_.append(token_Bn_); });
    decode_.work = work_of_pass(ctx_, static_cast<double>(settings_.new_tokens), [&] {
      for (std::int64_t i = 0; i < settings_.new_tokens; ++i) generator_.append(new_tokens(i));
    });
  }

  const Part& prefill() const { return prefill_; }
  const Part& decode() const { return decode_; }
  Memory memory() const {
    const auto [lasting, activations] = model_.measure_generation(
        generate::Generator::plan_of(settings_.prompt + settings_.new_tokens, n_seq_));
    return {.kind = Kind::decode,
            .is_static = prefill_.is_static,
            .sequences = n_seq_,
            .weights = model_.parameter_bytes(),
            .cache = lasting,
            .activations = activations,
            .workspace = ctx_.scratch.reserved()};
  }

 private:
  std::span<const std::int32_t> new_tokens(std::int64_t i) const {
    return std::span(new_token_NB_)
        .subspan(static_cast<std::size_t>(i * n_seq_), static_cast<std::size_t>(n_seq_));
  }

  model::Transformer& model_;
  Context& ctx_;
  const Settings& settings_;
  std::int64_t n_seq_;
  generate::Generator generator_;
  std::vector<std::int32_t> token_Bn_, new_token_NB_;
  Part prefill_, decode_;
};

// Rounds in turn over all models, each second one the other way round.
template <class Each>
void in_turns(std::size_t n, std::int64_t rounds, Each&& each) {
  for (std::int64_t r = 0; r < rounds; ++r)
    for (std::size_t v = 0; v < n; ++v) each(r % 2 == 0 ? v : n - 1 - v);
}

std::unique_ptr<model::Transformer> empty_model(const Subject& subject, const Variant& variant, Device device) {
  config::Model config = variant.run.model;
  config.num_nextn_predict_layers = 0;
  return std::make_unique<model::Transformer>(config, variant.run.router,
                                              model::dtype_of(subject.inference_type, device), false);
}

std::int64_t training_bytes(const Variant& variant, Device device) {
  model::Transformer model(variant.run.model, variant.run.router,
                           model::dtype_of(variant.run.train.dtype, device), true);
  model.parameters().place({});
  return train::needed(train::plan_memory(model, variant.run, parallel::lone_mesh(), 1, device), device);
}

struct InferenceBytes {
  std::int64_t weights = 0, lasting = 0, activations = 0;
  std::int64_t total() const { return weights + lasting + activations; }
};
InferenceBytes inference_bytes(const Subject& subject, const Variant& variant, const Settings& settings,
                               Device device) {
  const auto model = empty_model(subject, variant, device);
  model->parameters().place({});
  const auto [lasting, activations] = model->measure_generation(
      generate::Generator::plan_of(settings.prompt + settings.new_tokens, settings.batch));
  return {model->parameter_bytes(), lasting, activations};
}

// Of all variants, which are there at the same time, before any of them is.
void check_memory(const Subject& subject, const std::vector<Variant>& variants, const Settings& settings,
                  Device device) {
  const auto free = device == Device::cpu ? available_memory() : ops::free_memory(device);
  if (!free) return;
  std::int64_t training = 0;
  InferenceBytes inference;
  for (const Variant& variant : variants) {
    if (subject.trains) training += training_bytes(variant, device);
    const InferenceBytes more = inference_bytes(subject, variant, settings, device);
    inference.weights += more.weights;
    inference.lasting += more.lasting;
    inference.activations += more.activations;
  }
  // Random weights go from one part to the other.
  const std::int64_t at_once = subject.directory ? 0 : inference.weights;
  if (subject.trains && training + at_once > *free)
    throw_input(
        "{}: too little memory: training takes {:.1f} MiB, of which {:.1f} MiB are free; use a smaller "
        "train.micro_batch_size or train.seq_len, set train.recompute, or give --no-training",
        subject.name, mib(training), mib(*free));
  if (inference.total() > *free)
    throw_input(
        "{}: too little memory: inference takes {:.1f} MiB (weights {:.1f}, cache {:.1f}, activations {:.1f}), "
        "of "
        "which {:.1f} MiB are free; use a smaller model, --batch or --prompt",
        subject.name, mib(inference.total()), mib(inference.weights), mib(inference.lasting),
        mib(inference.activations), mib(*free));
}

// The weights of all variants for inference; of random ones those that a few steps have changed, so that
// routers with running statistics have some.
using Models = std::vector<std::unique_ptr<model::Transformer>>;

void measure_training(const Subject& subject, const std::vector<Variant>& variants, const Settings& settings,
                      Device device, Models& models, Report& report) {
  std::vector<std::unique_ptr<Training>> trainings;
  for (const Variant& variant : variants) {
    trainings.push_back(std::make_unique<Training>(subject, variant, device));
    if (variant.is_static)
      copy_values(trainings.back()->model().parameters(), trainings.front()->model().parameters());
  }
  for (const auto& training : trainings) training->warm_up();
  in_turns(trainings.size(), settings.rounds, [&](std::size_t v) { trainings[v]->round(settings.steps); });
  for (const auto& training : trainings) {
    training->profile();
    report.parts.push_back(training->part());
    report.memory.push_back(training->final_memory());
  }
  report.training_peak = peak_resident();
  if (subject.directory) return;
  for (const Variant& variant : variants) {
    models.push_back(empty_model(subject, variant, device));
    models.back()->allocate(device);
    copy_values(models.back()->parameters(), trainings.front()->model().parameters());
  }
}

void make_models(const Subject& subject, const std::vector<Variant>& variants, Context& ctx, Models& models) {
  for (const Variant& variant : variants) {
    if (models.size() == variants.size()) break;  // they come from training
    if (subject.directory && !variant.is_static) {
      models.push_back(checkpoint::open_model(
          *subject.directory,
          {.dtype = subject.inference_type == config::ComputeType::float32 ? "float32" : "bfloat16",
           .router = variant.run.router},
          ctx));
      continue;
    }
    models.push_back(empty_model(subject, variant, ctx.device));
    models.back()->allocate(ctx.device);
    if (variant.is_static)
      copy_values(models.back()->parameters(), models.front()->parameters());
    else
      models.back()->parameters().initialise(subject.run.train.seed);
  }
  for (const auto& model : models) model->round_weights(ctx);
}

void measure_inference(const Subject& subject, const std::vector<Variant>& variants, const Settings& settings,
                       Context& ctx, Models& models, Report& report) {
  make_models(subject, variants, ctx, models);
  std::vector<std::int64_t> batches = {1};
  if (settings.batch > 1) batches.push_back(settings.batch);
  for (const std::int64_t batch : batches) {
    std::vector<std::unique_ptr<Inference>> inferences;
    for (std::size_t v = 0; v < models.size(); ++v)
      inferences.push_back(
          std::make_unique<Inference>(*models[v], ctx, subject, variants[v].is_static, batch, settings));
    for (const auto& inference : inferences) inference->warm_up();
    in_turns(inferences.size(), settings.rounds, [&](std::size_t v) { inferences[v]->round(); });
    for (const auto& inference : inferences) inference->profile();
    for (const auto& inference : inferences) report.parts.push_back(inference->prefill());
    for (const auto& inference : inferences) report.parts.push_back(inference->decode());
    for (const auto& inference : inferences) report.memory.push_back(inference->memory());
  }
  report.inference_peak = peak_resident();
}

// Of all precisions that a part may have.
train::MachineRates machine_rates(const Subject& subject, Device device) {
  Context ctx(device);
  const auto has = [&](config::ComputeType type) {
    return subject.inference_type == type || (subject.trains && subject.run.train.dtype == type);
  };
  ctx.e4m3_layers = has(config::ComputeType::fp8);
  ctx.matmul = ctx.e4m3_layers || has(config::ComputeType::bfloat16) ? MatmulType::bf16 : MatmulType::f32;
  ops::open_stream(ctx);
  return train::measure_rates(ctx);
}

// What others do on the machine makes a rate smaller, never larger.
train::MachineRates better_of(const train::MachineRates& a, const train::MachineRates& b) {
  train::MachineRates best{.copy = std::max(a.copy, b.copy)};
  for (std::size_t type = 0; type < ops::kMatmulTypes; ++type)
    best.product[type] = std::max(a.product[type], b.product[type]);
  return best;
}

}  // namespace

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::training:
      return "training";
    case Kind::prefill:
      return "prefill";
    case Kind::decode:
      return "decode";
  }
  return "";
}

bool has_dynamic_number(const config::Router& router) { return router.own.has("max_experts"); }

std::pair<config::Model, config::Router> static_model(const config::Run& run, std::int64_t k) {
  config::Model model = run.model;
  model.num_experts_per_tok = k;
  config::Router router =
      config::default_of(config::schema_of("softmax_topk", router::router_schemas()), model);
  router.balance_coef = run.router.balance_coef;
  router.balance_scope = run.router.balance_scope;
  router.z_loss_coef = run.router.z_loss_coef;
  router.variance_coef = run.router.variance_coef;
  router.orthogonality_coef = run.router.orthogonality_coef;
  router.capacity_factor = run.router.capacity_factor;
  router.jitter = run.router.jitter;
  return {model, router};
}

Report measure(const Subject& subject, const Settings& settings, Device device) {
  const std::vector<Variant> variants = variants_of(subject, settings);
  check_memory(subject, variants, settings, device);
  const train::MachineRates before = machine_rates(subject, device);
  const bool predicts = subject.trains && device == Device::cpu;
  std::optional<plan::CpuStep> predicted;
  if (predicts) predicted = plan::predict_cpu_step(subject.run);
  bool resets = reset_peak_resident();  // what copies to measure took is no model's
  Report report;
  Models models;
  if (subject.trains) {
    measure_training(subject, variants, settings, device, models, report);
    if (predicts) predicted = plan::mean_of(*predicted, plan::predict_cpu_step(subject.run));
    resets = reset_peak_resident() && resets;
  } else {
    report.not_measured.emplace_back(name_of(Kind::training), subject.why_not_trained);
  }
  report.peaks_are_apart = resets;
  Context ctx(device);
  ctx.matmul = model::matmul_type_of(subject.inference_type);
  ops::open_stream(ctx);
  measure_inference(subject, variants, settings, ctx, models, report);
  models.clear();
  report.predicted = predicted;
  report.rates = better_of(before, machine_rates(subject, device));
  return report;
}

std::vector<Comparison> compare(const Report& report) {
  const auto flops = [](const Part& part) {
    return std::accumulate(part.work.begin(), part.work.end(), 0.0,
                           [](double sum, const ops::Profile::Row& row) { return sum + row.all_flops(); });
  };
  std::vector<Comparison> comparisons;
  for (const Part& dynamic : report.parts) {
    if (dynamic.is_static) continue;
    const auto found = std::find_if(report.parts.begin(), report.parts.end(), [&](const Part& part) {
      return part.is_static && part.kind == dynamic.kind && part.sequences == dynamic.sequences;
    });
    if (found == report.parts.end()) continue;
    std::vector<double> ratio_R;
    for (std::size_t r = 0; r < dynamic.seconds_R.size(); ++r)
      ratio_R.push_back(dynamic.seconds_R[r] / found->seconds_R[r]);
    const auto [median, low, high] = spread_of(ratio_R);
    comparisons.push_back({&dynamic, &*found, median, low, high, flops(dynamic) / flops(*found)});
  }
  return comparisons;
}

}  // namespace switchyard::bench
