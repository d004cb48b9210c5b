// The statistics of a sweep against published tables of Student's t.
#include "sweep/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace switchyard::sweep {

// Quantiles of Student's t, NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2: three decimals.
TEST(SweepStatistics, QuantilesAreThoseOfTheTables) {
  constexpr double kRounded = 5e-4;  // of the table
  EXPECT_NEAR(t_quantile(0.975, 1), 12.706, kRounded);
  EXPECT_NEAR(t_quantile(0.975, 2), 4.303, kRounded);
  EXPECT_NEAR(t_quantile(0.975, 4), 2.776, kRounded);
  EXPECT_NEAR(t_quantile(0.975, 30), 2.042, kRounded);
  EXPECT_NEAR(t_quantile(0.95, 10), 1.812, kRounded);
  EXPECT_NEAR(t_quantile(0.9, 100), 1.290, kRounded);
  EXPECT_NEAR(t_quantile(0.025, 4), -2.776, kRounded);
  EXPECT_NEAR(t_quantile(0.5, 7), 0, 1e-12);
}

// With one degree of freedom t is a Cauchy variable, with two its distribution is algebraic.
TEST(SweepStatistics, PValuesAreThoseOfTheClosedForms) {
  constexpr double kRounding = 1e-13;
  for (const double t : {0.0, 0.1, 1.0, 3.0, 40.0}) {
    EXPECT_NEAR(p_of_t(t, 1), 1 - 2 * std::atan(t) / std::acos(-1.0), kRounding) << t;
    EXPECT_NEAR(p_of_t(t, 2), 1 - t / std::sqrt(2 + t * t), kRounding) << t;
    EXPECT_EQ(p_of_t(-t, 5), p_of_t(t, 5));
  }
}

TEST(SweepStatistics, APairedTestIsThatOfTheDifferences) {
  // Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 2 sqrt(3) with two degrees of freedom.
  const auto test = paired_test({1, 2, 3});
  ASSERT_TRUE(test);
  EXPECT_DOUBLE_EQ(test->mean, 2);
  EXPECT_NEAR(test->std_error, 1 / std::sqrt(3), 1e-15);
  EXPECT_NEAR(test->t, 2 * std::sqrt(3), 1e-14);
  EXPECT_NEAR(test->p, 1 - 2 * std::sqrt(3) / std::sqrt(14), 1e-13);
  EXPECT_FALSE(paired_test({1}));
  EXPECT_EQ(paired_test({2, 2})->p, 0);
  EXPECT_EQ(paired_test({0, 0})->p, 1);
}

// Expected: the smallest n by scipy.stats.nct (SciPy 1.17), by differences in standard deviations.
TEST(SweepStatistics, SeedsNeededHaveThePowerThatIsClaimed) {
  EXPECT_EQ(seeds_needed(10, 1), 3);
  EXPECT_EQ(seeds_needed(3, 1), 4);
  EXPECT_EQ(seeds_needed(2, 1), 5);
  EXPECT_EQ(seeds_needed(1.5, 1), 6);
  EXPECT_EQ(seeds_needed(1, 1), 10);
  EXPECT_EQ(seeds_needed(-1, 1), 10);
  EXPECT_EQ(seeds_needed(2, 4), 34);
  EXPECT_EQ(seeds_needed(0.1, 1), 787);
  EXPECT_EQ(seeds_needed(1, 0), 2);
  EXPECT_FALSE(seeds_needed(0, 1));
  EXPECT_FALSE(seeds_needed(1e-9, 1));
  // Differences that hardly spread.
  EXPECT_EQ(seeds_needed(1, 1e-3), 2);
  EXPECT_EQ(seeds_needed(0.01, 1e-17), 2);
  // A seed more adds 4.5e-7 to the power there: what the two series differ by is worth a few.
  EXPECT_NEAR(static_cast<double>(*seeds_needed(0.003, 1)), 872'100, 5);
}

}  // namespace switchyard::sweep
