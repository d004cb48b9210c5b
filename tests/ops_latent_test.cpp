#include "ops/latent.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gradient_check.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

constexpr std::int64_t kRows = 37, kWidth = 5;

OwnedTensor zeros(std::int64_t rows, std::int64_t columns, DType dtype = DType::f64) {
  return normal({rows, columns}, dtype, "none", 0.0);
}

// Every seventh row does not count.
OwnedTensor padding(std::int64_t rows) {
  std::vector<double> ids;
  for (std::int64_t r = 0; r < rows; ++r) ids.push_back(r % 7 == 6 ? -1 : 3);
  return ints(ids);
}

TEST(Latent, UnitRowsHaveLengthOneAndTheirGradient) {
  PoisonedContext ctx;
  const OwnedTensor in = normal_strided(kRows, kWidth, DType::f64, "in"), norm({kRows}, DType::f64);
  const OwnedTensor unit({kRows, kWidth}, DType::f64), dunit = normal({kRows, kWidth}, DType::f64, "dunit");
  const OwnedTensor din = zeros(kRows, kWidth);
  ops::unit_rows_forward(unit, norm, in, ctx);
  EXPECT_NEAR(dot(unit, unit), kRows, 1e-12);
  ops::unit_rows_backward(din, dunit, unit, norm, ctx);
  const auto loss = [&] {
    ops::unit_rows_forward(unit, norm, in, ctx);
    return dot(dunit, unit);
  };
  // short rows have third derivatives of order 1 / length^3
  EXPECT_TRUE(gradient_matches(in, din, loss, {.relative = 1e-5, .absolute = 1e-7}));
}

TEST(Latent, ARowOfLengthZeroStaysAndHasNoGradient) {
  PoisonedContext ctx;
  OwnedTensor in({2, 2}, DType::f32), unit({2, 2}, DType::f32), norm({2}, DType::f32), din({2, 2}, DType::f32);
  const OwnedTensor dunit = normal({2, 2}, DType::f32, "dunit");
  fill(in, {0, 0, 3, 4});
  fill(din, {7, 8, 0, 0});
  ops::unit_rows_forward(unit, norm, in, ctx);
  ops::unit_rows_backward(din, dunit, unit, norm, ctx);
  EXPECT_EQ(unit[0], 0);
  EXPECT_EQ(unit[1], 0);
  EXPECT_EQ(norm[1], 5);
  EXPECT_EQ(din[0], 7);
  EXPECT_EQ(din[1], 8);
  EXPECT_NE(din[2], 0);
}

TEST(Latent, MomentsAreSumsOverTheRowsThatCount) {
  PoisonedContext ctx;
  OwnedTensor unit({3, 2}, DType::f32), gram({2, 2}, DType::f64), sum({2}, DType::f64);
  fill(unit, {1, 2, 9, 9, 3, 4});
  ops::row_moments(gram, sum, unit, ints({0, -1, 5}), ctx);
  EXPECT_EQ(values(gram), (std::vector<double>{10, 14, 14, 20}));
  EXPECT_EQ(values(sum), (std::vector<double>{4, 6}));
  ops::row_moments(gram, sum, unit, {}, ctx);
  EXPECT_EQ(values(sum), (std::vector<double>{13, 15}));
}

TEST(Latent, AffineRowsByHand) {
  PoisonedContext ctx;
  OwnedTensor unit({2, 2}, DType::f32), out({2, 2}, DType::f32), matrix({2, 2}, DType::f64),
      offset({2}, DType::f64);
  fill(unit, {1, 2, 3, 4});
  fill(out, {100, 200, 300, 400});
  fill(matrix, {1, 10, 0, 2});
  fill(offset, {0.5, -0.5});
  ops::add_affine_rows(out, unit, matrix, offset, ints({1, -1}), ctx);
  EXPECT_EQ(values(out), (std::vector<double>{121.5, 203.5, 300, 400}));
}

// Widths below, at and above the sixteen sums that are made side by side. Small whole numbers: exact in any
// order.
TEST(Latent, AffineRowsOfAnyWidth) {
  for (const std::int64_t d : {1, 15, 16, 17, 33}) {
    PoisonedContext ctx;
    const OwnedTensor unit = OwnedTensor::strided(5, d, DType::f32),
                      out = OwnedTensor::strided(5, d, DType::f32), matrix({d, d}, DType::f64),
                      offset({d}, DType::f64);
    for (std::int64_t i = 0; i < 5 * d; ++i) set(unit, i, static_cast<double>(i % 7));
    for (std::int64_t i = 0; i < 5 * d; ++i) set(out, i, static_cast<double>(i % 3));
    for (std::int64_t i = 0; i < d * d; ++i) set(matrix, i, static_cast<double>(i % 11));
    for (std::int64_t i = 0; i < d; ++i) set(offset, i, static_cast<double>(i % 5));
    ops::add_affine_rows(out, unit, matrix, offset, ints({0, 0, -1, 0, 0}), ctx);
    for (std::int64_t r = 0; r < 5; ++r)
      for (std::int64_t i = 0; i < d; ++i) {
        double expected = static_cast<double>((r * d + i) % 3);
        if (r != 2) expected += offset[i];
        for (std::int64_t j = 0; r != 2 && j < d; ++j) expected += matrix[i * d + j] * unit[r * d + j];
        ASSERT_EQ(out[r * d + i], expected) << "width " << d << ", row " << r << ", column " << i;
      }
    EXPECT_TRUE(out.margins_untouched());
  }
}

TEST(Latent, PairDistancesAndTheirGradient) {
  for (const std::int64_t rows : {2, 13, 70, 131}) {
    PoisonedContext ctx;
    const OwnedTensor Y = normal_strided(rows, kWidth, DType::f64, "Y"), dY = zeros(rows, kWidth);
    const OwnedTensor skip = padding(rows);
    double expected = 0;
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < rows; ++j) {
        if (skip[i] < 0 || skip[j] < 0) continue;
        double square = 0;
        for (std::int64_t k = 0; k < kWidth; ++k) square += std::pow(Y[i * kWidth + k] - Y[j * kWidth + k], 2);
        expected += std::sqrt(square);
      }
    const auto loss = [&] {
      return 0.01 * number_from([&](Tensor sum_1) { ops::pair_distance_sum(sum_1, Y, skip, ctx); });
    };
    EXPECT_NEAR(loss(), 0.01 * expected, 1e-10 * expected);
    ops::pair_distance_backward(dY, Y, skip, doubles({0.01}), ctx);
    // 131^2 distances of order three, a hundredth: 500, rounded to 1e-13, over the step of 1e-5
    EXPECT_TRUE(gradient_matches(Y, dY, loss, {.relative = 1e-5, .absolute = 1e-7})) << rows;
  }
}

TEST(Latent, EqualRowsHaveNoDistanceAndAFiniteGradient) {
  PoisonedContext ctx;
  OwnedTensor Y({3, 2}, DType::f32), dY = zeros(3, 2, DType::f32);
  fill(Y, {1, 2, 1, 2, 1, 2});
  EXPECT_EQ(number_from([&](Tensor sum_1) { ops::pair_distance_sum(sum_1, Y, {}, ctx); }), 0);
  ops::pair_distance_backward(dY, Y, {}, doubles({1}), ctx);
  EXPECT_EQ(values(dY), std::vector<double>(6, 0.0));
}

TEST(Latent, SamplesAreMeanAndNoiseTimesDeviation) {
  PoisonedContext ctx;
  OwnedTensor z({1, 2}, DType::f64), mean({1, 2}, DType::f64), log_var({1, 2}, DType::f64),
      eps({1, 2}, DType::f64);
  fill(mean, {1, 2});
  fill(log_var, {std::log(4.0), std::log(9.0)});
  fill(eps, {0.5, -1});
  ops::sample_latent(z, mean, log_var, eps, ctx);
  EXPECT_TRUE(all_near(values(z), {2, -1}, 1e-15, 0));
}

TEST(Latent, KlToTheStandardNormalAndItsGradient) {
  PoisonedContext ctx;
  const OwnedTensor mean = normal_strided(kRows, kWidth, DType::f64, "mean");
  const OwnedTensor log_var = normal_strided(kRows, kWidth, DType::f64, "log_var");
  const OwnedTensor dmean = zeros(kRows, kWidth), dlog_var = zeros(kRows, kWidth), skip = padding(kRows);
  double expected = 0;
  for (std::int64_t i = 0; i < mean.numel(); ++i)
    if (skip[i / kWidth] >= 0) expected -= (1 + log_var[i] - mean[i] * mean[i] - std::exp(log_var[i])) / 2;
  const auto loss = [&] {
    return 0.3 * number_from([&](Tensor sum_1) { ops::standard_kl_sum(sum_1, mean, log_var, skip, ctx); });
  };
  EXPECT_NEAR(loss(), 0.3 * expected, 1e-11);
  ops::standard_kl_backward(dmean, dlog_var, mean, log_var, skip, 0.3, ctx);
  EXPECT_TRUE(gradient_matches(mean, dmean, loss));
  EXPECT_TRUE(gradient_matches(log_var, dlog_var, loss, {.absolute = 1e-7}));  // a loss of some hundred
}

// R as it is defined, row by row. Scores far from 0 on both sides; the last token has no slot.
TEST(Latent, RoutedSumsAreOfTheSoftmaxOverAllExperts) {
  PoisonedContext ctx;
  constexpr std::int64_t kExperts = 6, kSlots = 2;
  for (const double scale : {1.0, 50.0}) {
    const OwnedTensor z = normal({kRows, kWidth}, DType::f64, "z");
    const OwnedTensor chosen = normal({kRows, kSlots}, DType::f64, "chosen", scale);
    OwnedTensor expert({kRows, kSlots}, DType::i32), sum({kExperts, kWidth}, DType::f64),
        count({kExperts}, DType::f64);
    for (std::int64_t t = 0; t < kRows; ++t) {
      set(expert, 2 * t, t == kRows - 1 ? -1 : static_cast<double>(t % 5));
      set(expert, 2 * t + 1, t % 4 == 3 || t == kRows - 1 ? -1 : 5);
    }
    ops::routed_sums(sum, count, z, chosen, expert, ctx);
    std::vector<double> want_sum(kExperts * kWidth), want_count(kExperts);
    for (std::int64_t t = 0; t < kRows - 1; ++t) {
      std::vector<double> row(kExperts, 0.0);
      for (std::int64_t k = 0; k < kSlots; ++k)
        if (expert[2 * t + k] >= 0) row[static_cast<std::size_t>(expert[2 * t + k])] = chosen[2 * t + k];
      double total = 0;
      for (const double s : row) total += std::exp(s);
      for (std::size_t e = 0; e < kExperts; ++e) {
        const double share = std::exp(row[e]) / total;
        want_count[e] += share;
        for (std::size_t j = 0; j < kWidth; ++j)
          want_sum[e * kWidth + j] += share * z[t * kWidth + static_cast<std::int64_t>(j)];
      }
    }
    EXPECT_TRUE(all_near(values(sum), want_sum, 1e-12, 1e-12)) << scale;
    EXPECT_TRUE(all_near(values(count), want_count, 1e-12, 1e-12)) << scale;
    EXPECT_NEAR(dot(count, normal({kExperts}, DType::f64, "one", 0, 1)), kRows - 1, 1e-10);
  }
}

// Nobody else is left to take a share from, however far from 0 the scores are.
TEST(Latent, RoutedSumsOfATokenThatHasEveryExpert) {
  PoisonedContext ctx;
  const OwnedTensor z({1, 1}, DType::f32), chosen({1, 2}, DType::f32), expert({1, 2}, DType::i32);
  const OwnedTensor sum({2, 1}, DType::f64), count({2}, DType::f64);
  fill(z, {3});
  fill(chosen, {-2000, -2001});
  fill(expert, {1, 0});
  ops::routed_sums(sum, count, z, chosen, expert, ctx);
  const double larger = 1 / (1 + std::exp(-1));
  EXPECT_TRUE(all_near(values(count), {1 - larger, larger}, 1e-15, 1e-15));
  EXPECT_TRUE(all_near(values(sum), {3 - 3 * larger, 3 * larger}, 1e-15, 1e-15));
}

TEST(Latent, SumsAreTheSameBitsOnAnyThreadCount) {
  const OwnedTensor z = normal({1001, 16}, DType::f32, "z"), chosen = normal({1001, 2}, DType::f32, "chosen");
  OwnedTensor expert({1001, 2}, DType::i32);
  fill_int(expert, "expert", 0, 9);
  expect_same_bits_on_any_thread_count([&] {
    PoisonedContext ctx;
    OwnedTensor sum({9, 16}, DType::f64), count({9}, DType::f64);
    ops::routed_sums(sum, count, z, chosen, expert, ctx);
    return sum;
  });
  expect_same_bits_on_any_thread_count([&] {
    PoisonedContext ctx;
    OwnedTensor gram({16, 16}, DType::f64), sum({16}, DType::f64);
    ops::row_moments(gram, sum, z, {}, ctx);
    return gram;
  });
}

TEST(Latent, PaddingIsCleared) {
  PoisonedContext ctx;
  OwnedTensor x({3, 2}, DType::f32);
  fill(x, {1, 2, 3, 4, 5, 6});
  ops::clear_skipped_rows(x, ints({1, -1, 0}), ctx);
  EXPECT_EQ(values(x), (std::vector<double>{1, 2, 0, 0, 5, 6}));
  ops::scale_rows(x, x, 0.5, ctx);
  EXPECT_EQ(values(x), (std::vector<double>{0.5, 1, 0, 0, 2.5, 3}));
}

TEST(Latent, RefusesOtherShapes) {
  Context ctx;
  const OwnedTensor rows({3, 2}, DType::f32), other({3, 3}, DType::f32), norm({2}, DType::f32);
  const OwnedTensor gram({2, 2}, DType::f32), sum({2}, DType::f64);
  EXPECT_THROW(ops::unit_rows_forward(other, norm, rows, ctx), std::logic_error);
  EXPECT_THROW(ops::row_moments(gram, sum, rows, {}, ctx), std::logic_error);
  const OwnedTensor one = doubles({0});
  EXPECT_THROW(ops::standard_kl_sum(one, rows, other, {}, ctx), std::logic_error);
  EXPECT_THROW(ops::pair_distance_sum(one, rows, ints({1, 2}), ctx), std::logic_error);
  EXPECT_THROW(ops::pair_distance_sum(norm, rows, {}, ctx), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
