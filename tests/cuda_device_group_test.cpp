// A rank alone exchanges with itself by NCCL, as it would with others: started, and recorded and replayed. On a
// real device this runs the library with one card; ranks that differ are the emulator's
// (tests/simt_nccl_test.cpp).
#include "ops/device_group.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

constexpr std::int64_t kNumbers = 1000;

struct Alone {
  Alone() : a(random(1)), b(random(2)) { ctx.stream = ops::cuda::run_stream(); }
  DeviceTensor random(std::uint64_t seed) {
    OwnedTensor tensor({kNumbers}, DType::f32);
    std::vector<double> values;
    for (std::int64_t i = 0; i < kNumbers; ++i)
      values.push_back(static_cast<double>((i * 7919 + static_cast<std::int64_t>(seed)) % 1009) / 31.0);
    fill(tensor, values);
    return DeviceTensor::of(tensor, ctx);
  }

  // What `work` does to a and b, at once and recorded: every bit of `a_after` and `b_after`.
  void expect(const char* what, const std::function<void()>& work, const std::vector<double>& a_after,
              const std::vector<double>& b_after) {
    SCOPED_TRACE(what);
    const Tensor a_was = a.view(), b_was = b.view();
    const OwnedTensor a_before(a_was.shape(), a_was.dtype()), b_before(b_was.shape(), b_was.dtype());
    copy(a_before, a_was);
    copy(b_before, b_was);
    work();
    EXPECT_EQ(a.values(), a_after);
    EXPECT_EQ(b.values(), b_after);
    copy(a_was, a_before);
    copy(b_was, b_before);
    ops::cuda::Graph graph;
    graph.record(ctx, work);
    EXPECT_EQ(b.values(), values(b_before)) << "nothing is done while it is recorded";
    for (int replay = 0; replay < 2; ++replay) {
      copy(a_was, a_before);
      copy(b_was, b_before);
      graph.launch(ctx);
      EXPECT_EQ(a.values(), a_after);
      EXPECT_EQ(b.values(), b_after);
    }
    copy(a_was, a_before);
    copy(b_was, b_before);
  }

  DeviceContext ctx;
  DeviceTensor a, b;
};

TEST(CudaDeviceGroup, ARankAloneExchangesWithItselfToTheBit) {
  if (ops::cuda::device_group_version() <= 0) GTEST_SKIP() << "there is no NCCL here";
  Alone alone;
  const auto group = ops::cuda::make_device_group(ops::cuda::make_device_group_id(), 0, 1);
  const std::vector<double> a = alone.a.values(), b = alone.b.values();
  Context& ctx = alone.ctx;
  alone.expect(
      "all-gather", [&] { group->all_gather(alone.b, alone.a, ctx); }, a, a);
  alone.expect(
      "all-gather where it lies", [&] { group->all_gather(alone.b, alone.b, ctx); }, a, b);
  alone.expect(
      "exchange", [&] { group->exchange(alone.b, alone.a, ctx); }, a, a);
  alone.expect(
      "sum", [&] { group->sum(alone.b, ctx); }, a, b);
  const std::array<FlatRange, 1> parts{FlatRange{0, kNumbers}};
  alone.expect(
      "sum to owners", [&] { group->sum_to_owners(alone.b, parts, ctx); }, a, b);
  using Message = ops::DeviceGroup::Message;
  const std::array<Message, 1> out{Message{0, alone.a.view().raw(), alone.a.view().nbytes()}},
      in{Message{0, alone.b.view().raw(), alone.b.view().nbytes()}};
  alone.expect(
      "a message", [&] { group->move(out, in, ctx); }, a, a);
  const auto part = group->split(3);
  alone.expect(
      "all-gather of a part", [&] { part->all_gather(alone.b, alone.a, ctx); }, a, a);
  EXPECT_NO_THROW(group->check());
}

#ifdef SWITCHYARD_SIMT
std::int64_t now = 0;

// By a clock that goes on by 1000 ns each time it is read, and by what happens between.
TEST(CudaDeviceGroup, TheDeviceKnowsHowLongItIsInExchanges) {
  Alone alone;
  const auto group = ops::cuda::make_device_group(ops::cuda::make_device_group_id(), 0, 1);
  Context& ctx = alone.ctx;
  simt::clock = [] { return now += 1000; };
  const double before = ops::cuda::exchange_seconds();
  // One unit in the last place of a double of some seconds is far below.
  const auto expect = [&](int exchanges) {
    ops::cuda::synchronise(ctx);
    EXPECT_NEAR(ops::cuda::exchange_seconds() - before, exchanges * 1e-6, 1e-12);
  };
  group->all_gather(alone.b, alone.a, ctx);
  expect(1);
  now += 1'000'000'000;
  group->exchange(alone.b, alone.a, ctx);
  group->sum(alone.b, ctx);
  expect(3);
  ops::cuda::Graph graph;
  graph.record(ctx, [&] {
    group->all_gather(alone.b, alone.a, ctx);
    group->all_gather(alone.b, alone.a, ctx);
  });
  expect(3);
  const std::int64_t begun = *ops::cuda::exchanges_begun();
  graph.launch(ctx);
  graph.launch(ctx);
  expect(7);
  EXPECT_EQ(*ops::cuda::exchanges_begun(), begun + 4);
  simt::clock = nullptr;
}
#endif

}  // namespace
}  // namespace switchyard::test
