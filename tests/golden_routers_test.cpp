// Every router against PyTorch, number for number: tests/golden/router_*, one test a directory.
#include <algorithm>

#include "router_golden_support.h"

namespace switchyard::golden {
namespace {

std::vector<std::string> cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(SWITCHYARD_GOLDEN_DIR)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("router_")) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

class GoldenRouter : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenRouter, EqualsThePlainVersion) {
  const RouterCase golden(GetParam());
  RouterComparison(golden).compare_all();
}

INSTANTIATE_TEST_SUITE_P(Routers, GoldenRouter, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param; });

TEST(GoldenRouters, EveryTypeHasACase) {
  std::set<std::string> types;
  for (const std::string& name : cases()) types.insert(RouterCase(name).type());
  for (const config::RouterSchema& schema : router::router_schemas())
    EXPECT_TRUE(types.contains(std::string(schema.type))) << schema.type;
}

}  // namespace
}  // namespace switchyard::golden
