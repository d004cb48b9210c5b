// cuDNN's attention against our kernels, on a device; elsewhere there is nothing to compare.
#include "cuda/attention_cudnn.h"

#ifdef SWITCHYARD_HAS_CUDNN

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "cuda/device.h"
#include "cuda_support.h"
#include "ops/attention.h"

namespace switchyard::test {
namespace {

struct Heads {
  std::int64_t query, kv, width, value_width;
};

class CudaAttentionCudnn : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = ops::cuda::unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  }
};

struct Call {
  ops::AttentionShape shape;
  DeviceContext ctx;
  std::int64_t T;
  DeviceTensor q, k, v, dout, kv_begin, out, lse, dq, dk, dv;

  Call(std::int64_t n_seq, std::int64_t seq_len, const Heads& h, std::int64_t window)
      : shape{n_seq,
              seq_len,
              h.query,
              h.kv,
              h.width,
              h.value_width,
              1 / std::sqrt(static_cast<double>(h.width)),
              0,
              window},
        T(n_seq * seq_len),
        q(random("q", h.query * h.width)),
        k(random("k", h.kv * h.width)),
        v(random("v", h.kv * h.value_width)),
        dout(random("dout", h.query * h.value_width)),
        kv_begin(DeviceTensor::of(begins(), ctx)),
        out(result(h.query * h.value_width)),
        lse({T, h.query}, DType::f32, ctx),
        dq(result(h.query * h.width)),
        dk(result(h.kv * h.width)),
        dv(result(h.kv * h.value_width)) {}

  // Columns of a wider matrix, as q, k and v are of the fused projection.
  DeviceTensor random(const char* name, std::int64_t width) {
    return DeviceTensor::of(normal({T, width}, DType::f64, name), DType::bf16, ctx, 8);
  }
  DeviceTensor result(std::int64_t width) { return DeviceTensor::strided(T, width, DType::bf16, ctx, 8); }
  OwnedTensor begins() const {
    OwnedTensor result({T}, DType::i32);
    for (std::int64_t t = 0; t < T; ++t) {
      const std::int64_t first = shape.window > 0 ? t % shape.seq_len + 1 - shape.window : 0;
      set(result, t, static_cast<double>(std::max<std::int64_t>(0, first)));
    }
    return result;
  }
  void run(AttentionBackend backend) {
    ctx.attention = backend;
    ops::cuda::attention_forward(out, lse, q, k, v, kv_begin, shape, {}, ctx);
    ops::cuda::attention_backward(dq, dk, dv, dout, out, lse, q, k, v, kv_begin, shape, ctx);
  }
};

struct Sizes {
  std::int64_t n_seq, seq_len;
  Heads heads;
  std::int64_t window;
};
const Sizes kSizes[] = {{2, 256, {4, 4, 128, 128}, 0},  {2, 200, {8, 2, 64, 64}, 0},
                        {1, 333, {6, 2, 128, 128}, 77}, {2, 64, {4, 1, 64, 64}, 1},
                        {1, 300, {2, 2, 192, 128}, 0},  {2, 130, {4, 2, 128, 128}, 1000}};

TEST_F(CudaAttentionCudnn, EqualsOurs) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.n_seq << " x " << s.seq_len << ", heads of " << s.heads.width
                                      << ", window " << s.window);
    Call ours(s.n_seq, s.seq_len, s.heads, s.window), theirs(s.n_seq, s.seq_len, s.heads, s.window);
    if (ops::cuda::attention_cudnn_unavailable_reason(ours.shape) !=
        "") {  // such as wide heads before compute capability 9.0
      ASSERT_GT(s.heads.width, 128) << ops::cuda::attention_cudnn_unavailable_reason(ours.shape);
      continue;
    }
    ours.run(AttentionBackend::flash);
    theirs.run(AttentionBackend::cudnn);
    EXPECT_TRUE(theirs.out.margins_untouched() && theirs.dq.margins_untouched() &&
                theirs.dk.margins_untouched() && theirs.dv.margins_untouched());
    // Both round P (and in backward dS) to 8 bits, each in its own tiles: twice what cuda_attention_test.cpp
    // grants ours against exact arithmetic. Log-sum-exps are float32.
    const auto near = [](const DeviceTensor& a, const DeviceTensor& b, double relative, double absolute) {
      return all_near(a.values(), b.values(), relative, absolute);
    };
    EXPECT_TRUE(near(theirs.lse, ours.lse, 1e-5, 1e-5)) << "lse";
    EXPECT_TRUE(near(theirs.out, ours.out, 0x1p-7, 0x1p-7)) << "out";
    EXPECT_TRUE(near(theirs.dq, ours.dq, 0x1p-7, 0x1p-5)) << "dq";
    EXPECT_TRUE(near(theirs.dk, ours.dk, 0x1p-7, 0x1p-5)) << "dk";
    EXPECT_TRUE(near(theirs.dv, ours.dv, 0x1p-7, 0x1p-5)) << "dv";
  }
}

TEST_F(CudaAttentionCudnn, SameBitsInEveryRun) {
  Call first(2, 512, {8, 2, 128, 128}, 0), again(2, 512, {8, 2, 128, 128}, 0);
  for (int i = 0; i < 3; ++i) {
    first.run(AttentionBackend::cudnn);
    again.run(AttentionBackend::cudnn);
    for (const auto tensor : {&Call::out, &Call::lse, &Call::dq, &Call::dk, &Call::dv})
      EXPECT_EQ((first.*tensor).values(), (again.*tensor).values());
  }
}

}  // namespace
}  // namespace switchyard::test

#endif  // SWITCHYARD_HAS_CUDNN
