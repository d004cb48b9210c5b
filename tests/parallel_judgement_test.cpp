// Who is to blame for a run that hangs.
#include "parallel/judgement.h"

#include <gtest/gtest.h>

#include <vector>

namespace switchyard::test {
namespace {

using parallel::Culprit;
using parallel::find_culprit;
using parallel::RankSeen;

RankSeen working(std::int64_t marks, double since_mark) {
  return {.progress = {.marks = marks, .step = 5, .place = "forward of layer", .index = 1, .waiting = false},
          .silence = 0.3,
          .since_mark = since_mark,
          .longest_gap = 0.5,
          .first_step_done = true};
}
RankSeen waiting(std::int64_t marks, std::int64_t exchange, double since_mark) {
  RankSeen seen = working(marks, since_mark);
  seen.progress.place = "exchange";
  seen.progress.index = exchange;
  seen.progress.waiting = true;
  return seen;
}

TEST(Judgement, ARankAtWorkWithoutAMarkIsStuckAndThoseThatWaitForItAreNot) {
  const std::vector<RankSeen> seen_R = {waiting(900, 30, 50), working(1000, 46), waiting(900, 30, 50)};
  const auto culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->rank, 1);
  EXPECT_EQ(culprit->why, Culprit::Why::stuck);
  EXPECT_EQ(culprit->seconds, 46);
}

TEST(Judgement, WhoeverWaitsForOneThatSetsMarksIsPatient) {
  EXPECT_FALSE(find_culprit(std::vector{waiting(900, 30, 500), working(1000, 1)}, 45));
  EXPECT_FALSE(find_culprit(std::vector{waiting(900, 30, 500), waiting(900, 30, 44)}, 45));
}

TEST(Judgement, OfRanksThatAllWaitTheOneBehindIsNamed) {
  // By the exchange that it waits in, then by its marks.
  auto culprit =
      find_culprit(std::vector{waiting(900, 31, 50), waiting(1900, 30, 50), waiting(800, 31, 50)}, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->rank, 1);
  EXPECT_EQ(culprit->why, Culprit::Why::in_vain);
  culprit = find_culprit(std::vector{waiting(900, 31, 50), waiting(901, 31, 50), waiting(800, 31, 50)}, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->rank, 2);
}

TEST(Judgement, OfRanksThatAllWaitForTheirDevicesInOnePlaceNoneIsBehind) {
  // How many marks each has set on its way there says nothing: the first rank does more than others.
  std::vector<RankSeen> seen_R = {waiting(900, -1, 50), waiting(800, -1, 50)};
  auto culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->why, Culprit::Why::alike);
  seen_R[0].progress.place = "optimizer";
  culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->why, Culprit::Why::in_vain) << "one has come further";
  EXPECT_EQ(culprit->rank, 1);
}

TEST(Judgement, OfDevicesTheOneThatHasNotComeToTheExchangeIsNamed) {
  std::vector<RankSeen> seen_R = {waiting(900, 37, 50), waiting(800, 36, 50), waiting(700, 37, 50)};
  for (RankSeen& seen : seen_R) seen.progress.place = kExchangeOfDevices;
  auto culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->rank, 1);
  EXPECT_EQ(culprit->why, Culprit::Why::in_vain);
  // A host that waits for that of a rank whose device hangs: its exchanges have other numbers.
  seen_R[1].progress.index = 37;
  seen_R[2].progress.place = "exchange", seen_R[2].progress.index = 12;
  culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit);
  EXPECT_NE(culprit->rank, 2);
  seen_R[2] = seen_R[0];
  culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->why, Culprit::Why::alike);
}

TEST(Judgement, OfSeveralThatAreStuckTheOneWithTheFewestMarksIsNamed) {
  const auto culprit = find_culprit(std::vector{working(900, 50), working(700, 47), working(800, 60)}, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->rank, 1);
}

TEST(Judgement, ARankWithoutAHeartbeatComesFirst) {
  std::vector<RankSeen> seen_R = {working(900, 50), waiting(900, 30, 16), working(950, 3)};
  seen_R[1].silence = 15.5;
  auto culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit);
  EXPECT_EQ(culprit->rank, 1);
  EXPECT_EQ(culprit->why, Culprit::Why::silent);
  seen_R = {working(900, 1), working(900, 1)};
  seen_R[1].silence = 14;
  EXPECT_FALSE(find_culprit(seen_R, 45));
  EXPECT_TRUE(find_culprit(seen_R, 13)) << "a smaller patience is that of silence, too";
}

TEST(Judgement, RanksThatHaveEndedAreNotAsked) {
  std::vector<RankSeen> seen_R = {working(900, 500), waiting(900, 30, 50)};
  seen_R[0].ended = true;
  seen_R[0].silence = 500;
  const auto culprit = find_culprit(seen_R, 45);
  ASSERT_TRUE(culprit) << "the other waits for it in vain";
  EXPECT_EQ(culprit->rank, 1);
  seen_R[1].ended = true;
  EXPECT_FALSE(find_culprit(seen_R, 45));
}

TEST(Judgement, PatienceGrowsWithTheWork) {
  std::vector<RankSeen> seen_R = {working(900, 100), working(900, 100)};
  EXPECT_TRUE(find_culprit(seen_R, 45));
  seen_R[1].longest_gap = 21;  // five times that is 105
  EXPECT_FALSE(find_culprit(seen_R, 45));
  seen_R[0].since_mark = 106;
  EXPECT_TRUE(find_culprit(seen_R, 45));
}

TEST(Judgement, PatienceIsFourfoldBeforeTheFirstStepIsDone) {
  std::vector<RankSeen> seen_R = {working(900, 100), working(900, 100)};
  seen_R[0].first_step_done = false;
  EXPECT_FALSE(find_culprit(seen_R, 45));
  seen_R[0].since_mark = 181;
  EXPECT_TRUE(find_culprit(seen_R, 45));
}

TEST(Judgement, PatienceOfNothingIsForEver) {
  std::vector<RankSeen> seen_R = {working(900, 1e6), waiting(900, 3, 1e6)};
  seen_R[1].silence = 1e6;
  EXPECT_FALSE(find_culprit(seen_R, 0));
}

}  // namespace
}  // namespace switchyard::test
