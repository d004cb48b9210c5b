#include "train/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "config/load.h"
#include "config/names.h"
#include "core/error.h"
#include "core/process_memory.h"
#include "core/threads.h"
#include "ops/device.h"
#include "parallel/devices.h"
#include "train/ranks.h"

namespace switchyard::train {

namespace {

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

// What oneDNN keeps: kernels that it has compiled, and each thread's packed operands. What was left of the
// largest resident set of eight runs once all else is taken off was 10 to 31 MiB (docs/memory.md).
constexpr std::int64_t kProductsMiB = 16;

// Tokens, losses and counts: of the step's micro-batches where the host reads them, and of one where they are
// made.
std::int64_t data_bytes(const model::Transformer& model, const config::Train& train,
                        std::int64_t micro_batches) {
  const std::int64_t B = train.micro_batch_size, T = B * train.seq_len, depths = model.n_mtp_depths();
  const std::int64_t tokens = (3 * T + 2 + B) * size_of(DType::i32),
                     losses = (1 + depths) * T * size_of(DType::f32),
                     counts = model.routing().n_layers() * B * model.config().num_experts * size_of(DType::i32);
  return micro_batches * (tokens + losses + counts) + losses;
}

// By what a rank sums gradients with: a piece of each of the others (parallel/group.h).
std::int64_t exchange_bytes(const MemoryPlan& plan, std::int64_t ranks) {
  return ranks > 1 ? std::min(ranks * parallel::kSumPieceBytes, plan.parameters) : 0;
}

}  // namespace

std::int64_t waiting_halves(std::int64_t micro_batches) {
  return micro_batches < 2 ? 0 : 1 + waiting_halves((micro_batches + 1) / 2);
}

MemoryPlan plan_memory(model::Transformer& model, const config::Run& run, const parallel::Mesh& mesh,
                       double room, Device device) {
  const config::Train& train = run.train;
  const std::int64_t n = model.parameters().flat_size();
  const DType compute = model.dtype(), exact = accumulation_dtype(compute);
  const std::int64_t array = n * size_of(exact);
  const std::int64_t micro_batches = micro_batches_of(train, 0, mesh.all.size()).run;
  MemoryPlan plan{.parameters = array,
                  .weights = compute == exact ? 0 : n * size_of(compute),
                  .gradients = model.parameters().gradients_size() * size_of(exact),
                  .moments = 2 * model.parameters().moments_size() * size_of(exact),
                  .halves = train.same_bits ? waiting_halves(micro_batches) * array : 0,
                  .data = data_bytes(model, train, micro_batches)};
  const auto measure = [&](double times_even) {
    share_experts(model, run.parallel, mesh, times_even, device);
    return model.measure_activations(train.micro_batch_size, train.seq_len, train.recompute);
  };
  if (mesh.expert.size() > 1) plan.even_activations = measure(1);
  const auto scratch = [&] {
    return model.measure_scratch(train.micro_batch_size, train.seq_len, model::matmul_type_of(train.dtype),
                                 train.dtype == config::ComputeType::fp8);
  };
  // Where ranks share experts, what is touched is what an even load takes.
  model::Transformer::ScratchBytes workspace;
  if (mesh.expert.size() > 1) workspace = scratch();
  plan.activations = measure(room);
  if (mesh.expert.size() == 1) workspace = scratch();
  plan.expert_room = mesh.expert.size() > 1 ? room : 0;
  plan.workspace = workspace.most;
  plan.first_workspace = workspace.grown;
  plan.exchange = exchange_bytes(plan, mesh.all.size());
  if (device == Device::cpu) {
    plan.products = kProductsMiB * kMiB;
    plan.resident = resident_memory();
  }
  return plan;
}

std::vector<std::string> table_of(const MemoryPlan& plan, Device device) {
  std::vector<std::string> lines;
  const auto entry = [&](const char* name, std::int64_t bytes) {
    if (bytes > 0) lines.push_back(fmt::format("  {:<20}{:>12.1f} MiB", name, mib(bytes)));
  };
  entry("parameters", plan.parameters);
  entry("bfloat16 weights", plan.weights);
  entry("gradients", plan.gradients);
  entry("moments", plan.moments);
  entry("halves of gradients", plan.halves);
  entry("activations", plan.activations);
  entry("  at an even load", plan.even_activations);
  if (plan.expert_room > 0 && std::isfinite(plan.expert_room))
    lines.push_back(fmt::format("    with room for {:.2f} times an even load of experts", plan.expert_room));
  entry("workspace", plan.workspace);
  entry("data", plan.data);
  entry("exchange", plan.exchange);
  entry("products", plan.products);
  if (device != Device::cpu) {
    entry("total", plan.before_workspace() + plan.workspace);
    return lines;
  }
  entry("process so far", plan.resident);
  entry("steady", plan.steady() + plan.resident);
  entry("peak", plan.peak() + plan.resident);
  return lines;
}

std::int64_t needed(const MemoryPlan& plan, Device device) {
  return device == Device::cpu ? plan.peak() : plan.before_workspace();
}

Available available_to(const parallel::World& world, Device device) {
  if (device != Device::cpu) return {parallel::free_memory(world, device), ops::describe_device(device)};
  const MemoryRoom room = memory_room();
  const std::int64_t share = room.shared == INT64_MAX ? INT64_MAX : room.shared / world.node_size;
  // Of the address space a thread reserves more than it touches: its stack, and a place to allocate from.
  constexpr std::int64_t kReserved = 72 * kMiB;
  const std::int64_t own = room.own == INT64_MAX
                               ? INT64_MAX
                               : std::max<std::int64_t>(0, room.own - kReserved * (thread_count() - 1));
  if (own < share) return {own, "this process's address space (ulimit -v)"};
  if (share == INT64_MAX) return {std::nullopt, room.of_shared};
  return {share, world.node_size > 1 ? fmt::format("its share of {}", room.of_shared) : room.of_shared};
}

std::vector<std::int64_t> micro_batches_to_choose(const config::Run& run, int ranks) {
  const std::int64_t batch = run.train.global_batch_size;
  const std::int64_t share = batch % ranks == 0 ? batch / ranks : batch;
  std::vector<std::int64_t> divisors, sizes;
  for (std::int64_t size = 1; size * size <= share; ++size) {
    if (share % size != 0) continue;
    divisors.push_back(size);
    if (size * size != share) divisors.push_back(share / size);
  }
  std::sort(divisors.rbegin(), divisors.rend());
  for (const std::int64_t size : divisors) {
    if (batch / size < ranks) continue;
    config::Train train = run.train;
    train.micro_batch_size = size;
    if (config::too_many_tokens(run.model, run.router, train).empty()) sizes.push_back(size);
  }
  return sizes;
}

namespace {

// The first of `sizes`, which descend, that fits; 0: none. What needs less memory is behind what needs more.
std::int64_t first_that_fits(const std::vector<std::int64_t>& sizes,
                             const std::function<bool(std::int64_t)>& fits) {
  const auto found =
      std::partition_point(sizes.begin(), sizes.end(), [&](std::int64_t size) { return !fits(size); });
  return found == sizes.end() ? 0 : *found;
}

}  // namespace

std::string what_fits(const PlanOf& plan_of, const config::Run& run, int ranks, std::int64_t bytes,
                      Device device) {
  std::string words;
  std::int64_t best = 0;
  const auto try_run = [&](config::Run other, const std::string& besides) {
    std::vector<std::int64_t> sizes;
    for (const std::int64_t size : micro_batches_to_choose(run, ranks))
      if (size <= run.train.micro_batch_size && size > best) sizes.push_back(size);
    if (sizes.empty() || sizes.front() != run.train.micro_batch_size)
      sizes.insert(sizes.begin(), run.train.micro_batch_size);
    const auto plan_with = [&](std::int64_t size) {
      other.train.micro_batch_size = size;
      return needed(plan_of(other), device);
    };
    const std::int64_t size =
        first_that_fits(sizes, [&](std::int64_t each) { return plan_with(each) <= bytes; });
    if (size <= best) return;
    best = size;
    std::string settings = besides;
    if (size != run.train.micro_batch_size)
      settings = fmt::format("train.micro_batch_size={}{}{}", size, besides.empty() ? "" : " and ", besides);
    words +=
        fmt::format("{}{} (needs {:.1f} MiB)", words.empty() ? "" : ", or ", settings, mib(plan_with(size)));
  };
  try_run(run, "");
  for (const config::Recompute recompute : {config::Recompute::swiglu, config::Recompute::block}) {
    config::Run other = run;
    if (static_cast<int>(recompute) <= static_cast<int>(run.train.recompute)) continue;
    other.train.recompute = recompute;
    try_run(other, fmt::format("train.recompute={}", config::name_of(recompute)));
  }
  for (std::int64_t zero = run.parallel.zero + 1; zero <= 2 && ranks > 1; ++zero) {
    if (zero == 2 && run.train.same_bits) break;
    config::Run other = run;
    other.parallel.zero = zero;
    try_run(other, fmt::format("parallel.zero={}", zero));
    other.train.recompute = config::Recompute::block;
    try_run(other, fmt::format("parallel.zero={} and train.recompute=block", zero));
  }
  return words;
}

void check_fits(const MemoryPlan& plan, const Available& available, Device device,
                const std::function<std::string()>& advice) {
  const std::int64_t needs = needed(plan, device);
  if (!available.bytes || needs <= *available.bytes) return;
  const std::string fitting = advice ? advice() : "";
  throw_input(
      "too little memory: the run needs {:.1f} MiB on {}, of which {:.1f} MiB are free, {:.1f} too few: "
      "parameters, "
      "gradients and moments take {:.1f}, activations of a micro-batch {:.1f}; {}",
      mib(needs), available.where, mib(*available.bytes), mib(needs - *available.bytes), mib(plan.state()),
      mib(device == Device::cpu ? plan.touched_activations() : plan.activations),
      fitting.empty()
          ? "no smaller train.micro_batch_size and no train.recompute is enough; use a smaller model or "
            "train.seq_len"
          : "it fits with " + fitting);
}

void check_fits_everywhere(const MemoryPlan& plan, const Available& available, Device device,
                           const std::string& who, const parallel::Group& all,
                           const std::function<std::string()>& advice) {
  if (all.size() == 1) return check_fits(plan, available, device, advice);
  double spare = std::numeric_limits<double>::infinity();
  std::string lack;
  if (available.bytes) {
    spare = static_cast<double>(*available.bytes - needed(plan, device));
    try {
      check_fits(plan, available, device, advice);
    } catch (const InputError& error) {
      lack = who + ": " + error.what();
    }
  }
  const std::vector<double> spare_R = all.gather_numbers(std::span(&spare, 1));
  const auto least = std::min_element(spare_R.begin(), spare_R.end());
  if (*least < 0) throw_input("{}", all.gather_text(lack)[static_cast<std::size_t>(least - spare_R.begin())]);
}

namespace {

// The first option with which a micro-batch is more than a part of a sum; empty: none.
std::string defined_by_micro_batch(const config::Router& router) {
  const auto is = [&](const char* key, const char* word) {
    return router.own.has(key) && router.own.word(key) == word;
  };
  if (router.balance_scope == config::BalanceScope::layer ||
      router.balance_scope == config::BalanceScope::model)
    return "balance_scope";
  if (router.capacity_factor) return "capacity_factor";
  if (router.own.has("bias_solves") && router.own.integer("bias_solves") > 0) return "bias_solves";
  return is("reg_scope", "micro_batch") ? "reg_scope" : "";
}

}  // namespace

std::vector<std::string> choose_micro_batch(config::Run& run, parallel::World& world, Device device,
                                            std::optional<std::int64_t> before) {
  if (run.train.micro_batch_size != config::Train::kAutoMicroBatch) return {};
  const auto set = [&](std::int64_t size) {
    run.train.micro_batch_size = size;
    run.resolved_json = config::to_resolved_json(run);
  };
  const std::vector<std::int64_t> sizes = micro_batches_to_choose(run, world.size());
  if (before && std::find(sizes.begin(), sizes.end(), *before) != sizes.end()) {
    set(*before);
    return {fmt::format("train.micro_batch_size \"auto\": {}, with which the run began", *before)};
  }
  if (sizes.empty())
    throw_input(
        "train.micro_batch_size: is \"auto\", but no divisor of train.global_batch_size, {}, gives each of {} "
        "rank{} a "
        "micro-batch that can be addressed; use a smaller train.seq_len or other ranks",
        run.train.global_batch_size, world.size(), world.size() == 1 ? "" : "s");
  // Of the host alone: where ranks meet makes no difference to what they keep.
  const parallel::Mesh mesh = parallel::make_mesh(world, static_cast<int>(run.parallel.expert));
  const Available available = available_to(world, device);
  const double usable = device == Device::cpu ? kUsable : kUsableOfDevice;
  model::Transformer model(run.model, run.router, model::dtype_of(run.train.dtype, device), true);
  const auto bytes_with = [&](std::int64_t size) {
    config::Run with = run;
    with.train.micro_batch_size = size;
    model.parameters().place(
        placement_of(mesh, run.parallel.zero, sums_beside_backward(with, mesh.all.size(), device)));
    // A device's experts get the room that is left, the CPU's what is touched.
    const MemoryPlan plan = plan_memory(model, with, mesh, 1, device);
    return device == Device::cpu ? plan.peak() : plan.before_workspace() + plan.workspace;
  };
  const auto limit = available.bytes ? usable * static_cast<double>(*available.bytes)
                                     : std::numeric_limits<double>::infinity();
  auto mine = static_cast<double>(first_that_fits(
      sizes, [&](std::int64_t size) { return static_cast<double>(bytes_with(size)) <= limit; }));
  const std::vector<double> size_R =
      world.size() > 1 ? mesh.all.gather_numbers(std::span(&mine, 1)) : std::vector{mine};
  const auto least = std::min_element(size_R.begin(), size_R.end());
  const auto size = static_cast<std::int64_t>(*least);
  const std::int64_t shown = size > 0 ? size : sizes.back();
  std::string reason =
      available.bytes
          ? fmt::format("{} sequence{} need {:.1f} MiB of the {:.1f} MiB that are free on {}", shown,
                        shown == 1 ? "" : "s", mib(bytes_with(shown)), mib(*available.bytes), available.where)
          : fmt::format("nobody says how much memory is free on {}", available.where);
  if (world.size() > 1) reason = mesh.all.gather_text(reason)[static_cast<std::size_t>(least - size_R.begin())];
  if (size == 0)
    throw_input(
        "train.micro_batch_size: is \"auto\", but not even the smallest micro-batch fits: {}, of which {:.0f} "
        "% are used; "
        "set train.recompute, or use a smaller model or train.seq_len",
        reason, 100 * usable);
  const auto larger = std::find(sizes.rbegin(), sizes.rend(), size);
  const std::string next = std::next(larger) == sizes.rend() ? "a whole step of a rank"
                                                             : fmt::format("{} would take more than {:.0f} %",
                                                                           *std::next(larger), 100 * usable);
  set(size);
  std::vector<std::string> lines = {
      fmt::format("train.micro_batch_size \"auto\": {}: {}; {}", size, reason, next)};
  if (const std::string what = defined_by_micro_batch(run.router); !what.empty())
    lines.push_back(
        fmt::format("router.{} is defined over a micro-batch, so that the loss depends on what was taken; "
                    "set train.micro_batch_size to the same number where runs are compared",
                    what));
  return lines;
}

}  // namespace switchyard::train
