#include "ops/latent_losses.h"

#include <gtest/gtest.h>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

struct Case {
  std::int64_t experts, width;
  double rows;     // of the sums
  bool of_tensor;  // rows and tokens are read on the device
};
// One number, no pair of rows, more numbers than a block has threads, an odd width.
const Case kCases[] = {{1, 1, 5, false}, {3, 4, 1, true}, {5, 20, 40, true}, {37, 16, 1000, false}};

class CudaLatentLosses : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr ops::Diversity kAll[] = {ops::Diversity::orthogonal, ops::Diversity::cosine,
                                            ops::Diversity::euclidean};

  // The same numbers where the CPU and where the device reads them.
  struct Both {
    Both(const OwnedTensor& values, const DeviceContext& ctx)
        : host(values), device(DeviceTensor::of(host, ctx)) {}
    const OwnedTensor& host;
    DeviceTensor device;
  };
  DeviceContext ctx_;
  Context host_ctx_;
};

TEST_P(CudaLatentLosses, DiversityEqualsTheCpu) {
  const Case& c = GetParam();
  const OwnedTensor gram_host = normal({c.width, c.width}, DType::f64, "gram", 3),
                    sum_host = normal({c.width}, DType::f64, "sum", 3), distance_host = doubles({812.5}),
                    n_host = doubles({c.rows}), tokens_host = doubles({7}), loss_host = doubles({0.25});
  for (const ops::Diversity kind : kAll) {
    SCOPED_TRACE(static_cast<int>(kind));
    const Both gram(gram_host, ctx_), sum(sum_host, ctx_), distance(distance_host, ctx_), n(n_host, ctx_),
        tokens(tokens_host, ctx_);
    const OwnedTensor want_loss = doubles({0.25});
    const DeviceTensor loss = DeviceTensor::of(loss_host, ctx_);
    // Of the others nothing may be read.
    const bool pairs = kind == ops::Diversity::euclidean;
    const auto rows = [&](auto part) {
      ops::RowSums sums{.n = c.of_tensor ? 0 : c.rows};
      if (pairs) sums.distance_1 = part(distance);
      if (!pairs) sums.gram_dd = part(gram), sums.sum_d = part(sum);
      if (c.of_tensor) sums.n_1 = part(n);
      return sums;
    };
    const auto factor = [&](auto part) {
      return ops::TermFactor{0.3, c.of_tensor ? Tensor(part(tokens)) : Tensor{}};
    };
    const auto on_host = [](const Both& both) -> Tensor { return both.host; };
    const auto on_device = [](const Both& both) -> Tensor { return both.device; };
    ops::add_diversity_loss(want_loss, kind, rows(on_host), factor(on_host), host_ctx_);
    ops::cuda::add_diversity_loss(loss, kind, rows(on_device), factor(on_device), ctx_);
    // In double, of up to 400 terms in another order.
    EXPECT_TRUE(all_near(loss.values(), values(want_loss), 1e-13, 1e-13));
    if (c.rows < 2) {
      EXPECT_EQ(loss.values()[0], 0.25);  // one row is no pair
    }

    const OwnedTensor matrix_host({c.width, c.width}, DType::f64), offset_host({c.width}, DType::f64),
        scale_host({1}, DType::f64);
    const DeviceTensor matrix({c.width, c.width}, DType::f64, ctx_), offset({c.width}, DType::f64, ctx_),
        scale({1}, DType::f64, ctx_);
    ops::diversity_gradient(matrix_host, offset_host, scale_host, kind, rows(on_host), factor(on_host),
                            host_ctx_);
    ops::cuda::diversity_gradient(matrix, offset, scale, kind, rows(on_device), factor(on_device), ctx_);
    // A few roundings of each element.
    if (pairs) {
      EXPECT_TRUE(all_near(scale.values(), values(scale_host), 1e-14, 0));
    } else {
      EXPECT_TRUE(all_near(matrix.values(), values(matrix_host), 1e-14, 1e-16));
      EXPECT_TRUE(all_near(offset.values(), values(offset_host), 1e-14, 0));
    }
  }
}

TEST_P(CudaLatentLosses, AlignmentEqualsTheCpu) {
  const Case& c = GetParam();
  const auto key = DeviceTensor::of(normal({c.experts, c.width}, DType::f64, "key"), DType::f32, ctx_);
  const OwnedTensor key64 = key.as_f64(), target = normal({c.experts, c.width}, DType::f64, "target"),
                    tokens = doubles({7});
  set(target, 0, key64[0]);  // an equal pair has no sign
  const auto dkey = DeviceTensor::of(normal({c.experts, c.width}, DType::f64, "dkey"), DType::f32, ctx_);
  const OwnedTensor dkey64 = dkey.as_f64(), loss64 = doubles({0.25});
  const auto device_target = DeviceTensor::of(target, ctx_), device_tokens = DeviceTensor::of(tokens, ctx_),
             loss = DeviceTensor::of(loss64, ctx_);
  const ops::TermFactor factor{0.3, c.of_tensor ? tokens.view() : Tensor{}},
      device_factor{0.3, c.of_tensor ? device_tokens.view() : Tensor{}};
  const double first = dkey64[0];
  ops::add_alignment_loss(loss64, key64, target, factor, host_ctx_);
  ops::alignment_backward(dkey64, key64, target, factor, host_ctx_);
  ops::cuda::add_alignment_loss(loss, key, device_target, device_factor, ctx_);
  ops::cuda::alignment_backward(dkey, key, device_target, device_factor, ctx_);
  EXPECT_TRUE(all_near(loss.values(), values(loss64), 1e-13, 0));    // in double, in another order
  EXPECT_TRUE(all_near(dkey.values(), values(dkey64), 1e-7, 1e-7));  // rounded to float32
  EXPECT_EQ(dkey.values()[0], first);
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaLatentLosses, ::testing::ValuesIn(kCases),
                         [](const auto& instance) { return std::to_string(instance.index); });

}  // namespace
}  // namespace switchyard::test
