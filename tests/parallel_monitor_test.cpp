// What the monitor makes of what ranks say. Hangs are judgement's; processes are
// tests/cli/ranks_launch_test.py's.
#include "parallel/monitor.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace switchyard::test {
namespace {

using parallel::Line;
using parallel::Monitor;
using parallel::Say;
using parallel::Word;
using parallel::word_of;

// Three ranks, of which the test speaks for each.
class MonitorOfThree : public ::testing::Test {
 protected:
  static constexpr int kRanks = 3;
  MonitorOfThree() : monitor_(kRanks) {
    for (int rank = 0; rank < kRanks; ++rank) {
      int ends[2];
      SY_CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "no sockets");
      monitor_.add(rank, Line(ends[0]), {"b", 100 + rank}, nullptr, true);
      lines_.emplace_back(ends[1]);
      say(rank, word_of(Progress{.marks = 5, .step = 120, .place = "backward of layer", .index = 7}));
    }
  }
  void say(int rank, const Word& word) { lines_[static_cast<std::size_t>(rank)].send(word); }
  void alarm(int rank, const std::string& text, int exit_code) { say(rank, {Say::alarm, {exit_code}, text}); }
  // What it prints until the run is over.
  std::string line() {
    ::testing::internal::CaptureStderr();
    // A guard against a hang, not a measurement: alarms are judged within 2 s.
    for (int round = 0; round < 1000 && !monitor_.is_over(); ++round) monitor_.watch(10);
    return ::testing::internal::GetCapturedStderr();
  }
  // The exit code that a rank is told.
  int told(int rank) {
    for (Word word; lines_[static_cast<std::size_t>(rank)].receive_one(word, 10);)
      if (word.say == Say::over) return static_cast<int>(word.number[0]);
    return -1;
  }
  Monitor monitor_;
  std::vector<Line> lines_;
};

TEST_F(MonitorOfThree, OfSeveralAlarmsTheLowestRanksIsPrintedOnce) {
  alarm(2, "the third", 1);
  alarm(1, "the second", 1);
  EXPECT_EQ(line(), "error: rank 1: the second (step 120, backward of layer 7)\n");
  alarm(0, "the first", 2);
  EXPECT_EQ(line(), "");
  for (int rank = 0; rank < kRanks; ++rank) EXPECT_EQ(told(rank), 1);
  EXPECT_EQ(monitor_.exit_code(), 1);
}

TEST_F(MonitorOfThree, ADeathIsWhatAnAlarmBesideItComesFrom) {
  alarm(0, "moving bytes failed", 1);
  lines_[2].close();
  EXPECT_EQ(
      line(),
      "error: rank 2 (host b, process 102) ended without a word, last heard of during step 120, backward of "
      "layer 7\n");
}

TEST_F(MonitorOfThree, ARankThatHasSaidWhyMayClose) {
  alarm(1, "bad input", 2);
  lines_[1].close();
  EXPECT_EQ(line(), "error: rank 1: bad input (step 120, backward of layer 7)\n");
  EXPECT_EQ(told(0), 2);
}

TEST_F(MonitorOfThree, WhatRanksHaveToldEachOtherNamesTheRankOnce) {
  alarm(0, "rank 2: no space left at step 120", 2);
  EXPECT_EQ(line(), "error: rank 2: no space left at step 120\n");
}

TEST_F(MonitorOfThree, InputThatAllRanksReadIsSaidAsByAProcessAlone) {
  for (int rank = 2; rank >= 0; --rank) {
    say(rank, word_of(Progress{}));
    alarm(rank, "train.steps: is -1", 2);
  }
  EXPECT_EQ(line(), "error: train.steps: is -1\n");
}

TEST_F(MonitorOfThree, WhoeverWasTakenForDeadHasNothingToSay) {
  say(1, {Say::spoken, {}, ""});
  lines_[1].close();
  lines_[2].close();
  EXPECT_EQ(line(), "");
  EXPECT_EQ(monitor_.exit_code(), 1);
}

TEST_F(MonitorOfThree, TheLineOfADeathSaysWhereTheRunGoesOn) {
  say(0, {Say::note, {}, "the last checkpoint is x"});
  say(1, word_of(Progress{}));
  monitor_.watch(10);
  lines_[1].close();
  EXPECT_EQ(
      line(),
      "error: rank 1 (host b, process 101) ended without a word, last heard of before the first step, start; "
      "the last checkpoint is x\n");
}

TEST_F(MonitorOfThree, ItEndsWhenAllHaveSaidGoodbye) {
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_FALSE(monitor_.all_gone());
    say(rank, {Say::goodbye, {143}, ""});
    monitor_.watch(10);
    lines_[static_cast<std::size_t>(rank)].close();
    monitor_.watch(10);
  }
  EXPECT_TRUE(monitor_.all_gone());
  EXPECT_FALSE(monitor_.is_over());
  EXPECT_EQ(monitor_.promised_exit_code(2), 143);
}

TEST_F(MonitorOfThree, PatienceIsWhatTheyAreTold) {
  say(0, {Say::patience, {20}, ""});  // milliseconds; none has done its first step, so four times that
  const std::string printed = line();
  EXPECT_NE(printed.find("error: rank "), std::string::npos) << printed;
  EXPECT_EQ(monitor_.exit_code(), 1);
}

}  // namespace
}  // namespace switchyard::test
