// What commands take on the command line. This executable links no trainer.
#include "commands/options.h"

#include <gtest/gtest.h>

#include <string>

#include "commands/commands.h"

namespace switchyard::commands {
namespace {

// What a validator says of a value, and what it makes of it.
std::string refusal(const CLI::Validator& validator, std::string text) { return validator(text); }
std::string rewritten(const CLI::Validator& validator, std::string text) {
  EXPECT_EQ(validator(text), "");
  return text;
}

TEST(Commands, WithoutATrainerDescribeThemselves) {
  for (const Command* command : {&kInspect, &kExport, &kTokenize}) {
    CLI::App app;
    EXPECT_TRUE(command->describe(app)) << command->name;
    EXPECT_GT(app.get_options().size(), 1u) << command->name;
    EXPECT_FALSE(app.get_footer().empty()) << command->name;
  }
}

TEST(Options, WholeNumbersMayBeWrittenAsPowers) {
  EXPECT_EQ(rewritten(whole_number(0), "12"), "12");
  EXPECT_EQ(rewritten(whole_number(0), "1e3"), "1000");
  EXPECT_EQ(rewritten(whole_number(0), "2.5e1"), "25");
  EXPECT_EQ(rewritten(whole_number(0, "", ~std::uint64_t{0}), "18446744073709551615"), "18446744073709551615");
  EXPECT_EQ(refusal(whole_number(1), "0"), "is 0, expected a whole number of 1 or more");
  EXPECT_EQ(refusal(whole_number(0, "0: all", 9), "10"), "is 10, expected a whole number from 0 to 9 (0: all)");
  for (const char* wrong : {"", "1.5", "-1", "1e99", "nan", "inf", "three", "1 ", "1e3x"})
    EXPECT_NE(refusal(whole_number(0), wrong), "") << wrong;
}

TEST(Options, NumbersLieInTheirRange) {
  const CLI::Validator share = number_in({0, 1, true}, "above 0 and up to 1");
  for (const char* good : {"1", "0.5", "1e-9"}) EXPECT_EQ(refusal(share, good), "") << good;
  for (const char* wrong : {"0", "-1", "1.01", "nan", "inf", "", "half", "0.5x"})
    EXPECT_EQ(refusal(share, wrong), "is " + std::string(wrong) + ", expected above 0 and up to 1");
  EXPECT_EQ(refusal(number_in({0, 8, false, true}, "below 8"), "0"), "");
  EXPECT_EQ(refusal(number_in({0, 8, false, true}, "below 8"), "8"), "is 8, expected below 8");
}

TEST(Options, TypesMayBeWrittenShort) {
  EXPECT_EQ(rewritten(type_name({"float32", "bfloat16"}), "bf16"), "bfloat16");
  EXPECT_EQ(refusal(type_name({"float32", "bfloat16"}), "fp8"), "is fp8, expected one of: float32, bfloat16");
}

}  // namespace
}  // namespace switchyard::commands
