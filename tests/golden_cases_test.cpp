// No case of tests/golden is forgotten: each is in the list of its golden_<layout>_test.cpp, or its config.json
// is refused.
#include "core/error.h"
#include "golden_support.h"

namespace switchyard::golden {
namespace {

std::set<std::string> compared_cases() {
  std::set<std::string> names;
  const ::testing::UnitTest& all = *::testing::UnitTest::GetInstance();
  for (int s = 0; s < all.total_test_suite_count(); ++s) {
    const ::testing::TestSuite& suite = *all.GetTestSuite(s);
    for (int t = 0; t < suite.total_test_count(); ++t) {
      const std::string name = suite.GetTestInfo(t)->name();
      if (name.find('/') != std::string::npos) names.insert(name.substr(name.find('/') + 1));
    }
  }
  return names;
}

TEST(GoldenCases, EveryModelThatCanBeBuiltIsCompared) {
  const std::set<std::string> compared = compared_cases();
  for (const auto& entry : std::filesystem::directory_iterator(SWITCHYARD_GOLDEN_DIR)) {
    if (!entry.is_directory()) continue;
    const std::string name = entry.path().filename().string();
    if (compared.contains(name) || name.starts_with("router_")) continue;  // router_: a router alone
    EXPECT_THROW(GoldenCase(name).model(), InputError) << name << " is in no list of cases";
  }
  EXPECT_GT(compared.size(), 0u);
}

}  // namespace
}  // namespace switchyard::golden
