// What a run on several ranks adds to a run on one: who does which micro-batches, what configurations refuse,
// what ranks say of themselves each step, and whether what they hold alike is alike. All of it is true of one
// rank, too.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/parameters.h"
#include "model/transformer.h"
#include "parallel/devices.h"
#include "parallel/world.h"
#include "train/expert_load.h"

namespace switchyard::train {

// The micro-batches of a step are numbered over the global batch, U in all; a rank does neighbours.
struct MicroBatches {
  std::int64_t first = 0, count = 0;  // of this rank
  // That every rank runs: the most that any has. What a rank has less is padding, which counts in nothing.
  std::int64_t run = 0;
};
MicroBatches micro_batches_of(const config::Train& train, int rank, int size);

// Throws InputError where the run cannot be done by so many ranks.
void check_ranks(const config::Run& run, int size, Device device);
// Throws InputError where tokens are to go by rows and the devices of an expert group do not reach each other's
// memory.
void check_windows(const config::Run& run, const parallel::DeviceChoice& devices);
// Says where all tokens to all ranks would be more than twice what is needed, and rows would do.
void advise_on_rows(const config::Run& run, const parallel::DeviceChoice& devices);
// Warns where micro-batches do not divide among the ranks: some then wait for others.
void warn_of_idle_ranks(const config::Train& train, int size);

// Whether sums of gradients go on beside the backward pass (gradient_sums.h), of a run on `size` ranks.
bool sums_beside_backward(const config::Run& run, int size, Device device);

// Who holds which rows; with `sums_beside` there is memory for the gradients of two layers, where layers share
// it.
Placement placement_of(const parallel::Mesh& mesh, std::int64_t zero, bool sums_beside = false);

// Throws InputError on all ranks, naming the first that differs, where `what` ("the program") is not the same
// text on all of them.
void expect_same_everywhere(const parallel::Group& all, const std::string& what, const std::string& mine,
                            const std::string& advice);

// The ranks that share experts know of each other, and have room for so many times an even load of rows. Before
// the model is measured and planned; the mesh outlives it.
void share_experts(model::Transformer& model, const config::Parallel& parallel, const parallel::Mesh& mesh,
                   double room, Device device);
// The largest room, at most as many times an even load as there can be and at least 1, of which fits(room) says
// on every rank that it fits. All ranks call.
double largest_room(const parallel::Mesh& mesh, const std::function<bool(double)>& fits);

// What the tokens of a pass have needed.
struct ExpertNeed {
  std::int64_t rounds = 1;  // in how many turns it was done in the end
  std::int64_t rows = 0;    // that the busiest rank would have had at once; 0: nobody shares experts
};
// Does `work`, passes of the model, and again in rounds for as long as a rank of `all` has had no room for its
// rows: the last time is complete on every rank. n_tokens: of a batch.
ExpertNeed in_rounds(model::Transformer& model, std::int64_t n_tokens, const parallel::Group& all, Context& ctx,
                     const std::function<void()>& work);

// Rows of the busiest rank over the mean, of each layer with a router; of all experts' counts by layer.
std::vector<double> rank_load(const LoadCounts& load, int expert_ranks);

// Bytes that all ranks together send in one step, by the formulas of docs/parallel.md.
struct IdealBytes {
  std::int64_t gradients = 0, weights = 0;
};
// micro_batches: that each rank runs.
IdealBytes ideal_bytes(const ParameterStore& store, const parallel::Mesh& mesh, std::int64_t zero,
                       std::int64_t micro_batches);

// What the ranks say of themselves after a step, on every rank.
struct RankFigures {
  std::array<std::int64_t, parallel::kTrafficKinds> sent_bytes{};  // since the last time, of all ranks
  // Since the last time, of each rank: how long its device was in exchanges, on the CPU none; how long it
  // waited for others, its host, and its device beyond the one that was in exchanges least.
  std::vector<double> exchange_seconds_N, wait_seconds_N;
  std::vector<std::int64_t> memory_bytes_N;  // the largest resident set of each process
};
class RankWatch {
 public:
  // exchange_seconds: of this rank's device, if it computes on one.
  RankFigures gather(const parallel::World& world, const parallel::Group& all,
                     std::optional<double> exchange_seconds = std::nullopt);

 private:
  parallel::TransportCounts before_;
};

// Throws RunError on all ranks where the values that several of them hold are not the same bits: names the
// first such tensor and the ranks that differ from the first of their group.
void check_replicas(const ParameterStore& store, const parallel::Mesh& mesh, std::int64_t step);

}  // namespace switchyard::train
