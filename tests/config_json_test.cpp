#include "config/json.h"

#include <gtest/gtest.h>

#include "config_samples.h"

namespace switchyard::config {
namespace {

std::string parse_error(const std::string& text) {
  return test::message_of<InputError>([&] { parse_json(text, "f.json"); });
}

TEST(ConfigJson, KeepsOrderAndNumbers) {
  const Json json = parse_json(R"({"b": 18446744073709551615, "a": [-3, 2.5, true, null, "x"]})", "f.json");
  const auto& object = *json.get<Json::Object>();
  ASSERT_EQ(object.size(), 2u);
  EXPECT_EQ(object[0].key, "b");
  EXPECT_EQ(*object[0].value.get<std::uint64_t>(), 18446744073709551615u);
  const auto& array = *object[1].value.get<Json::Array>();
  EXPECT_EQ(*array[0].get<std::int64_t>(), -3);
  EXPECT_EQ(*array[1].get<double>(), 2.5);
  EXPECT_EQ(*array[2].get<bool>(), true);
  EXPECT_TRUE(array[3].is_null());
  EXPECT_EQ(*array[4].get<std::string>(), "x");
}

TEST(ConfigJson, ASyntaxErrorNamesFileLineAndColumn) {
  // The second line's fifth byte is where a value should begin.
  EXPECT_TRUE(parse_error("{\"a\":\n    }").starts_with("f.json: line 2, column 5: "))
      << parse_error("{\"a\":\n    }");
  EXPECT_TRUE(parse_error("?").starts_with("f.json: line 1, column 1: "));
  EXPECT_CONTAINS(parse_error(""), "f.json: is empty");
  EXPECT_CONTAINS(parse_error("version https://git-lfs.github.com/spec/v1\n"), "f.json: is a Git LFS pointer");
  EXPECT_TRUE(parse_error("{}\n{}").starts_with("f.json: line 2, column 1: "));
}

TEST(ConfigJson, RefusesWhatIsNotPlainJson) {
  EXPECT_CONTAINS(parse_error("{ // note\n}"), "JSON has no comments");
  EXPECT_CONTAINS(parse_error("[1e999]"), "line 1, column 6: not JSON: number overflow");
  EXPECT_CONTAINS(parse_error("[NaN]"), "not JSON");
  EXPECT_CONTAINS(parse_error("[1,]"), "not JSON");
  EXPECT_CONTAINS(parse_error("[\"\xff\"]"), "not JSON");
}

TEST(ConfigJson, RefusesAKeyGivenTwiceAndNamesItsPath) {
  EXPECT_EQ(parse_error(R"({"x": [0, {"lr": 1, "lr": 1}]})"),
            "f.json: x.1.lr: this key is given twice; remove one");
  EXPECT_NO_THROW(parse_json(R"([{"lr": 1}, {"lr": 2, "x": {"lr": 3}}])", "f.json"));
}

TEST(ConfigJson, RefusesDeepNesting) {
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "f.json"));
  EXPECT_CONTAINS(parse_error(std::string(100000, '[')), "f.json: nested deeper than 64 levels");
}

TEST(ConfigJson, TextAndBack) {
  const std::string text = "{\n  \"a\": 0.1,\n  \"b\": [\n    1,\n    \"\xc3\xa4\"\n  ],\n  \"c\": {}\n}\n";
  EXPECT_EQ(to_text(parse_json(text, "f.json")), text);
}

TEST(ConfigJson, DescriptionsAreShortAndOfOneLine) {
  EXPECT_EQ(describe(parse_json("[[1]]", "f.json")), "an array");
  EXPECT_EQ(describe(parse_json("1.50", "f.json")), "1.5");
  EXPECT_EQ(describe(Json("a\nb")), "\"a\\nb\"");
  EXPECT_LT(describe(Json(std::string(10000, 'x'))).size(), 100u);
  EXPECT_EQ(printable("a\nb"), "a?b");
}

}  // namespace
}  // namespace switchyard::config
