// All of cuda_test needs a device. Without one it ends in one line that says why; CTest takes it for a skipped
// test by the word in brackets.
#include "cuda/device.h"

#include <gtest/gtest.h>

#include <string>

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

}  // namespace
}  // namespace switchyard::test
