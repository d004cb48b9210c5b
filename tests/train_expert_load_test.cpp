#include "train/expert_load.h"

#include <gtest/gtest.h>

#include <vector>

#include "tensors.h"

namespace switchyard::train {
namespace {

using Numbers = std::vector<double>;

// The counts of one micro-batch of two sequences, two layers, three experts.
class MicroBatch {
 public:
  MicroBatch(const Numbers& layer0_BE, const Numbers& layer1_BE)
      : count_({2, 2, 3}, DType::i32), dropped_({2}, DType::i32) {
    Numbers both = layer0_BE;
    both.insert(both.end(), layer1_BE.begin(), layer1_BE.end());
    test::fill(count_, both);
    test::fill(dropped_, {0, 0});
  }
  router::RoutingCounts counts() const {
    return {
        .count_LBE = count_, .prob_sum_LBE = {}, .prob2_sum_LB = {}, .lse2_sum_LB = {}, .dropped_L = dropped_};
  }

 private:
  test::OwnedTensor count_, dropped_;
};

LoadCounts two_micro_batches() {
  LoadCounts load(2, 3, 2);
  const std::vector<std::size_t> first = {0, 1}, second = {1, 1};
  load.add(MicroBatch({1, 2, 3, 4, 5, 6}, {0, 0, 6, 15, 0, 0}).counts(), first);
  load.add(MicroBatch({10, 0, 0, 0, 20, 0}, {1, 2, 7, 20, 0, 0}).counts(), second);
  return load;
}

TEST(LoadCounts, AddUpOverMicroBatchesByLayerAndDomain) {
  const LoadCounts load = two_micro_batches();
  EXPECT_EQ(load.by_domain(0), (std::vector<Numbers>{{1, 2, 3}, {14, 25, 6}}));
  EXPECT_EQ(load.by_domain(1), (std::vector<Numbers>{{0, 0, 6}, {36, 2, 7}}));
  EXPECT_EQ(load.layer(0), (Numbers{15, 27, 9}));
  EXPECT_EQ(load.layer(1), (Numbers{36, 2, 13}));
  EXPECT_EQ(load.all_layers(), (Numbers{15, 27, 9, 36, 2, 13}));
}

TEST(LoadCounts, FiguresAreThoseOfEachLayer) {
  const auto figures = two_micro_batches().figures();
  ASSERT_EQ(figures.size(), 2u);
  EXPECT_EQ(figures[0].gini, router::balance_figures(Numbers{15, 27, 9}).gini);
  EXPECT_EQ(figures[1].min_max, 2.0 / 36);
}

TEST(LoadCounts, SpecialisationIsOfExpertAndDomain) {
  LoadCounts load(2, 3, 2);
  const std::vector<std::size_t> domains = {0, 1};
  load.add(MicroBatch({4, 0, 0, 0, 4, 0}, {2, 2, 0, 2, 2, 0}).counts(), domains);
  EXPECT_NEAR(load.specialisation(0), 1.0, 1e-14);  // the expert tells the domain: one bit
  EXPECT_NEAR(load.specialisation(1), 0.0, 1e-14);
}

LoadCounts step(const Numbers& layer0_E, const Numbers& layer1_E) {
  LoadCounts load(2, 3, 1);
  const std::vector<std::size_t> domains = {0, 0};
  const auto twice = [](const Numbers& half) {
    Numbers both = half;
    both.insert(both.end(), half.begin(), half.end());
    return both;
  };
  load.add(MicroBatch(twice(layer0_E), twice(layer1_E)).counts(), domains);
  return load;
}

TEST(LoadAverage, IsAnExponentialMovingAverageOfTheSteps) {
  LoadAverage average(2, 3);
  average.update(step({5, 0, 0}, {1, 1, 1}));  // counts of 10 0 0 and 2 2 2
  average.update(step({0, 5, 0}, {1, 1, 1}));
  const Tensor state = average.state();
  EXPECT_EQ(state.shape(), (Shape{2, 3}));
  EXPECT_EQ(state.dtype(), DType::f64);
  // 0.99 * (0.01 * 10), 0.01 * 10, 0; the rest 0.99 * 0.02 + 0.02
  EXPECT_TRUE(test::all_near(test::values(state), {0.099, 0.1, 0, 0.0398, 0.0398, 0.0398}, 1e-14, 0));
  const auto figures = average.figures();
  EXPECT_NEAR(figures[0].utilisation, 2.0 / 3, 1e-14);
  EXPECT_NEAR(figures[1].gini, 0.0, 1e-14);
}

// After one step the figures are the step's own: the factor 0.01 cancels.
TEST(LoadAverage, StartsUnbiased) {
  LoadAverage average(2, 3);
  const LoadCounts first = step({5, 3, 1}, {0, 1, 7});
  average.update(first);
  for (const std::size_t l : {0u, 1u}) {
    EXPECT_NEAR(average.figures()[l].gini, first.figures()[l].gini, 1e-14);
    EXPECT_NEAR(average.figures()[l].cv, first.figures()[l].cv, 1e-14);
  }
}

TEST(LoadAverage, GoesOnFromItsState) {
  LoadAverage average(2, 3), resumed(2, 3);
  average.update(step({5, 3, 1}, {0, 1, 7}));
  test::fill(resumed.state(), test::values(average.state()));
  for (LoadAverage* each : {&average, &resumed}) each->update(step({2, 2, 2}, {4, 0, 1}));
  EXPECT_TRUE(test::same_bits(average.state(), resumed.state()));
}

}  // namespace
}  // namespace switchyard::train
