// The sum of a continuation's log-probabilities is that of the logits, however sequences are batched, padded
// and divided among ranks.
#include "tasks/scoring.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model_test_support.h"
#include "parallel/world.h"
#include "tasks/evaluation.h"
#include "temp_dir.h"
#include "threads.h"
#include "tokenizer/tokenizer.h"
#include "world_threads.h"

namespace switchyard::tasks {
namespace {

constexpr std::int64_t kMostTokens = 9;

// float32 sums in another order: some hundred additions of values of order one.
constexpr double kRounding = 1e-4;

struct Tiny {
  explicit Tiny(std::int64_t window = 0) : config(model::tiny_model(config::kQwen3Moe)) {
    config.sliding_window = window;
    model.emplace(config, config::default_router(config::kQwen3Moe, router::router_schemas()), DType::f32,
                  false);
    model->allocate();
    model::fill_weights(model->parameters());
    ctx.scratch.set_poison(true);
  }

  std::vector<double> score(const std::vector<Continuation>& continuations, std::int64_t n_seq,
                            const parallel::Group& all, bool may_plan = true) {
    if (!may_plan) model->plan(n_seq, kMostTokens, ctx);
    return log_probabilities(continuations, {*model, ctx, all, n_seq, kMostTokens, may_plan, {}});
  }
  std::vector<double> score(const std::vector<Continuation>& continuations, std::int64_t n_seq,
                            bool may_plan = true) {
    return test::with_threads(1,
                              [&] { return score(continuations, n_seq, parallel::lone_mesh().all, may_plan); });
  }

  // From the logits of one pass over the one sequence, in double.
  double reference(const Continuation& c) {
    std::vector<int> tokens(c.context.begin(), c.context.end());
    tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end());
    if (std::ssize(tokens) > kMostTokens + 1) tokens.erase(tokens.begin(), tokens.end() - kMostTokens - 1);
    const int last = tokens.back();
    tokens.pop_back();
    const std::int64_t T = std::ssize(tokens);
    model::TestBatch batch(1, T);
    batch.sequence(0, tokens, last);
    if (config.sliding_window > 0) {
      std::vector<int> begins;
      for (int t = 0; t < T; ++t)
        begins.push_back(std::max(0, t + 1 - static_cast<int>(config.sliding_window)));
      batch.kv_begin(0, begins);
    }
    const test::OwnedTensor logits_TV({T, config.vocab_size}, DType::f32);
    test::with_threads(1, [&] {
      model->plan(1, T, ctx);
      model->forward(batch.batch(), ctx);
      model->logits(logits_TV, ctx);
    });
    const std::vector<double> logits = test::values(logits_TV);
    const auto V = static_cast<std::size_t>(config.vocab_size);
    tokens.push_back(last);
    double sum = 0;
    for (std::size_t t = tokens.size() - c.tokens.size(); t < tokens.size(); ++t) {
      double total = 0;
      for (std::size_t v = 0; v < V; ++v) total += std::exp(logits[(t - 1) * V + v]);
      sum += logits[(t - 1) * V + static_cast<std::size_t>(tokens[t])] - std::log(total);
    }
    return sum;
  }

  config::Model config;
  std::optional<model::Transformer> model;
  Context ctx;
};

// Of every length; of the context too much for the model; a continuation that fills it.
const std::vector<Continuation> kContinuations = {
    {{1}, {2}},
    {{1, 2, 3}, {4, 5}},
    {{3, 1, 4, 1, 5, 9, 2}, {6, 5}},
    {{2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4}, {5, 9, 10}},
    {{9, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9}},
    {{1, 2, 3}, {5}},
    {{10}, {0, 1, 0}},
};

TEST(LogProbabilities, AreThoseOfTheLogits) {
  for (const std::int64_t window : {0, 3}) {
    Tiny tiny(window);
    std::vector<double> expected;
    for (const Continuation& c : kContinuations) expected.push_back(tiny.reference(c));
    for (const bool may_plan : {true, false})
      for (const std::int64_t n_seq : {1, 2, 3, 7, 12}) {
        const auto found = tiny.score(kContinuations, n_seq, may_plan);
        ASSERT_EQ(found.size(), expected.size());
        for (std::size_t i = 0; i < found.size(); ++i)
          EXPECT_NEAR(found[i], expected[i], kRounding)
              << i << ", batches of " << n_seq << ", window " << window;
      }
  }
}

TEST(LogProbabilities, AreTheSameOnRanks) {
  const std::vector<double> expected = Tiny().score(kContinuations, 2);
  for (const bool may_plan : {true, false})
    test::on_world_threads(3, [&](parallel::World& world) {
      Tiny tiny;
      const auto found = tiny.score(kContinuations, 2, parallel::all_ranks(world), may_plan);
      for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], kRounding) << i;
    });
}

TEST(LogProbabilities, WeightsThatAreNoNumbersAreAnError) {
  Tiny tiny;
  test::set(tiny.model->parameters().value(0), 8, std::nan(""));
  const std::string message = test::message_of<RunError>([&] { tiny.score({{{1}, {2}}}, 1); });
  EXPECT_NE(message.find("not finite"), std::string::npos) << message;
}

checkpoint::ModelTokenizer byte_text(std::optional<std::int32_t> begin) {
  return {tokenizer::make_byte_tokenizer(), begin, {256}};
}

using Tokens = std::vector<std::int32_t>;

TEST(EncodePair, SpaceThatEndsTheContextBelongsToWhatFollows) {
  const auto text = byte_text(256);
  const Continuation pair = encode_pair(text, "ab \n", "c", "here");
  EXPECT_EQ(pair.context, (Tokens{256, 'a', 'b'}));
  EXPECT_EQ(pair.tokens, (Tokens{' ', '\n', 'c'}));
  EXPECT_EQ(encode_prompt(text, "ab "), (Tokens{256, 'a', 'b', ' '}));
}

TEST(EncodePair, AnEmptyContextIsTheTokenThatBeginsOrEndsAText) {
  for (const auto begin : {std::optional<std::int32_t>(256), std::optional<std::int32_t>()}) {
    const Continuation pair = encode_pair(byte_text(begin), "", " c", "here");
    EXPECT_EQ(pair.context, (Tokens{256}));
    EXPECT_EQ(pair.tokens, (Tokens{' ', 'c'}));
  }
  checkpoint::ModelTokenizer none = byte_text({});
  none.end_tokens.clear();
  const std::string message = test::message_of<InputError>([&] { encode_pair(none, "", " c", "FILE:3"); });
  EXPECT_NE(message.find("FILE:3: the context is empty"), std::string::npos) << message;
}

TEST(Metric, HasTheStandardErrorOfAShare) {
  const Metric metric = metric_of("acc", 3, 10);
  EXPECT_DOUBLE_EQ(metric.value, 0.3);
  // The sample deviation of three ones and seven zeros over sqrt(10): sqrt((3 * 0.49 + 7 * 0.09) / 9 / 10).
  EXPECT_DOUBLE_EQ(*metric.std_error, std::sqrt((3 * 0.49 + 7 * 0.09) / 90));
  EXPECT_FALSE(metric_of("acc", 1, 1).std_error);
}

}  // namespace
}  // namespace switchyard::tasks
