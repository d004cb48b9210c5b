#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "core/rng.h"

namespace switchyard {
namespace {

using Counter = std::array<std::uint32_t, 4>;
using Key = std::array<std::uint32_t, 2>;

// The known answers for philox4x32, 10 rounds, that the authors of Random123 publish (kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32(Counter{0, 0, 0, 0}, Key{0, 0}),
            (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32(Counter{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, Key{0xffffffff, 0xffffffff}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32(Counter{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, Key{0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, EachPartOfTheAddressMatters) {
  std::set<std::uint64_t> seen;
  int addresses = 0;
  for (const std::uint64_t seed : {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{1} << 32})
    for (const auto purpose :
         {RngPurpose::init, RngPurpose::domain_mix, RngPurpose::shuffle, RngPurpose::router_noise})
      for (const std::uint64_t stream : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32})
        for (const std::uint64_t index : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32}) {
          seen.insert(Rng(seed, purpose, stream).bits(index));
          ++addresses;
        }
  EXPECT_EQ(seen.size(), addresses);
}

TEST(Rng, SameAddressSameValue) {
  const Rng a(7, RngPurpose::init, 3), b(7, RngPurpose::init, 3);
  const double last = a.normal(1000);
  for (std::uint64_t i = 0; i < 1000; ++i) ASSERT_EQ(a.normal(i), b.normal(i));
  EXPECT_EQ(b.normal(1000), last);
}

// The stream is fixed, so nothing here varies from run to run. Bounds are five standard errors of n draws.
TEST(Rng, UniformAndNormalHaveTheirMoments) {
  constexpr int n = 200000;
  const Rng rng(1, RngPurpose::init, 0);
  double uniform_sum = 0, normal_sum = 0, normal_squares = 0, normal_fourth = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    const double u = rng.uniform(i);
    ASSERT_GT(u, 0.0);
    ASSERT_LT(u, 1.0);
    uniform_sum += u;
    const double z = rng.normal(i);
    ASSERT_TRUE(std::isfinite(z));
    normal_sum += z;
    normal_squares += z * z;
    normal_fourth += z * z * z * z;
  }
  const double root_n = std::sqrt(static_cast<double>(n));
  EXPECT_NEAR(uniform_sum / n, 0.5, 5 * std::sqrt(1.0 / 12) / root_n);
  EXPECT_NEAR(normal_sum / n, 0.0, 5 / root_n);
  EXPECT_NEAR(normal_squares / n, 1.0, 5 * std::sqrt(2.0) / root_n);  // variance of z^2: 2
  EXPECT_NEAR(normal_fourth / n, 3.0, 5 * std::sqrt(96.0) / root_n);  // variance of z^4: 105 - 9
}

TEST(ShuffledIndex, IsABijection) {
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t n = 1; n <= 130; ++n) sizes.push_back(n);
  for (std::uint64_t n : {255, 256, 257, 1000, 4095, 4096, 4097, 65536, 100003}) sizes.push_back(n);
  for (const std::uint64_t n : sizes) {
    const Rng rng(n * 31, RngPurpose::shuffle, 5);
    std::vector<bool> seen(n, false);
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t to = shuffled_index(i, n, rng);
      ASSERT_LT(to, n);
      ASSERT_FALSE(seen[to]) << "n " << n << ": " << to << " twice";
      seen[to] = true;
    }
  }
}

TEST(ShuffledIndex, LargeRangesStayInside) {
  const std::uint64_t n = (std::uint64_t{1} << 40) + 7;
  const Rng rng(3, RngPurpose::shuffle, 0);
  std::set<std::uint64_t> seen;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const std::uint64_t to = shuffled_index(n - 1 - i, n, rng);
    ASSERT_LT(to, n);
    seen.insert(to);
  }
  EXPECT_EQ(seen.size(), 1000);
}

// Of n places a random permutation keeps one on average, whatever n is; the odds of 12 or more are below 1e-8.
TEST(ShuffledIndex, MovesAlmostEverything) {
  const std::uint64_t n = 5000;
  for (std::uint64_t stream = 0; stream < 20; ++stream) {
    const Rng rng(1, RngPurpose::shuffle, stream);
    int kept = 0, neighbours = 0;
    for (std::uint64_t i = 0; i < n; ++i) {
      kept += shuffled_index(i, n, rng) == i;
      neighbours += i + 1 < n && shuffled_index(i, n, rng) + 1 == shuffled_index(i + 1, n, rng);
    }
    EXPECT_LT(kept, 12);
    EXPECT_LT(neighbours, 12);
  }
}

TEST(ShuffledIndex, OutsideIsABrokenInvariant) {
  const Rng rng(1, RngPurpose::shuffle, 0);
  EXPECT_THROW(shuffled_index(10, 10, rng), std::logic_error);
}

TEST(HashName, IsFnv1a) {
  EXPECT_EQ(hash_name(""), 0xcbf29ce484222325u);
  EXPECT_EQ(hash_name("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(hash_name("foobar"), 0x85944171f73967e8u);  // from the test vectors of the FNV specification
}

}  // namespace
}  // namespace switchyard
