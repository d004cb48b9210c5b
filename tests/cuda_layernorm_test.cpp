#include "ops/norm.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#ifdef SWITCHYARD_SIMT
#include "simt/engine.h"
#endif

namespace switchyard::test {
namespace {

constexpr double kEps = 1e-5;

struct Sizes {
  std::int64_t rows, width, margin;
};
// Odd widths, packs with and without a margin; backward teams of some lanes, of a warp with two and four packs
// a lane, of a block with one, two and four; rows that fill several blocks, no row, and rows too wide for
// registers, of which one has dynamic shared memory of 48 KiB, beside which there is static.
const Sizes kSizes[] = {{1, 5, 0},   {3, 33, 5},   {20, 64, 8},  {62, 24, 0},  {7, 256, 0}, {35, 512, 4},
                        {9, 600, 4}, {12, 129, 0}, {5, 1032, 0}, {3, 2056, 8}, {0, 8, 0},   {2, 6144, 0}};

struct Case {
  DeviceContext ctx;
  DeviceTensor x, weight, bias, dout, dx, dweight, dbias, out, mean, rstd;

  explicit Case(const Sizes& s, double mean_of_x = 0)
      : x(of(s, "x", mean_of_x)),
        weight(DeviceTensor::of(normal({s.width}, DType::f32, "weight", 0.3, 1.0), ctx)),
        bias(DeviceTensor::of(normal({s.width}, DType::f32, "bias"), ctx)),
        dout(of(s, "dout")),
        dx(of(s, "dx")),
        dweight(DeviceTensor::of(normal({s.width}, DType::f32, "dweight"), ctx)),
        dbias(DeviceTensor::of(normal({s.width}, DType::f32, "dbias"), ctx)),
        out(s.margin > 0 ? DeviceTensor::strided(s.rows, s.width, DType::f32, ctx, s.margin)
                         : DeviceTensor({s.rows, s.width}, DType::f32, ctx)),
        mean({s.rows}, DType::f32, ctx),
        rstd({s.rows}, DType::f32, ctx) {}
  DeviceTensor of(const Sizes& s, const char* name, double mean_of = 0) {
    return DeviceTensor::of(normal({s.rows, s.width}, DType::f64, name, 1.0, mean_of), DType::f32, ctx,
                            s.margin);
  }
  void run() {
    ops::cuda::layernorm_silu_forward(out, mean, rstd, x, weight, bias, kEps, ctx);
    ops::cuda::layernorm_silu_backward(dx, dweight, dbias, dout, x, mean, rstd, weight, bias, ctx);
  }
};

TEST(CudaLayerNormSilu, EqualsTheCpu) {
  for (const double mean_of_x : {0.0, 30.0}) {
    for (const Sizes& s : kSizes) {
      SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width << " margin " << s.margin);
      Case c(s, mean_of_x);
      Context host_ctx;
      const OwnedTensor dx64 = c.dx.as_f64(), dweight64 = c.dweight.as_f64(), dbias64 = c.dbias.as_f64();
      const OwnedTensor out64(c.x.view().shape(), DType::f64), mean64({s.rows}, DType::f64),
          rstd64({s.rows}, DType::f64);
      ops::layernorm_silu_forward(out64, mean64, rstd64, c.x.as_f64(), c.weight.as_f64(), c.bias.as_f64(), kEps,
                                  host_ctx);
      ops::layernorm_silu_backward(dx64, dweight64, dbias64, c.dout.as_f64(), c.x.as_f64(), mean64, rstd64,
                                   c.weight.as_f64(), c.bias.as_f64(), host_ctx);
      c.run();
      // The mean is rounded to 6e-8 of itself, which every difference from it inherits; some twenty roundings
      // behind it, and sums over up to 70 rows.
      const double rounding = 1e-5 + 2e-7 * mean_of_x;
      EXPECT_TRUE(all_near(c.mean.values(), values(mean64), 2e-7, 2e-7));
      EXPECT_TRUE(all_near(c.rstd.values(), values(rstd64), rounding, 0));
      EXPECT_TRUE(all_near(c.out.values(), values(out64), rounding, rounding));
      EXPECT_TRUE(all_near(c.dx.values(), values(dx64), rounding, rounding));
      EXPECT_TRUE(all_near(c.dweight.values(), values(dweight64), rounding, 10 * rounding));
      EXPECT_TRUE(all_near(c.dbias.values(), values(dbias64), rounding, 10 * rounding));
      EXPECT_TRUE(c.out.margins_untouched());
      EXPECT_TRUE(c.dx.margins_untouched());
    }
  }
}

#ifdef SWITCHYARD_SIMT
TEST(CudaLayerNormSilu, SameBitsInAnyOrderOfBlocks) {
  for (const Sizes& s : {Sizes{70, 33, 0}, Sizes{70, 64, 0}, Sizes{9, 600, 0}}) {
    std::vector<std::vector<double>> sums;
    for (const auto order : {simt::BlockOrder::ascending, simt::BlockOrder::descending}) {
      simt::set_block_order(order);
      Case c(s);
      c.run();
      sums.push_back(c.dweight.values());
      sums.push_back(c.dx.values());
    }
    simt::set_block_order(simt::BlockOrder::ascending);
    EXPECT_EQ(sums[0], sums[2]);
    EXPECT_EQ(sums[1], sums[3]);
  }
}
#endif

}  // namespace
}  // namespace switchyard::test
