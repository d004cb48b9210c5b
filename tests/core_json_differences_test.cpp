#include "core/json_differences.h"

#include <gtest/gtest.h>

namespace switchyard {

namespace {

std::vector<std::string> paths_of(const char* a, const char* b) {
  return differing_paths(parse_json(a, "a"), parse_json(b, "b"));
}

}  // namespace

TEST(JsonDifferences, EveryPathIsNamedOnce) {
  using Paths = std::vector<std::string>;
  EXPECT_EQ(paths_of(R"({"a": {"b": [1, 2]}, "c": 1})", R"({"a": {"b": [1, 2]}, "c": 1.0})"), Paths{});
  EXPECT_EQ(paths_of(R"({"a": {"b": 1, "c": 2}})", R"({"a": {"b": 3, "d": 2}})"), (Paths{"a.b", "a.c", "a.d"}));
  EXPECT_EQ(paths_of(R"({"a": [{"p": 1}, 2]})", R"({"a": [{"p": 2}]})"), (Paths{"a.0.p", "a.1"}));
  EXPECT_EQ(paths_of(R"({"a": [1]})", R"({"a": [1, 2, 3]})"), (Paths{"a.-", "a.-"}));
  EXPECT_EQ(paths_of(R"({"a": [1]})", R"({"a": {"b": 1}})"), Paths{"a"});
}

TEST(JsonDifferences, WhatStandsAtAPathIsFound) {
  const Json json = parse_json(R"({"a": [{"p": 1}, 2], "b": {"c": null}})", "json");
  EXPECT_EQ(find_path(json, "a.0.p")->integer(), 1);
  EXPECT_TRUE(find_path(json, "b.c")->is_null());
  EXPECT_EQ(find_path(json, ""), &json);
  for (const char* path : {"a.2", "a.-", "a.0.q", "c", "b.c.d", "a.1x"})
    EXPECT_EQ(find_path(json, path), nullptr) << path;
}

}  // namespace switchyard
