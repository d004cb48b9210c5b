#include "cuda/device.h"

#include <gtest/gtest.h>

#include "cuda_support.h"
#include "ops/elementwise.h"

namespace switchyard::test {
namespace {

struct Recorded {
  Recorded() : a(DeviceTensor::of(numbers({1, 2, 3}), ctx)), b(DeviceTensor::of(numbers({10, 20, 30}), ctx)) {
    ctx.stream = ops::cuda::run_stream();
  }
  static OwnedTensor numbers(const std::vector<double>& values) {
    OwnedTensor tensor({3}, DType::f32);
    fill(tensor, values);
    return tensor;
  }
  DeviceContext ctx;
  DeviceTensor a, b;
  ops::cuda::Graph graph;
};

TEST(CudaGraph, DoesWhatWasRecordedOnceALaunch) {
  Recorded r;
  const DeviceTensor other = DeviceTensor::of(Recorded::numbers({0, 0, 0}), r.ctx);
  ops::cuda::add(other, other, other, r.ctx);  // a kernel is loaded when it is first started
  ops::cuda::copy(other, other, r.ctx);
  r.graph.record(r.ctx, [&] {
    ops::cuda::add(r.a, r.a, r.b, r.ctx);
    ops::cuda::copy(r.b, r.a, r.ctx);
  });
  EXPECT_EQ(r.graph.n_nodes(), 2);
  EXPECT_EQ(r.a.values(), (std::vector<double>{1, 2, 3}));
  r.graph.launch(r.ctx);
  EXPECT_EQ(r.a.values(), (std::vector<double>{11, 22, 33}));
  r.graph.launch(r.ctx);
  EXPECT_EQ(r.b.values(), (std::vector<double>{22, 44, 66}));
}

TEST(CudaGraph, NothingMayWaitOrAllocateWhileItIsRecorded) {
  Recorded r;
  EXPECT_THROW(r.graph.record(r.ctx, [&] { HostCopy(r.a.view()); }), RunError);
  EXPECT_THROW(r.graph.record(r.ctx, [&] { allocate_aligned(64, "a test", Device::cuda); }), RunError);
  ops::cuda::add(r.a, r.a, r.b, r.ctx);  // done again, not recorded
  EXPECT_EQ(r.a.values(), (std::vector<double>{11, 22, 33}));
}

}  // namespace
}  // namespace switchyard::test
