#include "core/polling.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace switchyard {
namespace {

TEST(Polling, AsksUntilItIsSo) {
  int asked = 0;
  poll([&] { return ++asked == 1000; }, [] {});
  EXPECT_EQ(asked, 1000);
}

TEST(Polling, WhatIsSoAlreadyIsAskedOnce) {
  int asked = 0, checked = 0;
  poll([&] { return ++asked > 0; }, [&] { ++checked; });
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(checked, 0);
}

TEST(Polling, ChecksAgainAndAgainMeanwhile) {
  int asked = 0, checked = 0;
  poll(
      [&] {
        ++asked;
        return checked == 3;
      },
      [&] { ++checked; });
  EXPECT_EQ(checked, 3);
  EXPECT_GT(asked, checked) << "a check is for every ten milliseconds, a question for each at the latest";
}

TEST(Polling, WhatACheckThrowsEndsIt) {
  int checked = 0;
  const auto check = [&] {
    if (++checked == 2) throw std::runtime_error("over");
  };
  EXPECT_THROW(poll([] { return false; }, check), std::runtime_error);
  EXPECT_EQ(checked, 2);
}

}  // namespace
}  // namespace switchyard
