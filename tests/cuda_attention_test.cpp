#include "ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "cuda/attention_cudnn.h"
#ifdef SWITCHYARD_SIMT
#include "cuda/divisor.h"
#endif
#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

enum class Mask { causal, window, documents, scattered };

// The first key that query i of a sequence, with `first` keys before, sees.
std::int64_t begin_of(Mask mask, std::int64_t position, std::uint64_t t) {
  switch (mask) {
    case Mask::causal:
      return 0;
    case Mask::window:
      return std::max<std::int64_t>(0, position - 6);
    case Mask::documents:  // of unequal lengths, in the middle of tiles
      for (std::int64_t border : {131, 70, 41, 2})
        if (position >= border) return border;
      return 0;
    case Mask::scattered:  // anything that the contract allows
      return static_cast<std::int64_t>(Rng(7, RngPurpose::init, 1).uniform(t) *
                                       static_cast<double>(position + 1));
  }
  throw std::logic_error("not a mask");
}

struct Case {
  std::int64_t n_seq, seq_len, n_heads, n_kv_heads, head_dim, v_head_dim;
  Mask mask;
  std::int64_t first = 0;
  double q_scale = 1;
  ops::AttentionShape shape() const {
    return {n_seq, seq_len, n_heads, n_kv_heads, head_dim, v_head_dim, 1 / std::sqrt(head_dim), first};
  }
  std::int64_t tokens() const { return n_seq * seq_len; }
  std::int64_t keys() const { return n_seq * (first + seq_len); }
  std::int64_t q_width() const { return n_heads * head_dim; }
  std::int64_t k_width() const { return n_kv_heads * head_dim; }
  std::int64_t v_width() const { return n_kv_heads * v_head_dim; }
  std::int64_t out_width() const { return n_heads * v_head_dim; }
};
std::ostream& operator<<(std::ostream& to, const Case& c) {
  return to << c.n_seq << " x " << c.seq_len << " tokens behind " << c.first << ", " << c.n_heads << "/"
            << c.n_kv_heads << " heads of " << c.head_dim << " and " << c.v_head_dim << ", mask "
            << static_cast<int>(c.mask);
}

// A call's inputs on the device, as `dtype` rounds them, and its outputs there.
struct DeviceCall {
  Case c;
  DeviceContext ctx;
  DeviceTensor q, k, v, dout, kv_begin, out, lse, entropy, dq, dk, dv;

  DeviceCall(const Case& shape, DType dtype, std::int64_t margin)
      : c(shape),
        q(DeviceTensor::of(normal({c.tokens(), c.q_width()}, DType::f64, "q", c.q_scale), dtype, ctx, margin)),
        k(DeviceTensor::of(normal({c.keys(), c.k_width()}, DType::f64, "k"), dtype, ctx, margin)),
        v(DeviceTensor::of(normal({c.keys(), c.v_width()}, DType::f64, "v"), dtype, ctx, margin)),
        dout(DeviceTensor::of(normal({c.tokens(), c.out_width()}, DType::f64, "dout"), dtype, ctx, margin)),
        kv_begin(DeviceTensor::of(begins(), ctx)),
        out(DeviceTensor::strided(c.tokens(), c.out_width(), dtype, ctx, margin)),
        lse({c.tokens(), c.n_heads}, DType::f32, ctx),
        entropy({c.tokens(), c.n_heads}, DType::f32, ctx),
        dq(DeviceTensor::strided(c.tokens(), c.q_width(), dtype, ctx, margin)),
        dk(DeviceTensor::strided(c.keys(), c.k_width(), dtype, ctx, margin)),
        dv(DeviceTensor::strided(c.keys(), c.v_width(), dtype, ctx, margin)) {}

  OwnedTensor begins() const {
    OwnedTensor result({c.tokens()}, DType::i32);
    for (std::int64_t t = 0; t < c.tokens(); ++t)
      set(result, t,
          static_cast<double>(begin_of(c.mask, c.first + t % c.seq_len, static_cast<std::uint64_t>(t))));
    return result;
  }
  void forward() { ops::cuda::attention_forward(out, lse, q, k, v, kv_begin, c.shape(), {}, ctx); }
  void forward_with_entropy() {
    ops::cuda::attention_forward(out, lse, q, k, v, kv_begin, c.shape(), entropy, ctx);
  }
  void backward() {
    ops::cuda::attention_backward(dq, dk, dv, dout, out, lse, q, k, v, kv_begin, c.shape(), ctx);
  }
};

// What the CPU computes in double of the same inputs; the gradients also of the output and lse that the device
// saved, so that their rounding is not counted twice.
struct HostCall {
  Context ctx;
  OwnedTensor q, k, v, dout, kv_begin, out, lse, entropy, dq, dk, dv;
  explicit HostCall(const DeviceCall& x)
      : q(x.q.as_f64()),
        k(x.k.as_f64()),
        v(x.v.as_f64()),
        dout(x.dout.as_f64()),
        kv_begin(x.begins()),
        out(dout.view().shape(), DType::f64),
        lse({x.c.tokens(), x.c.n_heads}, DType::f64),
        entropy(lse.view().shape(), DType::f64),
        dq(q.view().shape(), DType::f64),
        dk(k.view().shape(), DType::f64),
        dv(v.view().shape(), DType::f64) {
    ops::attention_forward(out, lse, q, k, v, kv_begin, x.c.shape(), entropy, ctx);
  }
  void backward(const DeviceCall& x) {
    ops::attention_backward(dq, dk, dv, dout, x.out.as_f64(), x.lse.as_f64(), q, k, v, kv_begin, x.c.shape(),
                            ctx);
  }
};

struct Tolerance {
  double relative, absolute, lse, gradient;
};

void expect_equals_the_cpu(const Case& c, DType dtype, std::int64_t margin, const Tolerance& tolerance) {
  SCOPED_TRACE(::testing::Message() << c << ", " << name_of(dtype));
  DeviceCall x(c, dtype, margin);
  HostCall expected(x);
  const auto expect_outputs = [&] {
    EXPECT_TRUE(all_near(x.out.values(), values(expected.out), tolerance.relative, tolerance.absolute));
    EXPECT_TRUE(all_near(x.lse.values(), values(expected.lse), tolerance.lse, tolerance.lse));
    EXPECT_TRUE(x.out.margins_untouched());
  };
  x.forward_with_entropy();  // other kernels may serve it
  expect_outputs();
  EXPECT_TRUE(all_near(x.entropy.values(), values(expected.entropy), tolerance.lse, tolerance.lse));
  x.out = DeviceTensor::strided(c.tokens(), c.out_width(), dtype, x.ctx, margin);
  x.lse = DeviceTensor({c.tokens(), c.n_heads}, DType::f32, x.ctx);
  x.forward();
  expect_outputs();
  if (c.first > 0) return;
  x.backward();
  expected.backward(x);
  EXPECT_TRUE(all_near(x.dq.values(), values(expected.dq), tolerance.relative, tolerance.gradient)) << "dq";
  EXPECT_TRUE(all_near(x.dk.values(), values(expected.dk), tolerance.relative, tolerance.gradient)) << "dk";
  EXPECT_TRUE(all_near(x.dv.values(), values(expected.dv), tolerance.relative, tolerance.gradient)) << "dv";
  EXPECT_TRUE(x.dq.margins_untouched() && x.dk.margins_untouched() && x.dv.margins_untouched());
}

// Tiles of these kernels are 32 x 32: lengths on both sides of the borders, groups that do not divide them,
// widths that are no multiple of anything, and more keys than queries.
const Case kAnyCases[] = {
    {1, 1, 1, 1, 1, 1, Mask::causal},
    {2, 33, 3, 1, 5, 7, Mask::causal},
    {1, 70, 4, 2, 33, 3, Mask::scattered},
    {3, 32, 2, 2, 16, 40, Mask::window},
    {1, 75, 2, 1, 8, 9, Mask::documents},
    {2, 1, 6, 2, 20, 12, Mask::causal, 40},
    {1, 5, 5, 1, 36, 32, Mask::window, 31},
    // Static and dynamic shared memory on both sides of 48 KiB together.
    {1, 40, 2, 1, 128, 128, Mask::causal},
    {1, 3, 1, 1, 192, 128, Mask::causal},
    {1, 3, 1, 1, 256, 256, Mask::causal},
    {1, 3, 1, 1, 126, 126, Mask::causal},
};

TEST(CudaAttention, AnyHeadsInFloatEqualTheCpu) {
  // Scores of up to 8 are off by up to 5e-7, so each exponential is by as much of itself; gradients sum up to
  // 140 rows of such terms, and delta cancels.
  for (const Case& c : kAnyCases) expect_equals_the_cpu(c, DType::f32, 5, {2e-6, 2e-6, 2e-6, 1e-5});
}

TEST(CudaAttention, AnyHeadsInBf16EqualTheCpu) {
  // The same arithmetic; results are rounded to 8 bits.
  for (const Case& c : kAnyCases) expect_equals_the_cpu(c, DType::bf16, 5, {0x1p-8, 2e-6, 2e-6, 1e-5});
}

// The tensor cores' tiles are of 128 rows by 64 keys, 32 rows by 128 (or 64) keys, 128 rows by 32 keys.
const Case kTensorCoreCases[] = {
    {1, 1, 1, 1, 16, 8, Mask::causal},         {1, 140, 1, 1, 32, 32, Mask::causal},
    {2, 75, 4, 2, 48, 32, Mask::documents},    {1, 90, 3, 1, 64, 64, Mask::scattered},
    {1, 50, 2, 1, 96, 80, Mask::causal},       {1, 70, 2, 1, 128, 128, Mask::window},
    {1, 67, 1, 1, 192, 128, Mask::documents},  {1, 66, 1, 1, 256, 256, Mask::scattered},
    {1, 33, 2, 2, 40, 200, Mask::causal},      {2, 1, 6, 2, 64, 64, Mask::window, 150},
    {1, 5, 4, 1, 128, 128, Mask::causal, 130}, {1, 128, 2, 2, 32, 32, Mask::window},
};

#ifdef SWITCHYARD_SIMT
TEST(CudaAttention, DivisionByGroupsIsExact) {
  for (int d : {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 31, 64, 127, 128, 1000003, 1 << 30, 0x7fffffff}) {
    const ops::cuda::Divisor by(d);
    std::vector<std::int64_t> numbers = {0, 1, 0x7ffffffe, 0x7fffffff};
    for (std::int64_t i = 0; i < 300; ++i)  // around multiples, small and large
      for (std::int64_t side : {-1, 0, 1}) numbers.push_back(d * (i < 150 ? i : 0x7fffffff / d - i) + side);
    for (std::int64_t n : numbers) {
      if (n < 0 || n > 0x7fffffff) continue;
      EXPECT_EQ(static_cast<int>(n) / by, n / d) << n << " / " << d;
      EXPECT_EQ(static_cast<int>(n) % by, n % d) << n << " % " << d;
    }
  }
}
#endif

TEST(CudaAttention, TensorCoresEqualTheCpu) {
  // Forward rounds each P to 8 bits, backward each P and dS; terms are of order one and weighed by P, of sum 1
  // over keys. dk and dv sum over rows too, with weights of a sum around the number of rows in the first keys.
  for (const Case& c : kTensorCoreCases)
    expect_equals_the_cpu(c, DType::bf16, 8, {0x1p-8, 0x1p-8, 2e-6, 0x1p-6});
}

#ifdef SWITCHYARD_SIMT
// One of another compute capability, without wgmma.
struct SmallerDevice {
  explicit SmallerDevice(std::size_t shared_bytes = 163 * 1024) {
    simt::capability = {8, 0, 2};
    simt::set_max_shared_bytes(shared_bytes);
  }
  ~SmallerDevice() {
    simt::capability = {9, 0, 2};
    simt::set_max_shared_bytes(simt::kMaxSharedBytes);
  }
};

TEST(CudaAttention, TensorCoresOfComputeCapability80EqualTheCpu) {
  const SmallerDevice device;
  for (const Case& c : kTensorCoreCases)
    expect_equals_the_cpu(c, DType::bf16, 8, {0x1p-8, 0x1p-8, 2e-6, 0x1p-6});
}
#endif

// Hopper's instructions have tiles of 128 rows by 128 (or 64) keys, and of 128 keys by 64 rows: several of
// each, more than there are places for in shared memory, groups of heads that divide no tile, and sequences
// that end in one.
const Case kHopperCases[] = {
    {2, 270, 2, 1, 64, 64, Mask::causal},      {1, 300, 3, 1, 64, 64, Mask::documents},
    {1, 270, 3, 1, 128, 128, Mask::scattered}, {1, 400, 1, 1, 128, 128, Mask::window},
    {1, 200, 2, 2, 192, 128, Mask::documents}, {1, 200, 2, 2, 256, 256, Mask::causal},
    {2, 3, 4, 2, 128, 128, Mask::causal, 300}, {2, 150, 2, 2, 64, 64, Mask::documents},
    {2, 141, 8, 2, 64, 64, Mask::documents},   {2, 131, 8, 1, 64, 64, Mask::window},
    {2, 133, 4, 1, 192, 128, Mask::scattered}, {2, 65, 6, 2, 128, 128, Mask::documents},
    {1, 3, 64, 1, 64, 64, Mask::causal},       {1, 3, 32, 1, 192, 128, Mask::causal},
};

TEST(CudaAttention, ManyTilesEqualTheCpu) {
  // As above; P is spread over more keys, and dk and dv sum over up to 900 rows.
  for (const Case& c : kHopperCases) expect_equals_the_cpu(c, DType::bf16, 8, {0x1p-8, 0x1p-8, 2e-6, 0x1p-5});
}

#ifdef SWITCHYARD_SIMT

// A tile for dq is then of 64 rows: several of them, of which the last is not whole.
TEST(CudaAttention, WidestHeadsFitComputeCapability80) {
  const SmallerDevice device(163 * 1024);
  for (const Case& c :
       {Case{1, 75, 2, 1, 256, 256, Mask::scattered}, Case{2, 33, 2, 1, 200, 136, Mask::documents}})
    expect_equals_the_cpu(c, DType::bf16, 8, {0x1p-8, 0x1p-8, 2e-6, 0x1p-6});
}

TEST(CudaAttention, HeadsOf128FitComputeCapability89AndWiderOnesSayWhatTheyNeed) {
  const SmallerDevice device(99 * 1024);
  expect_equals_the_cpu({1, 140, 2, 1, 128, 128, Mask::documents}, DType::bf16, 8,
                        {0x1p-8, 0x1p-8, 2e-6, 0x1p-6});
  DeviceCall wide({1, 66, 1, 1, 256, 256, Mask::causal}, DType::bf16, 8);
  try {
    wide.forward();
    wide.backward();
    ADD_FAILURE() << "heads of 256 were taken";
  } catch (const RunError& error) {
    EXPECT_NE(std::string(error.what()).find("shared memory, the emulator gives 99; use narrower heads"),
              std::string::npos)
        << error.what();
  }
}
#endif

TEST(CudaAttention, BigScoresNeitherOverflowNorVanish) {
  // Scores of up to 400, each off by some 400 * 2^-24 in float: so is a P, relative to itself, and an entropy,
  // which is a difference of numbers of that size. dk is as large as q.
  const Case c{1, 70, 2, 1, 64, 64, Mask::scattered, 0, 100};
  expect_equals_the_cpu(c, DType::f32, 8, {1e-4, 2e-4, 2e-4, 1e-2});
  expect_equals_the_cpu(c, DType::bf16, 8, {0x1p-8, 0x1p-7, 2e-4, 1});
}

#ifdef SWITCHYARD_SIMT
TEST(CudaAttention, SameBitsInAnyOrderOfBlocks) {
  const std::pair<DType, std::int64_t> kernels[] = {{DType::f32, 32}, {DType::bf16, 32}, {DType::bf16, 64}};
  for (const auto& [dtype, width] : kernels) {
    std::vector<std::vector<double>> results[2];
    for (simt::BlockOrder order : {simt::BlockOrder::ascending, simt::BlockOrder::descending}) {
      simt::set_block_order(order);
      DeviceCall x({2, 75, 4, 2, width, width, Mask::documents}, dtype, 8);
      x.forward_with_entropy();
      x.forward();
      x.backward();
      for (const DeviceTensor* tensor : {&x.out, &x.lse, &x.entropy, &x.dq, &x.dk, &x.dv})
        results[static_cast<int>(order)].push_back(tensor->values());
    }
    simt::set_block_order(simt::BlockOrder::ascending);
    EXPECT_EQ(results[0], results[1]) << name_of(dtype);
  }
}
#endif

// NaN all over the first sequence does not reach the second.
TEST(CudaAttention, SequencesDoNotSeeEachOther) {
  const std::pair<DType, std::int64_t> kernels[] = {{DType::f32, 32}, {DType::bf16, 32}, {DType::bf16, 64}};
  for (const auto& [dtype, width] : kernels) {
    const Case c{2, 40, 2, 1, width, width, Mask::causal};
    DeviceCall clean(c, dtype, 8), x(c, dtype, 8);
    for (const DeviceTensor* tensor : {&x.q, &x.k, &x.v, &x.dout}) {
      const OwnedTensor unset(Shape{c.seq_len, tensor->view().row_size()}, dtype);
      for (std::int64_t t = 0; t < c.seq_len; ++t) copy(tensor->view().slice(t, 1), unset.view().slice(t, 1));
    }
    for (DeviceCall* call : {&clean, &x}) {
      call->forward();
      call->backward();
    }
    const auto second = [](const DeviceTensor& tensor) {
      const std::vector<double> all = tensor.values();
      return std::vector<double>(all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2), all.end());
    };
    for (const auto tensor :
         {&DeviceCall::out, &DeviceCall::lse, &DeviceCall::dq, &DeviceCall::dk, &DeviceCall::dv})
      EXPECT_EQ(second(x.*tensor), second(clean.*tensor)) << name_of(dtype);
  }
}

// What lies behind a sequence, in its last tile of query rows: the next one, which is NaN all over, and behind
// the last one whatever memory holds. Groups that divide a tile's rows, which bulk copies bring, and one that
// does not; each has the heads of the second key-value head behind it too.
TEST(CudaAttention, NothingBehindASequenceReachesItsGradients) {
  for (const std::int64_t group : {1, 2, 4, 8, 3}) {
    for (const auto& [width_N, width_M] : {std::pair<std::int64_t, std::int64_t>{64, 64}, {192, 128}}) {
      SCOPED_TRACE(::testing::Message() << "groups of " << group << ", heads of " << width_N);
      const Case c{2, 37, 2 * group, 2, width_N, width_M, Mask::documents};
      DeviceCall clean(c, DType::bf16, 8), x(c, DType::bf16, 8);
      clean.forward();
      x.forward();
      for (const DeviceTensor* tensor : {&x.q, &x.dout}) {
        const OwnedTensor unset(Shape{c.seq_len, tensor->view().row_size()}, DType::bf16);
        for (std::int64_t t = 0; t < c.seq_len; ++t)
          copy(tensor->view().slice(c.seq_len + t, 1), unset.view().slice(t, 1));
      }
      EXPECT_TRUE(std::isnan(x.dout.values().back()));
      clean.backward();
      x.backward();
      for (const auto tensor : {&DeviceCall::dq, &DeviceCall::dk, &DeviceCall::dv}) {
        std::vector<double> got = (x.*tensor).values(), expected = (clean.*tensor).values();
        got.resize(got.size() / 2);
        expected.resize(expected.size() / 2);
        EXPECT_EQ(got, expected);
      }
    }
  }
}

TEST(CudaAttention, LogSumExpsByHeadAreThoseByToken) {
  const std::int64_t B = 3, H = 5, S = 37;
  DeviceContext ctx;
  const OwnedTensor lse_TH = normal({B * S, H}, DType::f32, "lse");
  const DeviceTensor lse_BHS({B, H, S}, DType::f32, ctx);
  ops::cuda::attention_lse_by_head(lse_BHS, DeviceTensor::of(lse_TH, DType::f32, ctx, 3), ctx);
  const std::vector<double> by_head = lse_BHS.values();
  for (std::int64_t b = 0, i = 0; b < B; ++b)
    for (std::int64_t h = 0; h < H; ++h)
      for (std::int64_t s = 0; s < S; ++s, ++i)
        EXPECT_EQ(by_head[static_cast<std::size_t>(i)], get(lse_TH, (b * S + s) * H + h))
            << b << ' ' << h << ' ' << s;
}

TEST(CudaAttention, RowEntropyEqualsTheCpu) {
  DeviceContext ctx;
  Context host_ctx;
  const OwnedTensor entropy_TH = normal({10, 3}, DType::f64, "entropy", 0.2, 1.0), expected({10}, DType::f64);
  const OwnedTensor kv_begin = ints({0, 0, 8, 3, 9, 5, 6, 0, 1, 9});
  const DeviceTensor entropy_T({10}, DType::f32, ctx);
  ops::attention_row_entropy(expected, entropy_TH, kv_begin, 5, 5, host_ctx);
  ops::cuda::attention_row_entropy(entropy_T, DeviceTensor::of(entropy_TH, DType::f32, ctx),
                                   DeviceTensor::of(kv_begin, ctx), 5, 5, ctx);
  EXPECT_TRUE(all_near(entropy_T.values(), values(expected), 1e-6, 0));
}

}  // namespace
}  // namespace switchyard::test
