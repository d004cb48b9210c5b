// What a run keeps in memory, known before any of it is taken.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/transformer.h"
#include "parallel/group.h"

namespace switchyard::train {

struct MemoryPlan {
  std::int64_t parameters = 0;  // bytes, as all below; float32
  std::int64_t weights = 0;     // what a bf16 run computes with beside them
  std::int64_t gradients = 0;
  std::int64_t moments = 0;
  std::int64_t halves = 0;       // with train.same_bits: gradients of micro-batches that wait for others
  std::int64_t activations = 0;  // of one micro-batch
  // Of these, what is touched where every rank's experts get as many rows; 0: ranks do not share experts.
  std::int64_t even_activations = 0;
  double expert_room = 0;  // rows that a rank's experts can take, as a multiple of an even load; the same
  // What operators take while they run; no value: not known before the first micro-batch has passed.
  std::optional<std::int64_t> workspace = std::nullopt;

  std::int64_t total() const {
    return parameters + weights + gradients + moments + halves + activations + workspace.value_or(0);
  }
};

// Of this rank, one of `n_ranks`; the model is made for training, its parameters are placed and not yet
// allocated.
MemoryPlan plan_memory(model::Transformer& model, const config::Train& train, int n_ranks);

// One line an entry, in MiB, and the total: "  parameters        12.3 MiB". What is 0 has no line.
std::vector<std::string> table_of(const MemoryPlan& plan);

// Throws InputError, naming the largest entries, where the plan needs more than there is.
//   where: "NVIDIA H100 80GB HBM3"
void check_fits(const MemoryPlan& plan, std::int64_t free_bytes, const std::string& where);

// The same for all ranks of a run, each with its own plan and device, before any of them takes memory: throws
// on all of them what the one says that has least to spare, with its name before it. All ranks call it.
//   who: "rank 2 (host b, GPU 2)"; free_bytes: no value where the device does not say, as the CPU
void check_fits_everywhere(const MemoryPlan& plan, std::optional<std::int64_t> free_bytes,
                           const std::string& where, const std::string& who, const parallel::Group& all);

// With train.same_bits: how many sums of micro-batches wait for their other half at the same time.
std::int64_t waiting_halves(std::int64_t micro_batches);

}  // namespace switchyard::train
