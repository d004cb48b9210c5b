#include "ops/latent.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cuda_support.h"
#ifdef SWITCHYARD_SIMT
#include "simt/engine.h"
#endif

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t rows, width, margin;
};
// One of one, widths that fill neither a pack nor a chunk, rows that fill several blocks or tiles, strided rows
// with and without packs, no row.
const Sizes kSizes[] = {{1, 1, 0}, {37, 5, 3}, {70, 16, 8}, {131, 33, 5}, {150, 8, 0}, {0, 4, 0}};

// A context of the device, and what the CPU computes in double of the same (rounded) inputs.
class CudaLatent : public ::testing::Test {
 protected:
  // A matrix of normal numbers; `skip`, if given, makes NaN of the rows that do not count: they must not be
  // read.
  DeviceTensor rows(const Sizes& s, const char* name, double scale = 1,
                    const OwnedTensor* skip = nullptr) const {
    const OwnedTensor host = normal({s.rows, s.width}, DType::f64, name, scale);
    for (std::int64_t i = 0; skip && i < host.numel(); ++i)
      if ((*skip)[i / s.width] < 0) set(host, i, std::nan(""));
    return DeviceTensor::of(host, DType::f32, ctx_, s.margin);
  }
  DeviceTensor unset(const Sizes& s) const {
    return s.margin > 0 ? DeviceTensor::strided(s.rows, s.width, DType::f32, ctx_, s.margin)
                        : DeviceTensor({s.rows, s.width}, DType::f32, ctx_);
  }
  // To a result on the host, for which the call waits.
  double distance_sum(const Tensor& Y_Rd, const Tensor& token_R) {
    return number_from([&](Tensor sum_1) { ops::cuda::pair_distance_sum(sum_1, Y_Rd, token_R, ctx_); });
  }
  // Every seventh row does not count.
  static OwnedTensor padding(std::int64_t rows) {
    std::vector<double> ids;
    for (std::int64_t r = 0; r < rows; ++r) ids.push_back(r % 7 == 6 ? -1 : 3);
    return ints(ids);
  }
  static ::testing::Message describe(const Sizes& s) {
    return ::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin;
  }

  DeviceContext ctx_;
  Context host_ctx_;
};

TEST_F(CudaLatent, UnitRowsEqualTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(describe(s));
    const OwnedTensor host = normal({s.rows, s.width}, DType::f64, "in");
    for (std::int64_t j = 0; j < s.width && s.rows > 3; ++j) set(host, 2 * s.width + j, 0);  // of length zero
    const auto in = DeviceTensor::of(host, DType::f32, ctx_, s.margin);
    const auto dunit = rows(s, "dunit"), din = rows(s, "din"), unit = unset(s);
    const DeviceTensor norm({s.rows}, DType::f32, ctx_);
    const OwnedTensor din64 = din.as_f64(), unit64(unit.view().shape(), DType::f64),
                      norm64({s.rows}, DType::f64);
    ops::unit_rows_forward(unit64, norm64, in.as_f64(), host_ctx_);
    ops::unit_rows_backward(din64, dunit.as_f64(), unit64, norm64, host_ctx_);
    ops::cuda::unit_rows_forward(unit, norm, in, ctx_);
    ops::cuda::unit_rows_backward(din, dunit, unit, norm, ctx_);
    // Sums of up to 33 terms, then a few roundings of 6e-8. The gradient is divided by lengths from about 0.3.
    EXPECT_TRUE(all_near(norm.values(), values(norm64), 1e-6, 0));
    EXPECT_TRUE(all_near(unit.values(), values(unit64), 1e-6, 0));
    EXPECT_TRUE(all_near(din.values(), values(din64), 2e-6, 5e-6));
    EXPECT_TRUE(unit.margins_untouched());
    EXPECT_TRUE(din.margins_untouched());
  }
}

TEST_F(CudaLatent, MomentsEqualTheCpu) {
  for (const Sizes& s : kSizes)
    for (const bool padded : {true, false}) {
      SCOPED_TRACE(describe(s));
      const OwnedTensor skip = padding(s.rows);
      const auto device_skip = DeviceTensor::of(skip, ctx_);
      const auto unit = rows(s, "unit", 1, padded ? &skip : nullptr);
      const OwnedTensor gram64({s.width, s.width}, DType::f64), sum64({s.width}, DType::f64);
      const OwnedTensor host_gram({s.width, s.width}, DType::f64), host_sum({s.width}, DType::f64);
      const DeviceTensor gram({s.width, s.width}, DType::f64, ctx_), sum({s.width}, DType::f64, ctx_);
      ops::row_moments(gram64, sum64, unit.as_f64(), padded ? skip.view() : Tensor(), host_ctx_);
      ops::cuda::row_moments(gram, sum, unit, padded ? device_skip.view() : Tensor(), ctx_);
      ops::cuda::row_moments(host_gram, host_sum, unit, padded ? device_skip.view() : Tensor(), ctx_);
      // In double, of up to 150 terms.
      EXPECT_TRUE(all_near(gram.values(), values(gram64), 1e-13, 1e-13));
      EXPECT_TRUE(all_near(sum.values(), values(sum64), 1e-13, 1e-13));
      EXPECT_EQ(values(host_gram), gram.values());
      EXPECT_EQ(values(host_sum), sum.values());
    }
}

TEST_F(CudaLatent, AffineRowsEqualTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(describe(s));
    const OwnedTensor skip = padding(s.rows), matrix = normal({s.width, s.width}, DType::f64, "matrix"),
                      offset = normal({s.width}, DType::f64, "offset");
    const auto device_skip = DeviceTensor::of(skip, ctx_), device_matrix = DeviceTensor::of(matrix, ctx_),
               unit = rows(s, "unit"), out = rows(s, "out"), same = rows(s, "out");
    const OwnedTensor out64 = out.as_f64();
    ops::add_affine_rows(out64, unit.as_f64(), matrix, offset, skip, host_ctx_);
    ops::cuda::add_affine_rows(out, unit, device_matrix, offset, device_skip, ctx_);
    ops::cuda::add_affine_rows(same, unit, matrix, offset, device_skip, ctx_);
    // Summed in double; rounded to float32, as the sum with what was there is.
    EXPECT_TRUE(all_near(out.values(), values(out64), 2e-7, 1e-6));
    EXPECT_EQ(same.values(), out.values());
    EXPECT_TRUE(out.margins_untouched());
  }
}

TEST_F(CudaLatent, PairDistancesEqualTheCpu) {
  for (const Sizes& s : kSizes)
    for (const bool padded : {true, false}) {
      SCOPED_TRACE(describe(s));
      const OwnedTensor skip = padding(s.rows);
      const auto device_skip = DeviceTensor::of(skip, ctx_);
      const Tensor token_R = padded ? skip.view() : Tensor(),
                   device_skip_R = padded ? device_skip.view() : Tensor();
      const auto Y = rows(s, "Y", 1, padded ? &skip : nullptr), dY = rows(s, "dY");
      const OwnedTensor dY64 = dY.as_f64();
      const OwnedTensor Y64 = Y.as_f64(), scale = doubles({0.3});
      const double sum64 =
          number_from([&](Tensor sum_1) { ops::pair_distance_sum(sum_1, Y64, token_R, host_ctx_); });
      ops::pair_distance_backward(dY64, Y64, token_R, scale, host_ctx_);
      // Each distance is a root of a sum in float32, rounded to some 1e-7; their sum is in double.
      EXPECT_NEAR(distance_sum(Y, device_skip_R), sum64, 1e-6 * sum64);
      ops::cuda::pair_distance_backward(dY, Y, device_skip_R, DeviceTensor::of(scale, ctx_), ctx_);
      // Sums of up to 150 cosines, each rounded to some 1e-7.
      EXPECT_TRUE(all_near(dY.values(), values(dY64), 1e-6, 2e-5));
      EXPECT_TRUE(dY.margins_untouched());
    }
}

TEST_F(CudaLatent, EqualRowsHaveNoDistanceAndAFiniteGradient) {
  const auto Y = DeviceTensor::of(normal({5, 3}, DType::f32, "one", 0, 1.7), ctx_), dY = rows({5, 3, 0}, "dY");
  const auto before = dY.values();
  EXPECT_EQ(distance_sum(Y, {}), 0);
  ops::cuda::pair_distance_backward(dY, Y, {}, doubles({1}), ctx_);
  EXPECT_EQ(dY.values(), before);
}

TEST_F(CudaLatent, SamplesAndTheirDivergenceEqualTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(describe(s));
    const OwnedTensor skip = padding(s.rows);
    const auto device_skip = DeviceTensor::of(skip, ctx_);
    const auto mean = rows(s, "mean"), log_var = rows(s, "log_var"), epsilon = rows(s, "epsilon");
    const auto z = unset(s), dmean = rows(s, "dmean"), dlog_var = rows(s, "dlog_var");
    const OwnedTensor z64(z.view().shape(), DType::f64), dmean64 = dmean.as_f64(),
                                                         dlog_var64 = dlog_var.as_f64();
    ops::sample_latent(z64, mean.as_f64(), log_var.as_f64(), epsilon.as_f64(), host_ctx_);
    const double kl64 = number_from(
        [&](Tensor sum_1) { ops::standard_kl_sum(sum_1, mean.as_f64(), log_var.as_f64(), skip, host_ctx_); });
    ops::standard_kl_backward(dmean64, dlog_var64, mean.as_f64(), log_var.as_f64(), skip, 0.3, host_ctx_);
    ops::cuda::sample_latent(z, mean, log_var, epsilon, ctx_);
    ops::cuda::standard_kl_backward(dmean, dlog_var, mean, log_var, device_skip, 0.3, ctx_);
    // A few roundings of 6e-8, of numbers up to about 30.
    EXPECT_TRUE(all_near(z.values(), values(z64), 1e-6, 1e-6));
    const DeviceTensor kl({1}, DType::f64, ctx_), count({1}, DType::f64, ctx_);
    ops::cuda::standard_kl_sum(kl, mean, log_var, device_skip, ctx_);
    EXPECT_NEAR(kl.values()[0], kl64, 1e-6 * kl64);
    ops::cuda::count_rows(count, device_skip, ctx_);
    EXPECT_EQ(count.values()[0],
              number_from([&](Tensor count_1) { ops::count_rows(count_1, skip, host_ctx_); }));
    EXPECT_TRUE(all_near(dmean.values(), values(dmean64), 1e-6, 1e-6));
    EXPECT_TRUE(all_near(dlog_var.values(), values(dlog_var64), 1e-6, 1e-6));
    for (const DeviceTensor* out : {&z, &dmean, &dlog_var}) EXPECT_TRUE(out->margins_untouched());
  }
}

// Scores far from 0 on both sides; free slots, tokens without any, experts without tokens, several blocks.
struct Routed {
  DeviceContext ctx;
  OwnedTensor z, chosen, expert;
  DeviceTensor sum, count;

  Routed(std::int64_t tokens, std::int64_t width, std::int64_t slots, std::int64_t experts, double scale)
      : z(normal({tokens, width}, DType::f32, "z")),
        chosen(normal({tokens, slots}, DType::f32, "chosen", scale)),
        expert({tokens, slots}, DType::i32),
        sum({experts, width}, DType::f64, ctx),
        count({experts}, DType::f64, ctx) {
    for (std::int64_t i = 0; i < expert.numel(); ++i)
      set(expert, i, i / slots % 9 == 8 || i % 4 == 3 ? -1 : static_cast<double>((i % slots + i) % experts));
  }
  void run(const Tensor& to_sum, const Tensor& to_count) {
    ops::cuda::routed_sums(to_sum, to_count, DeviceTensor::of(z, ctx), DeviceTensor::of(chosen, ctx),
                           DeviceTensor::of(expert, ctx), ctx);
  }
};

TEST_F(CudaLatent, RoutedSumsEqualTheCpu) {
  for (const double scale : {1.0, 50.0, 2000.0})
    for (const auto& [tokens, width, slots, experts] :
         {std::array<std::int64_t, 4>{37, 5, 2, 6}, {9, 1, 1, 1}, {600, 33, 8, 20}, {0, 4, 2, 3}}) {
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, scale " << scale);
      Routed r(tokens, width, slots, experts, scale);
      const OwnedTensor z64(r.z.view().shape(), DType::f64), chosen64(r.chosen.view().shape(), DType::f64);
      fill(z64, values(r.z));
      fill(chosen64, values(r.chosen));
      const OwnedTensor sum64({experts, width}, DType::f64), count64({experts}, DType::f64),
          host_sum({experts, width}, DType::f64), host_count({experts}, DType::f64);
      ops::routed_sums(sum64, count64, z64, chosen64, r.expert, host_ctx_);
      r.run(r.sum, r.count);
      r.run(host_sum, host_count);
      // In double, of up to 600 terms.
      EXPECT_TRUE(all_near(r.sum.values(), values(sum64), 1e-12, 1e-12));
      EXPECT_TRUE(all_near(r.count.values(), values(count64), 1e-12, 1e-12));
      EXPECT_EQ(values(host_sum), r.sum.values());
      EXPECT_EQ(values(host_count), r.count.values());
    }
}

TEST_F(CudaLatent, SkippedRowsAreClearedAndRowsAreScaled) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Sizes& s : kSizes) {
      const OwnedTensor skip = padding(s.rows);
      const auto x = DeviceTensor::of(normal({s.rows, s.width}, DType::f64, "x"), dtype, ctx_, s.margin);
      auto expected = x.values();
      for (std::int64_t i = 0; i < s.rows * s.width; ++i)
        if (skip[i / s.width] < 0) expected[static_cast<std::size_t>(i)] = 0;
      ops::cuda::clear_skipped_rows(x, {}, ctx_);
      ops::cuda::clear_skipped_rows(x, DeviceTensor::of(skip, ctx_), ctx_);
      EXPECT_EQ(x.values(), expected) << describe(s);
      EXPECT_TRUE(x.margins_untouched());
      if (dtype == DType::bf16) continue;
      const auto out = unset(s);
      for (double& value : expected) value *= 0.5;  // exact
      ops::cuda::scale_rows(out, x, 0.5, ctx_);
      ops::cuda::scale_rows(x, x, 0.5, ctx_);
      EXPECT_EQ(out.values(), expected) << describe(s);
      EXPECT_EQ(x.values(), expected) << describe(s);
      EXPECT_TRUE(out.margins_untouched());
    }
}

#ifdef SWITCHYARD_SIMT
TEST_F(CudaLatent, SameBitsInAnyOrderOfBlocks) {
  const auto all = [&](simt::BlockOrder order) {
    simt::set_block_order(order);
    const Sizes s{150, 20, 0};
    const auto Y = rows(s, "Y"), dY = rows(s, "dY");
    const DeviceTensor gram({20, 20}, DType::f64, ctx_), sum({20}, DType::f64, ctx_);
    ops::cuda::row_moments(gram, sum, Y, {}, ctx_);
    ops::cuda::pair_distance_backward(dY, Y, {}, doubles({0.3}), ctx_);
    Routed r(600, 5, 8, 20, 1);
    r.run(r.sum, r.count);
    std::vector<std::vector<double>> results{
        gram.values(), sum.values(), dY.values(), r.sum.values(), {distance_sum(Y, {})}};
    simt::set_block_order(simt::BlockOrder::ascending);
    return results;
  };
  EXPECT_EQ(all(simt::BlockOrder::ascending), all(simt::BlockOrder::descending));
}
#endif

}  // namespace
}  // namespace switchyard::test
