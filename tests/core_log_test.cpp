#include "core/log.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "core/error.h"

namespace switchyard {
namespace {

// A name of a file, or a key, may hold anything.
TEST(Error, IsOneLine) {
  const std::string raw("a\nb\rc\td\x1b[31m\x7f\0 \xC3\xA9", 17);
  const std::string line = "a\\nb\\rc\\td\\u001b[31m\\u007f\\u0000 \xC3\xA9";
  EXPECT_EQ(one_line(raw), line);
  EXPECT_EQ(one_line(line), line);
  const auto message_of = [&](auto&& thrower) {
    try {
      thrower();
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message_of([&] { throw_input("{}: no such file", raw); }), line + ": no such file");
  EXPECT_EQ(message_of([&] { throw_run("{}: is full", raw); }), line + ": is full");
}

TEST(Log, MessagesAreOneLine) {
  for (const auto log : {log_info, log_warning, log_error, log_error_of_run}) {
    testing::internal::CaptureStderr();
    log("a\nb");
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("a\\nb"), std::string::npos) << said;
    EXPECT_EQ(said.find('\n'), said.size() - 1) << said;
  }
}

TEST(Log, Durations) {
  EXPECT_EQ(format_duration(0.2), "0s");
  EXPECT_EQ(format_duration(59.4), "59s");
  EXPECT_EQ(format_duration(59.6), "1m 00s");
  EXPECT_EQ(format_duration(185), "3m 05s");
  EXPECT_EQ(format_duration(7620), "2h 07m");
  EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600), "3d 04h");
  EXPECT_EQ(format_duration(-1), "0s");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "?");
}

TEST(Log, Counts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999.4), "999");
  EXPECT_EQ(format_count(12345), "12,345");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(-123456), "-123,456");
}

}  // namespace
}  // namespace switchyard
