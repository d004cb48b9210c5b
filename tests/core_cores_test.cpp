#include "core/cores.h"

#include <gtest/gtest.h>
#include <sched.h>

namespace switchyard {
namespace {

TEST(Cores, AreReadAndWrittenAsByTheKernel) {
  EXPECT_EQ(cores_of_list("0-3,8"), (std::vector<int>{0, 1, 2, 3, 8}));
  EXPECT_EQ(cores_of_list("5"), (std::vector<int>{5}));
  for (const char* none : {"", "a", "1-", "3-1", "1,", "-1", "0-1000000000", "1 2"})
    EXPECT_EQ(cores_of_list(none), std::vector<int>()) << none;
  for (const char* list : {"", "0", "0-1", "0-3,8", "1,3,5-6"})
    EXPECT_EQ(list_of_cores(cores_of_list(list)), list);
}

TEST(Cores, ThatAProcessMayUseFollowItsMask) {
  cpu_set_t before, one;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(before), &before), 0);
  const std::vector<int> cores = usable_cores();
  EXPECT_EQ(static_cast<int>(cores.size()), CPU_COUNT(&before));
  CPU_ZERO(&one);
  CPU_SET(cores.back(), &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(usable_cores(), std::vector<int>{cores.back()});
  EXPECT_GE(unbound_cores(), static_cast<int>(cores.size()));
  EXPECT_EQ(usable_cores(), std::vector<int>{cores.back()}) << "asking changes nothing";
  ::sched_setaffinity(0, sizeof(before), &before);
}

}  // namespace
}  // namespace switchyard
