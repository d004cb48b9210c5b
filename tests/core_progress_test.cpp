#include "core/progress.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace switchyard {
namespace {

std::vector<std::string> hooked;

TEST(Progress, IsTheNewestMark) {
  const std::int64_t before = progress().marks;
  mark_step(120);
  mark("backward of layer", 7);
  EXPECT_EQ(describe(progress()), "step 120, backward of layer 7");
  EXPECT_FALSE(progress().waiting);
  mark_waiting("exchange", 3);
  EXPECT_TRUE(progress().waiting);
  mark("optimizer");
  EXPECT_EQ(describe(progress()), "step 120, optimizer");
  EXPECT_FALSE(progress().waiting);
  EXPECT_EQ(progress().marks, before + 3) << "a step is no mark of its own";
  mark_step(0);
  EXPECT_EQ(describe(progress()), "before the first step, optimizer");
}

TEST(Progress, TheHookSeesEachMark) {
  hooked.clear();
  progress_hook = [](const Progress& at) { hooked.push_back(describe(at)); };
  mark_step(2);
  mark("forward of layer", 0);
  mark_waiting("exchange", 1);
  progress_hook = nullptr;
  mark("optimizer");
  mark_step(0);
  EXPECT_EQ(hooked, (std::vector<std::string>{"step 2, forward of layer 0", "step 2, exchange 1"}));
}

TEST(Progress, IsKeptWhereAnotherCanSeeIt) {
  static ProgressCell cell;  // it stays in use
  keep_progress_in(cell);
  mark_step(4);
  mark("checkpoint", 2);
  EXPECT_EQ(describe(cell.read()), "step 4, checkpoint 2");
  EXPECT_EQ(describe(progress()), "step 4, checkpoint 2");
  mark_step(0);
}

}  // namespace
}  // namespace switchyard
