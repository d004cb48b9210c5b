#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/evaluation.h"
#include "commands/options.h"
#include "commands/plan_answer.h"
#include "commands/plan_page.h"
#include "config/load.h"
#include "core/context.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/process_memory.h"
#include "core/threads.h"
#include "model/transformer.h"
#include "plan/cpu_step.h"
#include "router/router.h"
#include "train/profile_report.h"

namespace switchyard::commands {

namespace {

constexpr std::int64_t kMost = 1 << 20;  // of every size that divides something

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::string device = "H100";
  // 0 or empty: what the configuration says.
  std::int64_t ranks = 0, expert = 0, zero = -1, micro_batch = 0, global_batch = 0, seq_len = 0;
  std::int64_t tensor = 1, pipeline = 1, chunks = 1, context = 1, expert_tensor = 1;
  std::string scheme = "switchyard", precision, recompute, routing = "real";
  bool overlap = false;
  double tokens = 0;  // 0: those of the run
  double price = 0;   // of a device and hour; 0: not given
  std::int64_t search = 0;
  std::string calibration;
  std::string json;
};

void describe(CLI::App& app, Options& options) {
  app.add_option(
         "CONFIG", options.config,
         "A run's configuration, or a model's config.json (then --seq-len and --micro-batch say the rest)")
      ->required();
  app.add_option("--set", options.overrides, "Override one key of a run's configuration; may be repeated")
      ->type_name("a.b=value")
      ->take_all()
      ->expected(1);
  app.add_option(
         "--device", options.device,
         "cpu (this machine, measured), A100, H100, H800, H200, B200, B300, GB200, GB300 or MI300X; with "
         "NAME,key=value,... another: keys are fp32, bf16, fp8 (TFLOP/s), memory (GB), bandwidth (TB/s), "
         "link, network (GB/s one way), domain (devices), watts")
      ->type_name("NAME|SPEC")
      ->capture_default_str();
  const auto size = [&](const char* name, std::int64_t& value, const char* meaning) {
    return app.add_option(name, value, meaning)->type_name("N")->transform(whole_number(1, "", kMost));
  };
  size("--ranks", options.ranks, "Devices, one rank each (default: parallel.ranks, or 1)");
  size("--expert", options.expert, "Ranks that together hold each expert once (default: parallel.expert)");
  app.add_option("--zero", options.zero, "Of switchyard's scheme: 0, 1 or 2 (default: parallel.zero)")
      ->type_name("Z")
      ->check(CLI::IsMember({"0", "1", "2"}));
  size("--micro-batch", options.micro_batch, "Sequences that pass at once (default: train.micro_batch_size)");
  size("--global-batch", options.global_batch, "Sequences of a step (default: train.global_batch_size)");
  size("--seq-len", options.seq_len, "Tokens of a sequence (default: train.seq_len)");
  app.add_option("--precision", options.precision,
                 "Of products (default: train.dtype; of a config.json bfloat16)")
      ->type_name("DTYPE")
      ->transform(type_name({"float32", "bfloat16", "fp8"}));
  app.add_option("--recompute", options.recompute,
                 "What is computed again, with commas (default: train.recompute): none, swiglu, block; for "
                 "comparison norm, act, mlp, moe, up_proj, core_attention, selective, full")
      ->type_name("WHAT");
  app.add_option("--routing", options.routing,
                 "real: a router decides, and some ranks have more than others; balanced: all have the same")
      ->check(CLI::IsMember({"real", "balanced"}))
      ->capture_default_str();
  app.add_flag("--overlap", options.overlap,
               "Exchanges of tokens go on beside what computes (parallel.overlap)");
  app.add_option("--scheme", options.scheme,
                 "Who keeps the optimizer's state: switchyard; for comparison megatron (distributed "
                 "optimizer), fsdp, or "
                 "torch (fsdp in PyTorch's own modules)")
      ->check(CLI::IsMember({"switchyard", "megatron", "fsdp", "torch"}))
      ->capture_default_str();
  // For comparison: switchyard itself does not run these.
  size("--tensor", options.tensor, "For comparison: ranks that divide matrices");
  size("--pipeline", options.pipeline, "For comparison: stages of layers");
  size("--chunks", options.chunks, "For comparison: pieces of a stage that take turns (virtual stages)");
  size("--context", options.context, "For comparison: ranks that divide a sequence");
  size("--expert-tensor", options.expert_tensor, "For comparison: ranks that divide each expert");
  app.add_option("--tokens", options.tokens, "Tokens to train on (default: those of the run)")
      ->type_name("T")
      ->check(number_in({0, 1e18, true}, "a number of tokens above 0, also written 1e12"));
  app.add_option("--price", options.price, "Of a device for an hour, in any currency")
      ->type_name("P")
      ->check(number_in({0, 1e9}, "a number of 0 or more"));
  app.add_flag("--search{10}", options.search,
               "Other layouts of as many ranks and the same batch, best first (--search=N: so many). Where "
               "--scheme is "
               "switchyard, those that it runs")
      ->transform(whole_number(1, "", 1000));
  app.add_option("--calibration", options.calibration,
                 "A JSON object with constants in place of those of src/plan/calibration.h, as measured on a "
                 "cluster; of "
                 "an array of such objects the first holds, and `speeds` of --json has tokens/s with each")
      ->type_name("FILE");
  app.add_flag("--json{-}", options.json, "Print JSON; --json=FILE: write it there");
  app.footer(
      "Nothing is allocated and no data are read. Examples:\n"
      "  switchyard plan configs/qwen3_moe_0.6b.json --device cpu\n"
      "  switchyard plan configs/hf/qwen3_30b_a3b.json --device H200 --ranks 16 --expert 8 --seq-len 4096 "
      "--micro-batch 1 --tokens 1e12 --price 3\n"
      "  switchyard plan configs/hf/deepseek_v3.json --device H100 --ranks 1024 --scheme megatron --tensor 2 "
      "--pipeline 8 --chunks 4 --expert 64 --seq-len 4096 --micro-batch 1 --global-batch 8192 --precision fp8\n"
      "  switchyard plan configs/hf/qwen3_30b_a3b.json --ranks 16 --seq-len 4096 --micro-batch 1 --search");
}

plan::Precision precision_of(config::ComputeType type) {
  switch (type) {
    case config::ComputeType::float32:
      return plan::Precision::float32;
    case config::ComputeType::bfloat16:
      return plan::Precision::bfloat16;
    case config::ComputeType::fp8:
      return plan::Precision::fp8;
  }
  return plan::Precision::float32;
}

plan::Precision precision_named(const std::string& name) {
  for (const plan::Precision each : plan::kPrecisions)
    if (name == plan::name_of(each)) return each;
  throw_input("--precision: there is no '{}'", name);
}

Asked read(const Options& options) {
  const std::string text = read_text_file(options.config);
  Asked asked;
  plan::Layout& layout = asked.layout;
  bool mtp = true;
  if (config::looks_like_run(text, options.config)) {
    const config::Run run = config::parse_run(text, options.config, options.overrides, router::router_schemas(),
                                              std::nullopt, checkpoint::vocab_size_of);
    asked.model = run.model;
    asked.router = run.router;
    layout.ranks = std::max<std::int64_t>(1, run.parallel.ranks);
    layout.expert = run.parallel.expert;
    layout.zero = run.parallel.zero;
    layout.overlap = run.parallel.overlap;
    layout.tokens_to_all =
        run.parallel.token_exchange == config::TokenExchange::all ||
        (run.parallel.token_exchange == config::TokenExchange::automatic && options.device != "cpu");
    asked.auto_micro_batch =
        run.train.micro_batch_size == config::Train::kAutoMicroBatch && options.micro_batch == 0;
    layout.micro_batch = asked.auto_micro_batch ? 1 : run.train.micro_batch_size;
    layout.global_batch = run.train.global_batch_size;
    layout.seq_len = run.train.seq_len;
    layout.precision = precision_of(run.train.dtype);
    layout.recompute_name = run.train.recompute == config::Recompute::none     ? "none"
                            : run.train.recompute == config::Recompute::swiglu ? "swiglu"
                                                                               : "block";
    mtp = run.train.mtp_loss_coef > 0;
    asked.tokens = static_cast<double>(run.train.steps) * static_cast<double>(layout.global_batch) *
                   static_cast<double>(layout.seq_len);
    asked.checkpoint = run.checkpoint;
    asked.threads = static_cast<int>(run.parallel.threads);
  } else {
    if (!options.overrides.empty())
      throw_input("--set: {} is a model's config.json, which it does not change; give a run's configuration",
                  options.config);
    asked.model = config::parse_model(text, options.config);
    asked.router = config::parse_model_router(text, options.config, router::router_schemas());
    if (options.seq_len == 0 || options.micro_batch == 0)
      throw_input("{}: is a model's config.json and says nothing of a run; give --seq-len and --micro-batch",
                  options.config);
    layout.global_batch = 0;
  }
  if (options.ranks > 0) layout.ranks = options.ranks;
  if (options.expert > 0) layout.expert = options.expert;
  if (options.zero >= 0) layout.zero = options.zero;
  if (options.micro_batch > 0) layout.micro_batch = options.micro_batch;
  if (options.seq_len > 0) layout.seq_len = options.seq_len;
  if (!options.precision.empty()) layout.precision = precision_named(options.precision);
  if (!options.recompute.empty()) layout.recompute_name = options.recompute;
  layout.recompute = plan::parse_recompute(layout.recompute_name);
  layout.tensor = options.tensor;
  layout.pipeline = options.pipeline;
  layout.chunks = options.chunks;
  layout.context = options.context;
  layout.expert_tensor = options.expert_tensor;
  layout.overlap = layout.overlap || options.overlap;
  layout.real_routing = options.routing == "real";
  for (const plan::Scheme each : plan::kSchemes)
    if (options.scheme == plan::name_of(each)) layout.scheme = each;
  if (options.global_batch > 0) layout.global_batch = options.global_batch;
  // One micro-batch of every data rank, where nothing else is said.
  if (layout.global_batch == 0)
    layout.global_batch = std::max<std::int64_t>(1, layout.data()) * layout.micro_batch;
  asked.shape = plan::shape_of(asked.model, config::slots_per_token(asked.router, asked.model), mtp);
  plan::check_layout(layout, asked.shape);
  if (options.tokens > 0) asked.tokens = options.tokens;
  if (layout.seq_len > asked.model.max_position_embeddings)
    throw_input("--seq-len {}: the model has max_position_embeddings {}", layout.seq_len,
                asked.model.max_position_embeddings);
  return asked;
}

// A rank's share of this machine, measured: a large product in the run's precision and a large copy, as
// log.profile has them.
plan::Device this_machine(const Asked& asked) {
  const plan::Precision precision = asked.layout.precision;
  set_threads(asked.threads);
  Context ctx;
  ctx.matmul = precision == plan::Precision::bfloat16 ? MatmulType::bf16 : MatmulType::f32;
  const train::MachineRates rates = train::measure_rates(ctx);
  plan::Device device{.name = "this machine's CPU", .source = "measured"};
  device.float32 = rates.product[static_cast<std::size_t>(MatmulType::f32)];
  device.bfloat16 = precision == plan::Precision::bfloat16
                        ? rates.product[static_cast<std::size_t>(MatmulType::bf16)]
                        : device.float32;
  device.fp8 = device.float32;  // emulated
  device.bandwidth = rates.copy;
  device.link = device.network = rates.copy / 2;  // ranks of one machine copy what they exchange
  device.domain = kMost;
  const std::optional<std::int64_t> free = available_memory();
  if (!free)
    throw_input(
        "--device: cpu: this system does not say how much memory is free; give NAME,memory=GB of a device");
  device.memory = static_cast<double>(*free);
  const auto ranks = static_cast<double>(asked.layout.ranks);
  for (double plan::Device::*part :
       {&plan::Device::bandwidth, &plan::Device::link, &plan::Device::network, &plan::Device::memory})
    device.*part /= ranks;
  if (asked.threads == 0)  // else the threads that were measured are a rank's
    for (double plan::Device::*part : {&plan::Device::float32, &plan::Device::bfloat16, &plan::Device::fp8})
      device.*part /= ranks;
  return device;
}

// Rates that were measured need no shares of a peak. A simple bound: products at the rate of a large one, all
// else at that of a copy.
plan::Calibration measured(plan::Calibration calibration) {
  calibration.product_fp32 = calibration.product_bf16 = calibration.product_fp8 = calibration.attention = 1;
  calibration.elementwise = calibration.bandwidth = calibration.link = calibration.network = 1;
  calibration.layer_fixed = calibration.step_fixed = 0;
  calibration.half_rows = calibration.half_width = 0;
  calibration.buffers = 0;
  return calibration;
}

config::Recompute recompute_of(const plan::Recompute& again) {
  return again.block    ? config::Recompute::block
         : again.swiglu ? config::Recompute::swiglu
                        : config::Recompute::none;
}

// What only other programs make again.
bool recomputes_otherwise(const plan::Recompute& again) {
  return again.norm || again.act || again.mlp || again.moe || again.up_proj || again.core_attention ||
         again.selective;
}

// Of a step on this machine's CPU. What the program runs on one rank is timed, operator by operator in the
// run's sizes (plan/cpu_step.h); of anything else it is the least that the measured rates allow.
plan::StepPlan step_on_cpu(const Asked& asked, const plan::Device& device,
                           const plan::Calibration& calibration) {
  const plan::Layout& layout = asked.layout;
  plan::StepPlan step = plan::step_of(asked.shape, layout, device, calibration);
  constexpr double kMostValues = 2e9;  // of a model whose layers are tried: a few of them, in memory
  if (layout.ranks > 1 || !layout.runs_here() || recomputes_otherwise(layout.recompute) ||
      layout.precision == plan::Precision::fp8 || asked.shape.total() > kMostValues)
    return step;
  config::Run run;
  run.model = asked.model;
  if (asked.shape.mtp_depths == 0) run.model.num_nextn_predict_layers = 0;
  run.router = asked.router;
  run.train.seq_len = layout.seq_len;
  run.train.micro_batch_size = layout.micro_batch;
  run.train.global_batch_size = layout.global_batch;
  run.train.dtype = layout.precision == plan::Precision::bfloat16 ? config::ComputeType::bfloat16
                                                                  : config::ComputeType::float32;
  run.train.recompute = recompute_of(layout.recompute);
  const plan::CpuStep timed = plan::predict_cpu_step(run);
  step.time = {.products = timed.products + timed.output,
               .experts = timed.experts,
               .attention = timed.attention,
               .elementwise = timed.passes + timed.router,
               .optimizer = timed.optimizer};
  step.tokens_per_second_per_device = step.tokens / timed.total();
  step.model_flops_per_second = step.model_flops / timed.total();
  step.mfu = step.model_flops_per_second / plan::peak_of(device, layout.precision);
  return step;
}

// What the program itself would keep of a micro-batch, counted by laying it out; only of what it runs on one
// rank of experts.
std::optional<double> measured_activations(const Asked& asked, bool on_cpu) {
  const plan::Layout& layout = asked.layout;
  constexpr double kMostValues = 40e9;  // beyond it making the rows themselves takes seconds
  if (!layout.runs_here() || layout.expert > 1 || asked.shape.total() > kMostValues) return std::nullopt;
  if (recomputes_otherwise(layout.recompute)) return std::nullopt;
  config::Model model = asked.model;
  if (asked.shape.mtp_depths == 0) model.num_nextn_predict_layers = 0;
  const DType type = layout.precision == plan::Precision::float32 || on_cpu ? DType::f32 : DType::bf16;
  model::Transformer transformer(model, asked.router, type, true);
  return static_cast<double>(
      transformer.measure_activations(layout.micro_batch, layout.seq_len, recompute_of(layout.recompute)));
}

void find_memory(Plan& plan, bool on_cpu) {
  const std::optional<double> activations = measured_activations(plan.asked, on_cpu);
  plan.counted_activations = activations.has_value();
  // On a CPU everything is float32; products round their operands.
  plan::Layout in_memory = plan.asked.layout;
  if (on_cpu) in_memory.precision = plan::Precision::float32;
  plan.stages = plan::memory_of(plan.asked.shape, in_memory, plan.calibration, activations);
}

// With the one that is being written, and as if no save by the clock met one by steps. What a run keeps beside
// them while it diverges (checkpoint.h) is not counted.
double checkpoints_kept(const Plan& plan) {
  if (!plan.asked.checkpoint) return 1;
  const config::Checkpoint& options = *plan.asked.checkpoint;
  const plan::Layout& layout = plan.asked.layout;
  const double steps = std::ceil(plan.asked.tokens / static_cast<double>(layout.global_batch) /
                                 static_cast<double>(layout.seq_len));
  const auto saves = [&](std::int64_t every) {
    return every > 0 ? std::ceil(steps / static_cast<double>(every)) : 1;
  };
  const double by_clock = options.every_minutes > 0 ? std::ceil(60 * plan.hours / options.every_minutes) : 0;
  const double all = saves(options.every) + by_clock;
  if (options.keep == 0) return all + 1;
  double kept = std::min(all, static_cast<double>(options.keep)) + (options.keep_best ? 1 : 0);
  if (options.keep_every > 0 && options.every > 0) kept += saves(std::lcm(options.every, options.keep_every));
  return std::min(all, kept) + 1;
}

// Of a device's memory, what an "auto" micro-batch may take: a plan is an estimate.
constexpr double kUsable = 0.9;

int run(const Options& options) {
  Plan plan{.asked = read(options), .device = {}, .calibration = {}, .stages = {}, .step = {}, .layouts = {}};
  const plan::Layout& layout = plan.asked.layout;
  std::vector<plan::Calibration> sets(1);
  if (!options.calibration.empty()) sets = plan::read_calibrations(options.calibration);
  plan.calibration = sets.front();
  const bool on_cpu = options.device == "cpu";
  if (on_cpu) {
    plan.device = this_machine(plan.asked);
    if (options.calibration.empty()) plan.calibration = measured(plan.calibration);
  } else {
    plan.device = plan::parse_device(options.device);
  }
  if (plan.asked.auto_micro_batch) {
    const std::int64_t most = layout.global_batch / std::max<std::int64_t>(1, layout.data());
    for (plan.asked.layout.micro_batch = most; layout.micro_batch > 1; --plan.asked.layout.micro_batch) {
      if (most % layout.micro_batch != 0) continue;
      find_memory(plan, on_cpu);
      if (plan.memory().peak() <= kUsable * plan.device.memory) break;
    }
  }
  find_memory(plan, on_cpu);
  plan.step = on_cpu ? step_on_cpu(plan.asked, plan.device, plan.calibration)
                     : plan::step_of(plan.asked.shape, layout, plan.device, plan.calibration);
  const double ranks = static_cast<double>(layout.ranks);
  if (plan.asked.tokens > 0) {
    plan.hours = plan.asked.tokens / (plan.step.tokens_per_second_per_device * ranks) / 3600;
    plan.energy_kwh = plan.hours * ranks * plan.device.watts * 1e-3;
    plan.cost = plan.hours * ranks * options.price;
  }
  plan.checkpoint_bytes =
      checkpoints_kept(plan) * kStateBytes * (plan.asked.shape.total() + plan.asked.shape.mtp_values());
  if (options.search > 0) {
    plan.layouts = plan::search(plan.asked.shape, layout, plan.device, plan.calibration,
                                layout.scheme == plan::Scheme::switchyard);
    if (plan.layouts.size() > static_cast<std::size_t>(options.search))
      plan.layouts.resize(static_cast<std::size_t>(options.search));
  }
  if (options.json != "-") print(plan);
  Json json = json_of(plan);
  for (std::size_t i = 0; sets.size() > 1 && i < sets.size(); ++i)
    json["speeds"].push_back(
        plan::step_of(plan.asked.shape, layout, plan.device, sets[i]).tokens_per_second_per_device);
  write_json(options.json, json);
  return 0;
}

}  // namespace

const Command kPlan = {"plan", "Memory, time and cost of a run, before anything is allocated",
                       with_options<Options, describe, run>};

}  // namespace switchyard::commands
