#include <gtest/gtest.h>

#include <vector>

#include "cuda_support.h"
#include "ops/slots.h"

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t tokens, n_experts, margin;  // margin > 0: strided rows
};
const Sizes kSizes[] = {{1, 1, 0}, {9, 8, 3}, {17, 33, 5}, {11, 256, 0}, {2, 515, 0}, {0, 4, 0}};

class CudaGate : public ::testing::TestWithParam<Sizes> {
 protected:
  Shape shape() const { return {GetParam().tokens, GetParam().n_experts}; }
  DeviceTensor input(const Tensor& host) { return DeviceTensor::of(host, DType::f32, ctx_, GetParam().margin); }
  DeviceContext ctx_;
  Context host_ctx_;
};

TEST_P(CudaGate, NormalisedLogitsEqualTheCpu) {
  const DeviceTensor logit = input(normal(shape(), DType::f64, "logit", 2.0)),
                     dlogit = input(normal(shape(), DType::f64, "dlogit")),
                     unit = input(normal(shape(), DType::f64, "unit")), rstd({shape()[0]}, DType::f32, ctx_);
  const OwnedTensor logit64 = logit.as_f64(), dlogit64 = dlogit.as_f64(), unit64(shape(), DType::f64),
                    rstd64({shape()[0]}, DType::f64);
  ops::cuda::normalise_logits_forward(logit, unit, rstd, 1.5, ctx_);
  ops::normalise_logits_forward(logit64, unit64, rstd64, 1.5, host_ctx_);
  // Sums of up to 515 terms, 17 of them in a row; differences of numbers of order ten.
  EXPECT_TRUE(all_near(unit.values(), values(unit64), 0, 1e-5));
  EXPECT_TRUE(all_near(logit.values(), values(logit64), 0, 1e-5));
  EXPECT_TRUE(all_near(rstd.values(), values(rstd64), 1e-5, 0));
  ops::cuda::normalise_logits_backward(dlogit, unit, rstd, 1.5, ctx_);
  const OwnedTensor rstd_found({shape()[0]}, DType::f64);
  for (std::int64_t i = 0; i < rstd_found.numel(); ++i)
    set(rstd_found, i, rstd.values()[static_cast<std::size_t>(i)]);
  ops::normalise_logits_backward(dlogit64, unit.as_f64(), rstd_found, 1.5, host_ctx_);
  EXPECT_TRUE(all_near(dlogit.values(), values(dlogit64), 1e-5, 1e-5));
  EXPECT_TRUE(logit.margins_untouched() && unit.margins_untouched() && dlogit.margins_untouched());
}

TEST_P(CudaGate, ExpertsOfTokensEqualTheCpu) {
  constexpr std::int64_t kSlots = 3, kTokens = 10;
  const OwnedTensor table({kTokens * kSlots}, DType::f32), token({shape()[0]}, DType::i32),
      expert({shape()[0], kSlots}, DType::i32);
  std::vector<double> numbers;
  for (std::int64_t i = 0; i < table.numel(); ++i) numbers.push_back(static_cast<double>(i * 37 % 1009));
  fill(table, numbers);
  fill_int(token, "token", -1, kTokens);
  const DeviceTensor found(expert.view().shape(), DType::i32, ctx_);
  ops::cuda::experts_of_tokens(found, DeviceTensor::of(table, ctx_), DeviceTensor::of(token, ctx_), ctx_);
  ops::experts_of_tokens(expert, table, token, host_ctx_);
  EXPECT_EQ(found.values(), values(expert));
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaGate, ::testing::ValuesIn(kSizes));

}  // namespace
}  // namespace switchyard::test
