#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "core/error.h"
#include "data/sampler.h"
#include "temp_dir.h"

namespace switchyard::data {
namespace {

using test::message_of;
using Domain = Sampler::Domain;

constexpr std::int64_t kBlock = Sampler::kMixBlock;
constexpr std::int64_t kSeqLen = 8;

// Tokens for `windows` windows, and some that fill no further one.
std::int64_t tokens_for(std::int64_t windows, std::int64_t left_over = 0) {
  return windows * kSeqLen + 1 + left_over;
}

auto key(const Sampler::Sample& s) { return std::tuple(s.domain, s.epoch, s.window); }

std::vector<Sampler::Sample> samples(const Sampler& sampler, std::int64_t first, std::int64_t count) {
  std::vector<Sampler::Sample> all;
  for (std::int64_t i = first; i < first + count; ++i) all.push_back(sampler.at(i));
  return all;
}

TEST(Sampler, OneDomainVisitsEveryWindowOnceAnEpochInOrdersOfTheirOwn) {
  for (const std::int64_t windows : {1, 2, 3, 64, 1000, 5003}) {
    const Sampler sampler({{"a", tokens_for(windows, kSeqLen - 1), {}}}, kSeqLen, 1);
    std::vector<std::vector<std::int64_t>> orders;
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<std::int64_t> order;
      for (const auto& sample : samples(sampler, epoch * windows, windows)) {
        EXPECT_EQ(sample.domain, 0u);
        EXPECT_EQ(sample.epoch, epoch);
        order.push_back(sample.window);
      }
      orders.push_back(order);
      std::sort(order.begin(), order.end());
      for (std::int64_t w = 0; w < windows; ++w)
        ASSERT_EQ(order[static_cast<std::size_t>(w)], w) << "of " << windows;
    }
    if (windows >= 64) {  // below, two orders may be equal by chance
      EXPECT_NE(orders[0], orders[1]);
      EXPECT_NE(orders[1], orders[2]);
      EXPECT_FALSE(std::is_sorted(orders[0].begin(), orders[0].end()));
    }
  }
}

TEST(Sampler, EveryBlockHoldsTheExactShares) {
  const Sampler sampler({{"a", tokens_for(900), 0.2}, {"b", tokens_for(5000), 0.5}, {"c", tokens_for(70), 0.3}},
                        kSeqLen, 7);
  // 819.2, 2048 and 1228.8: the one place left goes to the largest remainder
  EXPECT_EQ(sampler.samples_per_block(), (std::vector<std::int64_t>{819, 2048, 1229}));
  for (std::int64_t block = 0; block < 4; ++block) {
    std::vector<std::int64_t> counts(3, 0);
    for (const auto& sample : samples(sampler, block * kBlock, kBlock)) ++counts[sample.domain];
    EXPECT_EQ(counts, sampler.samples_per_block()) << "block " << block;
  }
}

TEST(Sampler, SharesFollowTheTokensWhereNoWeightIsGiven) {
  const Sampler sampler({{"a", 30000, {}}, {"b", 10000, {}}}, kSeqLen, 1);
  EXPECT_EQ(sampler.samples_per_block(), (std::vector<std::int64_t>{3072, 1024}));
}

TEST(Sampler, WeightsNeedNotSumToOne) {
  const Sampler sampler({{"a", 1000, 3.0}, {"b", 1000, 3.0}, {"c", 1000, 3.0}}, kSeqLen, 1);
  EXPECT_EQ(sampler.samples_per_block(),
            (std::vector<std::int64_t>{1366, 1365, 1365}));  // on a tie, the earlier
}

// 10 blocks: the large domain is in its first epoch, the small one in its fourth, the tiny one goes through
// hundreds.
TEST(Sampler, EveryDomainVisitsEveryWindowOnceAnEpoch) {
  const std::vector<std::int64_t> windows = {30000, 3000, 5};
  const Sampler sampler({{"large", tokens_for(windows[0]), 0.6},
                         {"small", tokens_for(windows[1]), 0.3},
                         {"tiny", tokens_for(windows[2]), 0.1}},
                        kSeqLen, 3);
  constexpr std::int64_t blocks = 10;
  std::map<std::pair<std::size_t, std::int64_t>, std::set<std::int64_t>> visited;  // (domain, epoch) -> windows
  for (const auto& sample : samples(sampler, 0, blocks * kBlock)) {
    EXPECT_GE(sample.window, 0);
    EXPECT_LT(sample.window, windows[sample.domain]);
    EXPECT_TRUE((visited[{sample.domain, sample.epoch}].insert(sample.window).second))
        << "a window twice in an epoch";
  }
  for (std::size_t d = 0; d < windows.size(); ++d) {
    const std::int64_t drawn = blocks * sampler.samples_per_block()[d];
    for (std::int64_t epoch = 0; epoch <= drawn / windows[d]; ++epoch) {
      const std::int64_t expected = std::min(windows[d], drawn - epoch * windows[d]);
      EXPECT_EQ((visited[{d, epoch}].size()), static_cast<std::size_t>(expected))
          << "domain " << d << " epoch " << epoch;
    }
  }
}

TEST(Sampler, IsAFunctionOfTheIndexAlone) {
  const std::vector<Domain> domains = {{"a", tokens_for(100), 0.5}, {"b", tokens_for(333), 0.5}};
  const Sampler sampler(domains, kSeqLen, 11), again(domains, kSeqLen, 11);
  const auto forwards = samples(sampler, 0, 3 * kBlock);
  for (std::int64_t i = 3 * kBlock - 1; i >= 0; i -= 7) {
    EXPECT_EQ(key(again.at(i)), key(forwards[static_cast<std::size_t>(i)]));
    EXPECT_EQ(key(sampler.at(i)), key(forwards[static_cast<std::size_t>(i)]));
  }
}

TEST(Sampler, SeedsAndBlocksHaveOrdersOfTheirOwn) {
  const std::vector<Domain> domains = {{"a", tokens_for(10000), 0.5}, {"b", tokens_for(10000), 0.5}};
  const Sampler one(domains, kSeqLen, 1), two(domains, kSeqLen, 2);
  int same_domain = 0, same_domain_as_next_block = 0, same_sample = 0;
  std::array<std::set<std::int64_t>, 2> windows;  // of each domain in one block
  for (std::int64_t i = 0; i < kBlock; ++i) {
    const auto a = one.at(i), b = two.at(i), next = one.at(i + kBlock);
    same_domain += a.domain == b.domain;
    same_domain_as_next_block += a.domain == next.domain;
    same_sample += key(a) == key(b);
    windows[a.domain].insert(a.window);
  }
  // Two independent orders of half and half agree in 2048 places of 4096, give or take 32; 5 times that is
  // allowed.
  EXPECT_NEAR(same_domain, kBlock / 2, 160);
  EXPECT_NEAR(same_domain_as_next_block, kBlock / 2, 160);
  // By chance in one of 10,000 places.
  EXPECT_LT(same_sample, 12);
  // Two independent choices of 2,048 windows of 10,000 share 419, give or take 16; five times that is allowed.
  const auto shared =
      std::count_if(windows[0].begin(), windows[0].end(), [&](auto w) { return windows[1].contains(w); });
  EXPECT_NEAR(static_cast<double>(shared), 419.0, 80.0);
}

TEST(Sampler, DomainsAreMixedThroughoutABlock) {
  const Sampler sampler({{"a", tokens_for(10000), 0.25}, {"b", tokens_for(10000), 0.75}}, kSeqLen, 5);
  for (std::int64_t first = 0; first < kBlock; first += 256) {
    const auto part = samples(sampler, first, 256);
    const auto of_a = std::count_if(part.begin(), part.end(), [](const auto& s) { return s.domain == 0; });
    EXPECT_NEAR(static_cast<double>(of_a), 64.0, 35.0) << "from " << first;  // five standard deviations of 6.9
  }
}

TEST(Sampler, RefusesWhatCannotBeSampled) {
  EXPECT_CONTAINS(message_of<InputError>([] {
                    Sampler({{"legal", kSeqLen, {}}}, kSeqLen, 1);
                  }),
                  "'legal' has 8 tokens");
  EXPECT_EQ(Sampler({{"legal", kSeqLen + 1, {}}}, kSeqLen, 1).at(5).window, 0);  // the shortest that will do
  EXPECT_CONTAINS(message_of<InputError>([] {
                    Sampler({{"a", 1000, 1.0}, {"rare", 1000, 1e-4}}, kSeqLen, 1);
                  }),
                  "'rare'");
  EXPECT_CONTAINS(message_of<InputError>([] {
                    Sampler({{"a", 1000, 0.5}, {"b", 1000, {}}}, kSeqLen, 1);
                  }),
                  "'b' has none");
  for (const double weight :
       {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    EXPECT_CONTAINS(message_of<InputError>([&] {
                      Sampler({{"a", 1000, weight}, {"b", 1000, 1.0}}, kSeqLen, 1);
                    }),
                    "'a'");
}

TEST(Sampler, TheLeastShareIsMixedIn) {
  const Sampler sampler({{"a", 1000, 4095.0}, {"b", 1000, 1.0}}, kSeqLen, 1);
  EXPECT_EQ(sampler.samples_per_block(), (std::vector<std::int64_t>{4095, 1}));
}

}  // namespace
}  // namespace switchyard::data
