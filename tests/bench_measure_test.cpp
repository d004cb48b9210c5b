// What is measured: the numbers that do not depend on a clock by hand, the others by what must hold of any
// clock.
#include "bench/measure.h"

#include <gtest/gtest.h>

#include <cmath>

#include "bench/random_tokens.h"
#include "bench/report.h"
#include "config/load.h"
#include "core/error.h"
#include "core/statistics.h"
#include "model/cost.h"
#include "router/router.h"
#include "run_samples.h"

namespace switchyard::bench {
namespace {

config::Router router_of(const std::string& type, const config::Model& model) {
  return config::default_of(config::schema_of(type, router::router_schemas()), model);
}

// One layer, 4 experts of which 2 are active, hidden size 8, vocabulary 31; steps of 4 micro-batches of 2 x 8.
Subject subject(const std::string& router = "softmax_topk") {
  Subject subject;
  subject.name = "small";
  subject.run = test::small_run();
  subject.run.router = router_of(router, subject.run.model);
  subject.run.router.balance_coef = 0;  // whose sums over micro-batches would need a second forward pass
  subject.run.train.seq_len = 8;
  subject.run.train.micro_batch_size = 2;
  subject.run.train.global_batch_size = 8;
  subject.trains = true;
  return subject;
}

constexpr Settings kSettings{.batch = 3, .prompt = 10, .new_tokens = 4, .rounds = 2, .steps = 1};

double flops_of(const Part& part) {
  double flops = 0;
  for (const ops::Profile::Row& row : part.work) flops += row.all_flops();
  return flops;
}

TEST(BenchStatistics, QuantilesLieBetweenValues) {
  EXPECT_EQ(quantile_of({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(quantile_of({4, 1, 2, 3}, 0.5), 2.5);
  EXPECT_EQ(quantile_of({7}, 0.99), 7);
  EXPECT_DOUBLE_EQ(quantile_of({0, 10}, 0.99), 9.9);
  const Spread spread = spread_of({5, 1, 3});
  EXPECT_EQ(spread.median, 3);
  EXPECT_EQ(spread.low, 1);
  EXPECT_EQ(spread.high, 5);
}

TEST(BenchRandomTokens, LieInTheVocabularyAndRepeat) {
  const auto tokens = random_tokens(1000, 31, 4);
  EXPECT_EQ(tokens, random_tokens(1000, 31, 4));
  EXPECT_NE(tokens, random_tokens(1000, 31, 5));
  EXPECT_EQ(*std::min_element(tokens.begin(), tokens.end()), 0);
  EXPECT_EQ(*std::max_element(tokens.begin(), tokens.end()), 30);
}

TEST(BenchMeasure, EveryPartOnceAndOfEachRoundANumber) {
  const Report report = measure(subject(), kSettings, Device::cpu);
  ASSERT_EQ(report.parts.size(), 5U);  // training; prefill and decode of 1 and of 3
  EXPECT_EQ(report.parts[0].kind, Kind::training);
  EXPECT_EQ(report.parts[0].tokens, 8 * 8);
  EXPECT_EQ(report.parts[0].micro_batches, 4);
  EXPECT_EQ(report.parts[0].micro_batches_measured, 2);
  EXPECT_EQ(report.parts[1].kind, Kind::prefill);
  EXPECT_EQ(report.parts[1].tokens, 10);
  EXPECT_EQ(report.parts[4].kind, Kind::decode);
  EXPECT_EQ(report.parts[4].tokens, 3);
  EXPECT_EQ(report.parts[4].seconds_N.size(), 2U * 4U);
  for (const Part& part : report.parts) {
    EXPECT_EQ(part.seconds_R.size(), 2U) << name_of(part.kind);
    for (const double seconds : part.seconds_R) EXPECT_GT(seconds, 0);
    EXPECT_EQ(part.experts_per_token, 2) << name_of(part.kind);  // top 2, whatever the weights
  }
  EXPECT_TRUE(report.not_measured.empty());
  EXPECT_GT(report.rates.product[0], 0);
  EXPECT_GT(report.rates.copy, 0);
  EXPECT_GT(report.training_peak, 0);
}

// FLOPs are counted in a pass of its own: they are those of model/cost.h, but for the head, which a prompt
// needs of its last token alone. Whole numbers below 2^53: equal.
TEST(BenchMeasure, FlopsAreThoseOfTheFormula) {
  const Subject small = subject();
  const Report report = measure(small, kSettings, Device::cpu);
  const model::Transformer model(small.run.model, small.run.router, DType::f32, false);
  const model::FlopCounter counter(model);
  const auto expected = [&](std::int64_t sequences, std::int64_t tokens, std::int64_t keys, double heads) {
    const model::Flops flops = counter.count_static({.tokens = sequences * tokens, .keys = sequences * keys});
    return flops.total() - flops.head + heads * 2 * 8 * 31;
  };
  // Tokens 1 to 10 of a prompt see 1 + ... + 10 keys.
  EXPECT_EQ(flops_of(report.parts[1]), expected(1, 10, 55, 1));
  EXPECT_EQ(flops_of(report.parts[3]), expected(3, 10, 55, 3));
  // The four behind it 11 to 14: the mean of a pass is 12.5 keys. Sums of halves are exact.
  EXPECT_EQ(2 * flops_of(report.parts[2]), expected(1, 2, 25, 2));
  EXPECT_EQ(2 * flops_of(report.parts[4]), expected(3, 2, 25, 6));
  // A training step is three times its forward pass, and attention's scores are made once more: 4 micro-batches
  // of 2 sequences of 36 pairs, 2 heads, 2 * 4 a pair.
  const double forward = counter.count_static({.tokens = 64, .keys = 8 * 36}).total();
  EXPECT_EQ(flops_of(report.parts[0]), 3 * forward + 8 * 36 * 2 * 2 * 4);
}

TEST(BenchMeasure, MemoryIsThatOfThePlans) {
  const Subject small = subject();
  const Report report = measure(small, kSettings, Device::cpu);
  ASSERT_EQ(report.memory.size(), 3U);  // training, inference of 1, of 3
  const std::int64_t values = model::count_parameters(small.run.model, small.run.router).total;
  const Memory& training = report.memory[0];
  EXPECT_GE(training.weights, 4 * values);
  EXPECT_LE(training.weights, 4 * values + 64 * 64);  // gaps between rows: up to a cache line a row
  EXPECT_EQ(training.moments, 2 * training.weights);
  EXPECT_EQ(report.memory[1].gradients, 0);
  // Keys and values of 14 positions, one head of width 4, and a rope table of 14 x 2 cosines and sines; each
  // array begins at a cache line of 64 bytes.
  const auto lines = [](std::int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const std::int64_t rope = 2 * lines(14 * 2 * 4), key_values = 2 * lines(14 * 4 * 4);
  EXPECT_LE(std::abs(report.memory[1].cache - rope - key_values), 64);
  EXPECT_EQ(report.memory[2].cache - report.memory[1].cache, 2 * key_values);
}

TEST(BenchMeasure, BesideTheStaticModelFlopsAreRatios) {
  Subject dynamic = subject("dynamic_k");
  dynamic.run.router.own.set("max_experts", std::int64_t{4});
  Settings settings = kSettings;
  settings.static_k = 4;
  const Report report = measure(dynamic, settings, Device::cpu);
  ASSERT_EQ(report.parts.size(), 10U);
  const std::vector<Comparison> comparisons = compare(report);
  ASSERT_EQ(comparisons.size(), 5U);
  for (const Comparison& c : comparisons) {
    EXPECT_EQ(c.of_static->experts_per_token, 4);
    EXPECT_GE(c.dynamic->experts_per_token, 1);
    EXPECT_LT(c.dynamic->experts_per_token, 4);
    EXPECT_LT(c.flops_ratio, 1);
    EXPECT_GT(c.flops_ratio, 0.25);
    EXPECT_GT(c.time_ratio, 0);
    EXPECT_LE(c.time_ratio_low, c.time_ratio);
    EXPECT_GE(c.time_ratio_high, c.time_ratio);
  }
  // Both forms hold the same numbers.
  const Json json = json_of(report, dynamic, settings, Device::cpu);
  EXPECT_EQ(json["comparison"].size(), 5U);
  EXPECT_EQ(json["comparison"][std::size_t{0}]["flops_ratio"].number(), comparisons[0].flops_ratio);
  EXPECT_FALSE(lines_of(report, dynamic, settings, Device::cpu).empty());
}

TEST(BenchMeasure, AllExpertsOfEveryTokenAreNoSaving) {
  Subject all = subject("top_p");  // with p 1 every token has max_experts
  all.run.router.own.set("p", 1.0);
  Settings settings = kSettings;
  settings.static_k = 2;
  for (const Report report = measure(all, settings, Device::cpu); const Comparison& c : compare(report)) {
    EXPECT_EQ(c.flops_ratio, 1) << name_of(c.dynamic->kind);
    EXPECT_EQ(c.dynamic->experts_per_token, 2);
  }
}

TEST(BenchMeasure, WhatDoesNotFitIsRefusedBeforeItIsTaken) {
  Subject large = subject();
  large.run.model.vocab_size = config::kMaxSize;  // 2^31 rows of 64: 512 GiB of embedding, as much of the head
  large.run.model.hidden_size = 64;
  try {
    measure(large, kSettings, Device::cpu);
    FAIL() << "a model of 1 TiB was taken";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("too little memory: training takes"), std::string::npos)
        << error.what();
  }
  large.trains = false;
  try {
    measure(large, kSettings, Device::cpu);
    FAIL() << "a model of 1 TiB was taken";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("too little memory: inference takes"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace switchyard::bench
