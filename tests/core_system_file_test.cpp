#include "core/system_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <string>

namespace switchyard {
namespace {

std::string said_while_opening(const char* path, int times) {
  testing::internal::CaptureStderr();
  for (int i = 0; i < times; ++i) EXPECT_FALSE(open_system_file(path).is_open());
  return testing::internal::GetCapturedStderr();
}

TEST(SystemFile, WhatIsNotThereIsNoWarning) {
  EXPECT_TRUE(open_system_file("/proc/self/statm").is_open());
  EXPECT_EQ(said_while_opening("/proc/no_such_file", 1), "");
}

TEST(SystemFile, AFailureIsToldOnce) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  testing::internal::CaptureStderr();  // takes descriptors: before there are none
  const rlimit none{0, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(open_system_file("/proc/meminfo").is_open());
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(
      said,
      "warning: /proc/meminfo: cannot be read: Too many open files; this process goes on without what such "
      "files say of memory and processors\n");
}

}  // namespace
}  // namespace switchyard
