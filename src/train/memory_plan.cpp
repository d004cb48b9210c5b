#include "train/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "train/ranks.h"

namespace switchyard::train {

namespace {

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

std::int64_t waiting_halves(std::int64_t micro_batches) {
  return micro_batches < 2 ? 0 : 1 + waiting_halves((micro_batches + 1) / 2);
}

MemoryPlan plan_memory(model::Transformer& model, const config::Train& train, int n_ranks) {
  const std::int64_t n = model.parameters().flat_size();
  const DType compute = model.dtype(), exact = accumulation_dtype(compute);
  const std::int64_t array = n * size_of(exact);
  return {.parameters = array,
          .weights = compute == exact ? 0 : n * size_of(compute),
          .gradients = model.parameters().gradients_size() * size_of(exact),
          .moments = 2 * model.parameters().moments_size() * size_of(exact),
          .halves = train.same_bits ? waiting_halves(micro_batches_of(train, 0, n_ranks).run) * array : 0,
          .activations = model.measure_activations(train.micro_batch_size, train.seq_len, train.recompute)};
}

std::vector<std::string> table_of(const MemoryPlan& plan) {
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
  entry("workspace", plan.workspace.value_or(0));
  entry(plan.workspace ? "total" : "all but workspace", plan.total());
  return lines;
}

void check_fits(const MemoryPlan& plan, std::int64_t free_bytes, const std::string& where) {
  if (plan.total() <= free_bytes) return;
  throw_input(
      "too little memory: the run needs {:.1f} MiB on {}, of which {:.1f} MiB are free: parameters, gradients "
      "and moments take "
      "{:.1f}, activations of a micro-batch {:.1f}; use a smaller model, train.micro_batch_size or "
      "train.seq_len, or set train.recompute",
      mib(plan.total()), where, mib(free_bytes),
      mib(plan.parameters + plan.weights + plan.gradients + plan.moments + plan.halves), mib(plan.activations));
}

void check_fits_everywhere(const MemoryPlan& plan, std::optional<std::int64_t> free_bytes,
                           const std::string& where, const std::string& who, const parallel::Group& all) {
  if (all.size() == 1) {
    if (free_bytes) check_fits(plan, *free_bytes, where);
    return;
  }
  double spare = std::numeric_limits<double>::infinity();
  std::string lack;
  if (free_bytes) {
    spare = static_cast<double>(*free_bytes - plan.total());
    try {
      check_fits(plan, *free_bytes, where);
    } catch (const InputError& error) {
      lack = who + ": " + error.what();
    }
  }
  const std::vector<double> spare_R = all.gather_numbers(std::span(&spare, 1));
  const auto least = std::min_element(spare_R.begin(), spare_R.end());
  if (*least < 0) throw_input("{}", all.gather_text(lack)[static_cast<std::size_t>(least - spare_R.begin())]);
}

}  // namespace switchyard::train
