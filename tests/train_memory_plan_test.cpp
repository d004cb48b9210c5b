// Whether a plan fits, on every rank of a run.
#include "train/memory_plan.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "config/load.h"
#include "core/error.h"
#include "core/process_memory.h"
#include "router/router.h"
#include "train/ranks.h"
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
      check_fits_everywhere(
          plan_of(mine.needed), {mine.free ? std::optional(*mine.free * kMiB) : std::nullopt, "a card"},
          Device::cpu, "rank " + std::to_string(rank) + " (host b)", parallel::all_ranks(world),
          [] { return "train.recompute=block (needs 40.0 MiB)"; });
    } catch (const InputError& error) {
      error_R[rank] = error.what();
    }
  });
  return error_R;
}

TEST(CheckFitsEverywhere, ThrowsOnAllRanksWhatTheOneSaysThatHasLeastToSpare) {
  const std::string expected =
      "rank 2 (host b): too little memory: the run needs 100.0 MiB on a card, of which 50.0 MiB are free, 50.0 "
      "too "
      "few: parameters, gradients and moments take 90.0, activations of a micro-batch 10.0; it fits with "
      "train.recompute=block (needs 40.0 MiB)";
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

// A small mixture; `train` is put into its section.
config::Run run_of(const std::string& train) {
  return config::parse_run(
      R"({"model": {"model_type": "qwen3_moe", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 32, "num_experts": 8,
          "num_experts_per_tok": 2, "max_position_embeddings": 256},
          "data": {"train": ["none.bin"]}, "train": {"steps": 1, "seq_len": 128, )" +
          train + "}}",
      "test", {}, router::router_schemas());
}

MemoryPlan plan_alone(const config::Run& run) {
  model::Transformer model(run.model, run.router, DType::f32, true);
  return plan_memory(model, run, parallel::lone_mesh(), 1, Device::cpu);
}

TEST(PlanMemory, MoreSequencesNeedMoreAndRecomputingLess) {
  const auto needs = [](const std::string& train) { return needed(plan_alone(run_of(train)), Device::cpu); };
  EXPECT_LT(needs(R"("micro_batch_size": 4)"), needs(R"("micro_batch_size": 8)"));
  EXPECT_LT(needs(R"("micro_batch_size": 8, "recompute": "swiglu")"), needs(R"("micro_batch_size": 8)"));
  EXPECT_LT(needs(R"("micro_batch_size": 8, "recompute": "block")"),
            needs(R"("micro_batch_size": 8, "recompute": "swiglu")"));
}

// 32 sequences a step: by themselves, of 4 ranks, and where 3 ranks cannot have as many each.
TEST(MicroBatchesToChoose, DivideWhatEachRankHas) {
  const config::Run run = run_of(R"("micro_batch_size": "auto", "global_batch_size": 32)");
  EXPECT_EQ(micro_batches_to_choose(run, 1), (std::vector<std::int64_t>{32, 16, 8, 4, 2, 1}));
  EXPECT_EQ(micro_batches_to_choose(run, 4), (std::vector<std::int64_t>{8, 4, 2, 1}));
  EXPECT_EQ(micro_batches_to_choose(run, 3), (std::vector<std::int64_t>{8, 4, 2, 1}));
  const config::Run odd = run_of(R"("micro_batch_size": "auto", "global_batch_size": 30)");
  EXPECT_EQ(micro_batches_to_choose(odd, 2), (std::vector<std::int64_t>{15, 5, 3, 1}));
}

// What is advised is planned again here: it fits, and the next larger micro-batch does not.
TEST(WhatFits, IsTrueOfEverySuggestion) {
  const config::Run run = run_of(R"("micro_batch_size": 32, "global_batch_size": 64)");
  const std::int64_t all = needed(plan_alone(run), Device::cpu), room = all * 6 / 10;
  const std::string words = what_fits(plan_alone, run, 1, room, Device::cpu);
  ASSERT_NE(words.find("train.micro_batch_size="), std::string::npos) << words;
  const auto with = [&](std::int64_t size, config::Recompute recompute) {
    config::Run other = run;
    other.train.micro_batch_size = size;
    other.train.recompute = recompute;
    return needed(plan_alone(other), Device::cpu);
  };
  const std::int64_t size = std::stoll(words.substr(words.find('=') + 1));
  EXPECT_LT(size, 32) << words;
  EXPECT_LE(with(size, config::Recompute::none), room) << words;
  EXPECT_GT(with(2 * size, config::Recompute::none), room) << words;
  const std::size_t block = words.find("train.recompute=block");
  ASSERT_NE(block, std::string::npos) << words;
  EXPECT_GT(with(32, config::Recompute::none), room);
  EXPECT_EQ(what_fits(plan_alone, run, 1, kMiB, Device::cpu), "");
}

TEST(ChooseMicroBatch, TakesTheLargestThatFitsAndKeepsWhatARunBeganWith) {
  parallel::World world = parallel::make_lone_world();
  config::Run run = run_of(R"("micro_batch_size": "auto", "global_batch_size": 8)");
  EXPECT_NE(run.resolved_json.find(R"("micro_batch_size": "auto")"), std::string::npos);
  const std::vector<std::string> lines = choose_micro_batch(run, world, Device::cpu, std::nullopt);
  EXPECT_EQ(run.train.micro_batch_size, 8);  // some MiB: any machine has them
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].find("train.micro_batch_size \"auto\": 8: 8 sequences need "), 0u) << lines[0];
  EXPECT_NE(run.resolved_json.find(R"("micro_batch_size": 8)"), std::string::npos);

  config::Run resumed = run_of(R"("micro_batch_size": "auto", "global_batch_size": 8)");
  choose_micro_batch(resumed, world, Device::cpu, 2);
  EXPECT_EQ(resumed.train.micro_batch_size, 2);
  // 3 sequences do not divide the step any more.
  config::Run changed = run_of(R"("micro_batch_size": "auto", "global_batch_size": 8)");
  choose_micro_batch(changed, world, Device::cpu, 3);
  EXPECT_EQ(changed.train.micro_batch_size, 8);
}

TEST(ChooseMicroBatch, RanksAgree) {
  std::vector<std::int64_t> size_R(4);
  on_world_threads(4, [&](parallel::World& world) {
    config::Run run = run_of(R"("micro_batch_size": "auto", "global_batch_size": 32)");
    choose_micro_batch(run, world, Device::cpu, std::nullopt);
    size_R[static_cast<std::size_t>(world.rank())] = run.train.micro_batch_size;
  });
  EXPECT_EQ(size_R, (std::vector<std::int64_t>(4, 8)));
}

}  // namespace
}  // namespace switchyard::train
