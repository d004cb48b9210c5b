#include "generate/generator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "core/error.h"
#include "temp_dir.h"

namespace switchyard::generate {
namespace {

std::map<std::int32_t, double> shares(const Sampling& options, const std::vector<float>& logits, int draws) {
  Sampler sampler(options);
  std::map<std::int32_t, double> share;
  for (int i = 0; i < draws; ++i) share[sampler.choose(logits, static_cast<std::uint64_t>(i))] += 1.0 / draws;
  return share;
}

std::set<std::int32_t> chosen(const Sampling& options, const std::vector<float>& logits) {
  std::set<std::int32_t> tokens;
  for (const auto& [token, share] : shares(options, logits, 2000)) tokens.insert(token);
  return tokens;
}

TEST(Sampler, TemperatureZeroTakesTheLargestAndTheSmallestTokenOfEqualOnes) {
  EXPECT_EQ(Sampler({.temperature = 0}).choose(std::vector<float>{1, 3, 2, 3}, 0), 1);
  EXPECT_EQ(Sampler({.temperature = 0}).choose(std::vector<float>{-1, -3}, 9), 0);
}

TEST(Sampler, SharesAreTheSoftmaxOfTheLogitsOverTheTemperature) {
  const std::vector<float> logits = {0, static_cast<float>(std::log(2.0)), static_cast<float>(std::log(5.0))};
  const auto plain = shares({}, logits, 20000);
  // The standard deviation of a share of 20,000 draws is at most 0.0036; five of them.
  EXPECT_NEAR(plain.at(0), 1.0 / 8, 0.018);
  EXPECT_NEAR(plain.at(1), 2.0 / 8, 0.018);
  const auto cold = shares({.temperature = 0.5}, logits, 20000);  // squares: 1, 4, 25
  EXPECT_NEAR(cold.at(1), 4.0 / 30, 0.018);
  EXPECT_NEAR(cold.at(2), 25.0 / 30, 0.018);
}

TEST(Sampler, TopKKeepsTheLargestAndAllThatEqualTheLast) {
  const std::vector<float> logits = {1, 2, 3, 2, 0};
  EXPECT_EQ(chosen({.top_k = 1}, logits), (std::set<std::int32_t>{2}));
  EXPECT_EQ(chosen({.top_k = 2}, logits), (std::set<std::int32_t>{1, 2, 3}));
  EXPECT_EQ(chosen({.top_k = 9}, logits), (std::set<std::int32_t>{0, 1, 2, 3, 4}));
}

TEST(Sampler, TopPKeepsTokensWhileThoseBeforeThemHaveLess) {
  // Shares 0.4, 0.3, 0.2, 0.1, in another order of tokens.
  std::vector<float> logits;
  for (const double share : {0.1, 0.4, 0.2, 0.3}) logits.push_back(static_cast<float>(std::log(share)));
  EXPECT_EQ(chosen({.top_p = 0.01}, logits), (std::set<std::int32_t>{1}));
  EXPECT_EQ(chosen({.top_p = 0.39}, logits), (std::set<std::int32_t>{1}));
  EXPECT_EQ(chosen({.top_p = 0.41}, logits), (std::set<std::int32_t>{1, 3}));
  EXPECT_EQ(chosen({.top_p = 0.75}, logits), (std::set<std::int32_t>{1, 2, 3}));
  // Of what top-k leaves: 0.4 and 0.3 are then 0.57 and 0.43.
  EXPECT_EQ(chosen({.top_k = 2, .top_p = 0.5}, logits), (std::set<std::int32_t>{1}));
}

TEST(Sampler, SeedAndPositionDecide) {
  const std::vector<float> logits(50, 0.0f);
  std::set<std::int32_t> by_position, by_seed;
  for (std::uint64_t i = 0; i < 20; ++i) {
    const std::int32_t token = Sampler({.seed = 3}).choose(logits, i);
    EXPECT_EQ(Sampler({.seed = 3}).choose(logits, i), token);
    by_position.insert(token);
    by_seed.insert(Sampler({.seed = i}).choose(logits, 0));
  }
  EXPECT_GT(by_position.size(), 8u);
  EXPECT_GT(by_seed.size(), 8u);
}

TEST(Sampler, ALogitThatIsNotANumberIsNamed) {
  const std::vector<float> logits = {0, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_CONTAINS(test::message_of<RunError>([&] { Sampler({}).choose(logits, 0); }), "token 1");
}

}  // namespace
}  // namespace switchyard::generate
