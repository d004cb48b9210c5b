#include "train/evaluator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numbers>
#include <vector>

#include "parallel/world.h"
#include "run_samples.h"
#include "shards.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::train {
namespace {

using namespace test;

// A model of two layers with weights large enough that each token's loss is its own.
struct Evaluation {
  Evaluation() : model_config(small_run().model) {
    model_config.num_hidden_layers = 2;
    config::set_layers(model_config, {true, true});
    model_config.initializer_range = 0.3;
    std::vector<std::uint32_t> tokens;
    for (std::uint32_t i = 0; i < 23; ++i) tokens.push_back(i * i % 31);
    test::write_shard(dir / "a.bin", tokens);
    test::write_shard(dir / "b.bin", {1, 2, 3, 4, 5, 6, 7, 8});
  }
  std::vector<Domain> domains(const std::vector<const char*>& names) const {
    std::vector<config::DataEntry> entries;
    for (const char* name : names)
      entries.push_back({(dir / (std::string(name) + ".bin")).string(), name, std::nullopt});
    return open_domains(entries, 31, parallel::lone_mesh().all);
  }
  EvalResult run(const std::vector<Domain>& domains, const EvalSettings& settings) const {
    Context ctx;
    model::Transformer model(model_config, config::Router{}, DType::f32, false);
    model.allocate();
    model.parameters().initialise(7);
    model.plan(settings.batch, settings.seq_len, ctx);
    // A team of threads is not worth its start for a model as small as this.
    return test::with_threads(
        1, [&] { return evaluate(model, domains, settings, ctx, parallel::lone_mesh().all); });
  }
  TempDir dir;
  config::Model model_config;
};

TEST(Evaluate, PredictsEveryTokenButTheFirstOnce) {
  const Evaluation evaluation;
  const EvalResult result =
      evaluation.run(evaluation.domains({"a"}), {.seq_len = 5, .batch = 2, .begin_token = {}});
  EXPECT_EQ(result.tokens, 22);
  for (std::int64_t l = 0; l < 2; ++l) {
    double slots = 0;
    for (const double count : result.load.layer(l)) slots += count;
    EXPECT_EQ(slots, 22 * 2);
  }
}

TEST(Evaluate, WindowsFollowOneAnother) {
  const Evaluation evaluation;
  const auto domains = evaluation.domains({"a"});
  Context ctx;
  model::Transformer model(evaluation.model_config, config::Router{}, DType::f32, false);
  model.allocate();
  model.parameters().initialise(7);
  model.plan(1, 5, ctx);
  BatchBuffers buffers(1, 5, std::nullopt, 0);
  test::OwnedTensor loss_T({5}, DType::f32);
  double sum = 0;
  for (std::int64_t first = 0; first < 22; first += 5) {
    std::vector<std::int32_t> window(static_cast<std::size_t>(std::min<std::int64_t>(6, 23 - first)));
    domains[0].stream.read(first, window);
    buffers.set_sequence(0, window);
    test::with_threads(1, [&] { model.forward(buffers.on_host(), ctx); });
    test::with_threads(1, [&] { model.loss(loss_T, buffers.on_host(), ctx); });
    for (const double loss : test::values(loss_T)) sum += loss;
  }
  // float32, other shapes of matrix products
  EXPECT_NEAR(evaluation.run(domains, {.seq_len = 5, .batch = 2, .begin_token = {}}).loss, sum / 22, 1e-5);
}

// 22 tokens in windows of five: the last is short, and what is left of a batch is padding.
TEST(Evaluate, TheSizeOfABatchChangesNothing) {
  const Evaluation evaluation;
  const auto domains = evaluation.domains({"a"});
  const EvalResult expected = evaluation.run(domains, {.seq_len = 5, .batch = 1, .begin_token = {}});
  for (const std::int64_t batch : {2, 3, 5, 8}) {
    const EvalResult actual = evaluation.run(domains, {.seq_len = 5, .batch = batch, .begin_token = {}});
    EXPECT_NEAR(actual.loss, expected.loss, 1e-5);  // float32, other shapes of matrix products
    EXPECT_EQ(actual.tokens, expected.tokens);
    EXPECT_EQ(actual.load.all_layers(), expected.load.all_layers());
  }
}

TEST(Evaluate, TheLossIsTheMeanOverTheTokensOfAllDomains) {
  const Evaluation evaluation;
  const EvalSettings settings{.seq_len = 5, .batch = 2, .begin_token = {}};
  const EvalResult both = evaluation.run(evaluation.domains({"a", "b"}), settings);
  const EvalResult a = evaluation.run(evaluation.domains({"a"}), settings);
  const EvalResult b = evaluation.run(evaluation.domains({"b"}), settings);
  ASSERT_EQ(both.domains.size(), 2u);
  EXPECT_EQ(both.domains[0].name, "a");
  EXPECT_EQ(both.domains[0].loss, a.loss);
  EXPECT_EQ(both.domains[1].loss, b.loss);
  EXPECT_EQ(both.domains[1].tokens, 7);
  EXPECT_NEAR(both.loss, (22 * a.loss + 7 * b.loss) / 29, 1e-12);
  EXPECT_EQ(both.load.by_domain(0), (std::vector<std::vector<double>>{a.load.layer(0), b.load.layer(0)}));
  EXPECT_EQ(both.load.by_domain(1), (std::vector<std::vector<double>>{a.load.layer(1), b.load.layer(1)}));
}

// 24 tokens in all: of the longer stream three quarters, 18, as four windows of five, spread over its four
// whole ones; of the other one window.
TEST(Evaluate, SharesOfDomainsAreRoundedToWholeWindows) {
  const Evaluation evaluation;
  const auto domains = evaluation.domains({"a", "b"});
  EvalSettings settings{
      .seq_len = 5, .batch = 2, .max_tokens = 12, .begin_token = {}, .share_of_domain = {0.75, 0.25}};
  const EvalResult result = evaluation.run(domains, settings);
  EXPECT_EQ(result.domains[0].tokens, 20);
  EXPECT_EQ(result.domains[1].tokens, 5);
  EXPECT_EQ(result.tokens, 25);
  // A share of next to nothing is one window, the first; two of four are the first and the third.
  settings.share_of_domain = {0.4, 0.001};
  const EvalResult two = evaluation.run(domains, settings);
  EXPECT_EQ(two.domains[0].tokens, 10);
  EXPECT_EQ(two.domains[1].tokens, 5);
  const auto loss_of = [&](const char* name, std::vector<std::uint32_t> tokens) {
    test::write_shard(evaluation.dir / (std::string(name) + ".bin"), tokens);
    return evaluation.run(evaluation.domains({name}), {.seq_len = 5, .batch = 2, .begin_token = {}}).loss;
  };
  const auto window = [](std::uint32_t first) {
    std::vector<std::uint32_t> tokens;
    for (std::uint32_t i = first; i < first + 6; ++i) tokens.push_back(i * i % 31);
    return tokens;
  };
  // float32, other shapes of matrix products
  EXPECT_NEAR(two.domains[0].loss, (loss_of("first", window(0)) + loss_of("third", window(10))) / 2, 1e-5);
}

TEST(Evaluate, MaxTokensBoundsEachDomain) {
  const Evaluation evaluation;
  const EvalResult result = evaluation.run(evaluation.domains({"a", "b"}),
                                           {.seq_len = 5, .batch = 2, .max_tokens = 12, .begin_token = {}});
  EXPECT_EQ(result.domains[0].tokens, 12);
  EXPECT_EQ(result.domains[1].tokens, 7);
  EXPECT_EQ(result.tokens, 19);
}

TEST(Evaluate, KnowsTheBytesOfWhatItPredicted) {
  const Evaluation evaluation;
  test::write_shard(evaluation.dir / "c_0.bin", {1, 2, 3, 4, 5});
  test::write_shard(evaluation.dir / "d_0.bin", {1, 2, 3, 4, 5, 6, 7, 8});
  test::write_bytes(evaluation.dir / "meta.json", R"({"splits": {"c": {"tokens": 5, "bytes": 20},
                                                                 "d": {"tokens": 8, "bytes": 16}}})");
  const auto run = [&](const std::vector<const char*>& names, std::int64_t max_tokens) {
    return evaluation.run(evaluation.domains(names),
                          {.seq_len = 5, .batch = 2, .max_tokens = max_tokens, .begin_token = {}});
  };
  const EvalResult whole = run({"c_0", "d_0"}, 0);
  EXPECT_EQ(whole.domains[0].text->bytes, 20);
  EXPECT_EQ(whole.text->bytes, 36);
  EXPECT_FALSE(whole.text->is_estimate);
  const EvalResult part = run({"c_0", "d_0"}, 4);  // all of c, 4 of d's 7
  EXPECT_FALSE(part.domains[0].text->is_estimate);
  EXPECT_TRUE(part.domains[1].text->is_estimate);
  EXPECT_EQ(part.domains[1].text->bytes, 8);  // 4 tokens of 16 / 8 bytes
  EXPECT_EQ(part.text->bytes, 28);
  EXPECT_TRUE(part.text->is_estimate);
  const EvalResult mixed = run({"a", "c_0"}, 0);  // of a nobody knows
  EXPECT_FALSE(mixed.domains[0].text);
  EXPECT_TRUE(mixed.domains[1].text);
  EXPECT_FALSE(mixed.text);
}

TEST(Evaluate, BitsPerByteSpreadTheLossOverTheText) {
  // 4 tokens of 2 ln 2 nats are 8 bits, over 16 bytes.
  EXPECT_DOUBLE_EQ(*bits_per_byte(2 * std::numbers::ln2, 4, data::TextSize{16, false}), 0.5);
  EXPECT_FALSE(bits_per_byte(1, 4, std::nullopt));
  EXPECT_FALSE(bits_per_byte(1, 4, data::TextSize{0, false}));
}

TEST(Evaluate, KeepsToTheModelsSlidingWindow) {
  Evaluation evaluation;
  const auto domains = evaluation.domains({"a"});
  const EvalSettings settings{.seq_len = 5, .batch = 2, .begin_token = {}};
  const double open = evaluation.run(domains, settings).loss;
  evaluation.model_config.sliding_window = 5;  // as long as a sequence: no difference
  EXPECT_EQ(evaluation.run(domains, settings).loss, open);
  evaluation.model_config.sliding_window = 2;
  EXPECT_NE(evaluation.run(domains, settings).loss, open);
}

TEST(Evaluate, StopsAtDocumentBordersWhereAsked) {
  const Evaluation evaluation;
  const auto domains = evaluation.domains({"a"});
  const double open = evaluation.run(domains, {.seq_len = 5, .batch = 2, .begin_token = {}}).loss;
  EXPECT_NE(evaluation.run(domains, {.seq_len = 5, .batch = 2, .begin_token = 4}).loss, open);
  EXPECT_EQ(evaluation.run(domains, {.seq_len = 5, .batch = 2, .begin_token = 30}).loss,
            open);  // no such token in it
}

TEST(Evaluate, OneTokenAloneIsRefused) {
  const Evaluation evaluation;
  test::write_shard(evaluation.dir / "c.bin", {1});
  const std::string message = message_of<InputError>(
      [&] { evaluation.run(evaluation.domains({"c"}), {.seq_len = 5, .batch = 2, .begin_token = {}}); });
  EXPECT_CONTAINS(message, "c.bin");
}

TEST(Evaluate, ALossThatIsNotFiniteStops) {
  Evaluation evaluation;
  evaluation.model_config.initializer_range = 1e30;
  const std::string message = message_of<RunError>(
      [&] { evaluation.run(evaluation.domains({"a"}), {.seq_len = 5, .batch = 2, .begin_token = {}}); });
  EXPECT_CONTAINS(message, "not finite");
}

}  // namespace
}  // namespace switchyard::train
