// All of cuda_test needs a device. Without one it ends in one line that says why; CTest takes it for a skipped
// test by the word in brackets.
#include "cuda/device.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/progress.h"
#include "cuda_support.h"
#include "ops/device.h"
#include "ops/elementwise.h"
#include "temp_dir.h"

#ifdef SWITCHYARD_SIMT
#include "hang.h"
#endif

namespace switchyard::test {
namespace {

class NeedsDevice : public ::testing::Environment {
  void SetUp() override {
    if (const std::string reason = ops::cuda::unavailable_reason(); !reason.empty())
      GTEST_SKIP() << "[  SKIPPED ] " << reason;
  }
};
const auto* const needs_device = ::testing::AddGlobalTestEnvironment(new NeedsDevice);

TEST(CudaDevice, HasANameAndMemory) {
  EXPECT_NE(ops::cuda::description().find(" GiB"), std::string::npos) << ops::cuda::description();
}

TEST(CudaDevice, IsListedBeforeItIsChosen) {
  const ops::DeviceInventory all = ops::cuda::inventory();
  EXPECT_EQ(all.unusable, "");
  ASSERT_GE(all.device.size(), 1u);
  EXPECT_GE(all.driver, 12000);
  for (const ops::DeviceFacts& device : all.device) {
    EXPECT_EQ(device.unusable, "");
    EXPECT_EQ(device.uuid.size(), 40u) << device.uuid;
    EXPECT_EQ(device.uuid.substr(0, 4), "GPU-");
    EXPECT_EQ(device.pci.size(), 12u) << device.pci;
    EXPECT_GE(device.capability, "8.0");
  }
  ops::cuda::use_device(0);
  EXPECT_NE(ops::cuda::description().find(all.device[0].name), std::string::npos);
}

// What waits for the device does so in another way once there is a check, and gives the same.
struct WaitCheck : ::testing::Test {
  ~WaitCheck() override { ops::cuda::set_wait_check({}); }
};

TEST_F(WaitCheck, ThePolledDeviceGivesWhatTheBlockedOneGives) {
  DeviceContext ctx;
  ctx.stream = ops::cuda::run_stream();
  for (const bool polls : {false, true}) {
    if (polls) ops::cuda::set_wait_check([] {});
    const OwnedTensor host(Shape{3}, DType::f32), back(Shape{3}, DType::f32);
    fill(host, {1, 2, 3});
    const DeviceTensor there(Shape{3}, DType::f32, ctx);
    copy(there, host);
    copy(back, there);
    EXPECT_EQ(values(back), (std::vector<double>{1, 2, 3}));
    fill_bytes(there.view().raw(), 0, there.view().nbytes(), Device::cuda);
    EXPECT_EQ(there.values(), (std::vector<double>{0, 0, 0}));
    ops::cuda::upload(there, host, ctx);
    ops::cuda::synchronise(ctx);
    EXPECT_EQ(there.values(), (std::vector<double>{1, 2, 3}));
  }
}

TEST(CudaDevice, KnowsWhichKernelsAreStartedLate) {
  static const char early = 0, late = 0, later = 0;  // addresses that no kernel has
  ops::cuda::note_launch("early", &early);
  ops::cuda::expect_no_new_kernels();
  ops::cuda::note_launch("early", &early);
  EXPECT_EQ(ops::cuda::late_kernels().count, 0);
  for (int time = 0; time < 2; ++time) ops::cuda::note_launch("late", &late);
  ops::cuda::note_launch("later", &later);
  EXPECT_EQ(ops::cuda::late_kernels().count, 2);
  EXPECT_EQ(ops::cuda::late_kernels().first, "late");
  ops::cuda::expect_no_new_kernels();
  EXPECT_EQ(ops::cuda::late_kernels().count, 0);
}

// An error that somebody has handled, or that is an exception already, is not the next kernel's.
TEST(CudaDevice, ALaunchIsNotChargedWithAnEarlierFailure) {
  DeviceContext ctx;
  const OwnedTensor ones(Shape{3}, DType::f32);
  fill(ones, {1, 1, 1});
  const DeviceTensor x = DeviceTensor::of(ones, DType::f32, ctx), one = DeviceTensor::of(ones, DType::f32, ctx);
  const std::array<std::function<void()>, 3> failures = {
      [] { ops::cuda::use_device(1000); },                                      // SY_CUDA
      [] { allocate_aligned(std::int64_t{1} << 50, "a test", Device::cuda); },  // no memory
      [&] {
        ops::cuda::Graph graph;
        graph.record(ctx, [&] { HostCopy(x.view()); });
      }};
  ctx.stream = ops::cuda::run_stream();
  double expected = 1;
  for (const auto& failure : failures) {
    EXPECT_THROW(failure(), RunError);
    EXPECT_NO_THROW(ops::cuda::add(x, x, one, ctx));
    ++expected;
    EXPECT_EQ(x.values(), (std::vector<double>(3, expected)));
  }
}

#ifdef SWITCHYARD_SIMT
// The run's stream waits for a rank that is gone.
struct HungDevice : WaitCheck {
  HungDevice() {
    ctx.stream = ops::cuda::run_stream();
    static const std::int64_t none = 0;
    count_exchanges_in(&none);  // in place of those of groups that other tests have made
  }
  ~HungDevice() override { let_go(); }
  void hang() { simt::hang(static_cast<simt::Stream*>(ctx.stream), true); }
  void let_go() { simt::hang(static_cast<simt::Stream*>(ctx.stream), false); }

  DeviceContext ctx;
  const OwnedTensor host{Shape{3}, DType::f32};
  const DeviceTensor there{Shape{3}, DType::f32, ctx};
};

TEST_F(HungDevice, NobodyBlocksOnIt) {
  int checks = 0;
  ops::cuda::set_wait_check([&] {
    if (++checks == 3) throw std::runtime_error("the run is over");
  });
  hang();
  const std::array<std::function<void()>, 4> ways = {
      [&] { ops::cuda::synchronise(ctx); }, [&] { copy(host, there); }, [&] { copy(there, host); },
      [&] { fill_bytes(there.view().raw(), 0, there.view().nbytes(), Device::cuda); }};
  for (const auto& way : ways) {
    checks = 0;
    EXPECT_EQ(message_of<std::runtime_error>(way), "the run is over");
    EXPECT_EQ(checks, 3);
  }
}

TEST_F(HungDevice, WorkThatEndsIsWaitedFor) {
  int checks = 0;
  ops::cuda::set_wait_check([&] {
    if (++checks == 3) let_go();
  });
  hang();
  copy(host, there);
  EXPECT_EQ(checks, 3);
}

TEST_F(HungDevice, WhoWaitsForItIsNotTheOneThatHangs) {
  mark("backward of layer", 3);
  Progress at;
  ops::cuda::set_wait_check([&] {
    at = progress();
    let_go();
  });
  ops::cuda::synchronise(ctx);
  EXPECT_FALSE(at.waiting) << "there is nothing to wait for";
  hang();
  ops::cuda::synchronise(ctx);
  EXPECT_TRUE(at.waiting);
  EXPECT_STREQ(at.place, "backward of layer");
  EXPECT_FALSE(progress().waiting);
  EXPECT_EQ(progress().index, 3);
}

TEST_F(HungDevice, ARankAloneBlocks) {
  hang();
  EXPECT_EQ(message_of<std::runtime_error>([&] { ops::cuda::synchronise(ctx); }),
            "emulator: the host blocks on a stream that hangs");
}
#endif

}  // namespace
}  // namespace switchyard::test
