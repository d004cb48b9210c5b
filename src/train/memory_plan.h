// What a run keeps in memory, known before any of it is taken; whether it fits, and what would.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "model/transformer.h"
#include "parallel/group.h"
#include "parallel/world.h"

namespace switchyard::train {

// Of one rank, in bytes.
struct MemoryPlan {
  std::int64_t parameters = 0;  // float32
  std::int64_t weights = 0;     // what a bf16 run computes with beside them
  std::int64_t gradients = 0;
  std::int64_t moments = 0;
  std::int64_t halves = 0;       // with train.same_bits: gradients of micro-batches that wait for others
  std::int64_t activations = 0;  // of one micro-batch
  // Of these, what is touched where every rank's experts get as many rows; 0: ranks do not share experts.
  std::int64_t even_activations = 0;
  double expert_room = 0;  // rows that a rank's experts can take, as a multiple of an even load; the same
  // What operators take while they run: worked out by going through a step without computing it, in
  // rehearse() measured on a device. In the first step it grows in pieces, which do not all fit what comes
  // next.
  std::int64_t workspace = 0, first_workspace = 0;
  std::int64_t data = 0;      // tokens, losses and counts of a step's micro-batches
  std::int64_t exchange = 0;  // pieces of other ranks' sums
  // On the CPU: packed operands and compiled kernels of the library of products, thread by thread; an estimate.
  std::int64_t products = 0;
  // On the CPU: of the process, before any of the above: the program, its libraries, data that were checked.
  std::int64_t resident = 0;

  std::int64_t state() const { return parameters + weights + gradients + moments + halves; }
  // Pages that nobody touches are not resident, on a CPU.
  std::int64_t touched_activations() const { return even_activations > 0 ? even_activations : activations; }
  // What the run takes beside what the process has: from the second step on, and at most.
  std::int64_t steady() const {
    return state() + touched_activations() + workspace + data + exchange + products;
  }
  std::int64_t peak() const { return steady() + std::max<std::int64_t>(0, first_workspace - workspace); }
  // What is taken of a device before the first micro-batch: workspace comes with that.
  std::int64_t before_workspace() const { return state() + activations + data; }
};

// Of this rank of a run whose micro-batch is a number. The model is made for training, and not allocated; its
// parameters are placed, and its experts shared with room for `room` times an even load.
MemoryPlan plan_memory(model::Transformer& model, const config::Run& run, const parallel::Mesh& mesh,
                       double room, Device device);

// One line an entry, in MiB, and the totals: "  parameters        12.3 MiB". What is 0 has no line.
std::vector<std::string> table_of(const MemoryPlan& plan, Device device);

// What there is for a rank, and who says so: "this machine", "NVIDIA H100 80GB HBM3".
struct Available {
  std::optional<std::int64_t> bytes;  // no value: nobody says
  std::string where;
};
// On a CPU ranks of a machine have equal shares of what it has; a limit of the address space is each one's own.
Available available_to(const parallel::World& world, Device device);

// Bytes that a plan needs of that.
std::int64_t needed(const MemoryPlan& plan, Device device);

// The plan of a run like the one at hand: with another micro-batch, train.recompute or parallel.zero.
using PlanOf = std::function<MemoryPlan(const config::Run&)>;

// The micro-batches that divide a step of `ranks` ranks so that every rank has as many, or, where that cannot
// be, at least one; the largest first. Without those that are too large to be addressed.
std::vector<std::int64_t> micro_batches_to_choose(const config::Run& run, int ranks);

// In words, what of smaller micro-batches, train.recompute and parallel.zero makes the run fit into `bytes`,
// each planned and found to; empty: nothing does.
//   "train.micro_batch_size=4 (needs 812.3 MiB), or train.recompute=\"block\" (needs 1030.1 MiB)"
std::string what_fits(const PlanOf& plan_of, const config::Run& run, int ranks, std::int64_t bytes,
                      Device device);

// Throws InputError, naming the largest entries and `advice`, where the plan needs more than there is.
void check_fits(const MemoryPlan& plan, const Available& available, Device device,
                const std::function<std::string()>& advice);

// The same for all ranks of a run, each with its own plan and memory, before any of them takes any: throws
// on all of them what the one says that has least to spare, with its name before it. All ranks call it.
//   who: "rank 2 (host b, GPU 2)"
void check_fits_everywhere(const MemoryPlan& plan, const Available& available, Device device,
                           const std::string& who, const parallel::Group& all,
                           const std::function<std::string()>& advice);

// With train.micro_batch_size "auto": sets it, on all ranks alike, to the largest of micro_batches_to_choose()
// with which every rank needs at most kUsable (on a device kUsableOfDevice) of what it has, and
// run.resolved_json with it; without, does nothing. Where the run goes on, `before` is what it took, and stays
// if it still divides the step. Returns what to say of it: lines, the same on all ranks. Throws InputError
// where none fits. All ranks call it.
constexpr double kUsable = 0.9;           // the plan is an estimate, and other programs take some
constexpr double kUsableOfDevice = 0.85;  // workspace is a guess there
std::vector<std::string> choose_micro_batch(config::Run& run, parallel::World& world, Device device,
                                            std::optional<std::int64_t> before);

// With train.same_bits: how many sums of micro-batches wait for their other half at the same time.
std::int64_t waiting_halves(std::int64_t micro_batches);

}  // namespace switchyard::train
