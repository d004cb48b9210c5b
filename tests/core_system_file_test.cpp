#include "core/system_file.h"

#include <gtest/gtest.h>

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

// Not by a want of descriptors: the sanitizers' own checks open some.
TEST(SystemFile, AFailureIsToldOnce) {
  const std::string path = "/tmp/" + std::string(300, 'x');  // longer than a name may be
  EXPECT_EQ(
      said_while_opening(path.c_str(), 3),
      "warning: " + path +
          ": cannot be read: File name too long; this process goes on without what such files say of memory "
          "and processors\n");
}

}  // namespace
}  // namespace switchyard
