#include "router/balance_figures.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace switchyard::router {
namespace {

// The expected values are worked out by hand; what is left is the rounding of a few operations in double.
constexpr double kRounding = 1e-14;

void expect_equal(const BalanceFigures& actual, const BalanceFigures& expected) {
  EXPECT_NEAR(actual.gini, expected.gini, kRounding);
  EXPECT_NEAR(actual.min_max, expected.min_max, kRounding);
  EXPECT_NEAR(actual.cv, expected.cv, kRounding);
  EXPECT_NEAR(actual.max_vio, expected.max_vio, kRounding);
  EXPECT_NEAR(actual.utilisation, expected.utilisation, kRounding);
  EXPECT_NEAR(actual.entropy, expected.entropy, kRounding);
}

TEST(BalanceFigures, FourExpertsByHand) {
  const BalanceFigures figures = balance_figures(std::vector<double>{3, 1, 4, 2});
  EXPECT_NEAR(figures.gini, 10.0 / 40.0, kRounding);  // (-3*1 - 1*2 + 1*3 + 3*4) / (4 * 10)
  EXPECT_NEAR(figures.min_max, 1.0 / 4.0, kRounding);
  EXPECT_NEAR(figures.cv, 0.5163977794943222, kRounding);  // sqrt(5 / 3) / 2.5
  EXPECT_NEAR(figures.max_vio, 0.6, kRounding);            // 4 / 2.5 - 1
  EXPECT_NEAR(figures.utilisation, 1.0, kRounding);
  EXPECT_NEAR(figures.entropy, 0.9232196723355077, kRounding);  // of (.1 .2 .3 .4), over log 4
}

TEST(BalanceFigures, EqualLoadIsPerfect) {
  expect_equal(balance_figures(std::vector<double>{7, 7, 7}),
               {.gini = 0, .min_max = 1, .cv = 0, .max_vio = 0, .utilisation = 1, .entropy = 1});
}

TEST(BalanceFigures, AllOnOneExpertIsTheWorst) {
  // sample variance (3 * 2^2 + 6^2) / 3 = 16, mean 2
  expect_equal(balance_figures(std::vector<double>{0, 0, 8, 0}),
               {.gini = 0.75, .min_max = 0, .cv = 2, .max_vio = 3, .utilisation = 0.25, .entropy = 0});
}

TEST(BalanceFigures, OneExpertIsBalanced) {
  expect_equal(balance_figures(std::vector<double>{5}),
               {.gini = 0, .min_max = 1, .cv = 0, .max_vio = 0, .utilisation = 1, .entropy = 1});
}

TEST(BalanceFigures, NoLoadIsAllZeros) {
  expect_equal(balance_figures(std::vector<double>{0, 0, 0}), {});
  expect_equal(balance_figures(std::vector<double>{}), {});
}

TEST(BalanceFigures, TheOrderAndTheUnitOfTheLoadDoNotMatter) {
  std::vector<double> load = {0, 1, 3, 11};
  const BalanceFigures expected = balance_figures(load);
  EXPECT_NEAR(expected.gini, 35.0 / 60.0, kRounding);  // (-1*1 + 1*3 + 3*11) / (4 * 15)
  while (std::next_permutation(load.begin(), load.end())) {
    std::vector<double> scaled;
    for (const double value : load) scaled.push_back(0.125 * value);
    expect_equal(balance_figures(load), expected);
    expect_equal(balance_figures(scaled), expected);
  }
}

TEST(BalanceFigures, MeanOverLayersGoesFigureByFigure) {
  const std::vector<BalanceFigures> layers = {
      {.gini = 0.1, .min_max = 0.2, .cv = 0.3, .max_vio = 0.4, .utilisation = 0.5, .entropy = 0.6},
      {.gini = 0.3, .min_max = 0.6, .cv = 0.9, .max_vio = 1.2, .utilisation = 1.0, .entropy = 0.8}};
  expect_equal(mean_of(layers),
               {.gini = 0.2, .min_max = 0.4, .cv = 0.6, .max_vio = 0.8, .utilisation = 0.75, .entropy = 0.7});
  expect_equal(mean_of({}), {});
}

TEST(Specialisation, IsTheMutualInformationInBits) {
  EXPECT_NEAR(specialisation_bits({{5, 0}, {0, 5}}), 1.0, kRounding);
  // Four experts, each with a domain of its own: log2 4.
  EXPECT_NEAR(specialisation_bits({{2, 0, 0, 0}, {0, 2, 0, 0}, {0, 0, 2, 0}, {0, 0, 0, 2}}), 2.0, kRounding);
  // 2 * 3/8 log2(3/8 / 1/4) + 2 * 1/8 log2(1/8 / 1/4)
  EXPECT_NEAR(specialisation_bits({{3, 1}, {1, 3}}), 0.18872187554086717, kRounding);
}

TEST(Specialisation, IsZeroWhereDomainSaysNothingAboutExpert) {
  EXPECT_NEAR(specialisation_bits({{1, 2, 3}, {10, 20, 30}}), 0.0, kRounding);
  EXPECT_NEAR(specialisation_bits({{4, 0, 9}}), 0.0, kRounding);
  EXPECT_EQ(specialisation_bits({{0, 0}, {0, 0}}), 0.0);
  EXPECT_EQ(specialisation_bits({}), 0.0);
}

}  // namespace
}  // namespace switchyard::router
