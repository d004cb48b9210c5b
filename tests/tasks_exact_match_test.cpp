// The answers that the regular expressions of lm_eval's gsm8k find; expected values are those of Python's re.
#include "tasks/exact_match.h"

#include <gtest/gtest.h>

namespace switchyard::tasks {
namespace {

TEST(ExactMatch, StrictTakesTheFirstNumberBehindTheMark) {
  EXPECT_EQ(strict_match("So\n#### 42\n#### 43"), "42");
  EXPECT_EQ(strict_match("#### -1,234.50."), "-1,234.50.");
  EXPECT_EQ(strict_match("#### x #### - #### 7"), "7");
  EXPECT_EQ(strict_match("##### 5"), "5");
  EXPECT_EQ(strict_match("####5"), kNoAnswer);
  EXPECT_EQ(strict_match("#### $5"), kNoAnswer);
  EXPECT_EQ(strict_match("#### "), kNoAnswer);
  EXPECT_EQ(strict_match(""), kNoAnswer);
}

TEST(ExactMatch, FlexibleTakesTheLastNumber) {
  EXPECT_EQ(flexible_extract("He pays $1,200 or 7 of them"), "7");
  EXPECT_EQ(flexible_extract("is $1,200."), "$1,200.");
  EXPECT_EQ(flexible_extract("from -3 to -45."), "-45.");
  EXPECT_EQ(flexible_extract("5. Or so"), "5.");
  EXPECT_EQ(flexible_extract("12 ..."), "...");  // so does the regular expression
  EXPECT_EQ(flexible_extract("1 - ."), "1");
  EXPECT_EQ(flexible_extract("--5"), "-5");
  EXPECT_EQ(flexible_extract("none"), kNoAnswer);
}

TEST(ExactMatch, IgnoresCommasDollarsTheWayAndAFullStop) {
  EXPECT_TRUE(is_exact_match("1,200", "He has\n#### 1200"));
  EXPECT_TRUE(is_exact_match("$1,200.", "#### 1,200"));
  EXPECT_TRUE(is_exact_match("-4", "a #### 3 #### -4"));
  EXPECT_FALSE(is_exact_match("42.0", "#### 42"));
  EXPECT_FALSE(is_exact_match("42", "#### 42 apples"));
  EXPECT_TRUE(is_exact_match("7.\n", "#### 7\n"));
  EXPECT_FALSE(is_exact_match(kNoAnswer, "#### 42"));
}

TEST(ExactMatch, ATextEndsBeforeTheNextQuestion) {
  EXPECT_EQ(before_stop(" 4\n\nQuestion: and"), " 4\n\n");
  EXPECT_EQ(before_stop("a<|im_end|>Question:"), "a");
  EXPECT_EQ(before_stop("a</s>b"), "a");
  EXPECT_EQ(before_stop("Question"), "Question");
}

}  // namespace
}  // namespace switchyard::tasks
