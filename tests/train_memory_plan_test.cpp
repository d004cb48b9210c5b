// Whether a plan fits, on every rank of a run.
#include "train/memory_plan.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "world_threads.h"

namespace switchyard::train {
namespace {

using namespace test;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

MemoryPlan plan_of(std::int64_t mib) { return {.parameters = (mib - 10) * kMiB, .activations = 10 * kMiB}; }

// What each of the ranks throws that need and have so many MiB.
struct Case {
  std::int64_t needed;
  std::optional<std::int64_t> free;
};
std::vector<std::string> errors_of(const std::vector<Case>& case_R) {
  std::vector<std::string> error_R(case_R.size());
  on_world_threads(static_cast<int>(case_R.size()), [&](parallel::World& world) {
    const auto rank = static_cast<std::size_t>(world.rank());
    const Case& mine = case_R[rank];
    try {
      check_fits_everywhere(plan_of(mine.needed), mine.free ? std::optional(*mine.free * kMiB) : std::nullopt,
                            "a card", "rank " + std::to_string(rank) + " (host b)", parallel::all_ranks(world));
    } catch (const InputError& error) {
      error_R[rank] = error.what();
    }
  });
  return error_R;
}

TEST(CheckFitsEverywhere, ThrowsOnAllRanksWhatTheOneSaysThatHasLeastToSpare) {
  const std::string expected =
      "rank 2 (host b): too little memory: the run needs 100.0 MiB on a card, of which 50.0 MiB are free: "
      "parameters, gradients and moments take 90.0, activations of a micro-batch 10.0; use a smaller model, "
      "train.micro_batch_size or train.seq_len, or set train.recompute";
  for (const std::string& error : errors_of({{100, 200}, {100, 60}, {100, 50}, {20, 40}}))
    EXPECT_EQ(error, expected);
}

TEST(CheckFitsEverywhere, LittleMemoryIsEnoughForWhoeverNeedsLittle) {
  for (const std::string& error : errors_of({{100, 100}, {20, 20}})) EXPECT_EQ(error, "");
}

TEST(CheckFitsEverywhere, ADeviceThatDoesNotSayHasEnough) {
  for (const std::string& error : errors_of({{100, std::nullopt}, {100, std::nullopt}})) EXPECT_EQ(error, "");
}

TEST(CheckFitsEverywhere, ARankAloneSaysSoWithoutANumber) {
  const std::vector<std::string> errors = errors_of({{100, 99}});
  EXPECT_EQ(errors[0].find("too little memory: the run needs 100.0 MiB on a card, of which 99.0"), 0u)
      << errors[0];
}

}  // namespace
}  // namespace switchyard::train
