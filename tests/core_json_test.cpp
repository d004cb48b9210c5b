#include "core/json.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "temp_dir.h"

namespace switchyard {
namespace {

std::string parse_error(const std::string& text) {
  return test::message_of<InputError>([&] { parse_json(text, "f.json"); });
}

TEST(Json, KeepsOrderAndNumbers) {
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

TEST(Json, ASyntaxErrorNamesFileLineAndColumn) {
  // The second line's fifth byte is where a value should begin.
  EXPECT_TRUE(parse_error("{\"a\":\n    }").starts_with("f.json: line 2, column 5: "))
      << parse_error("{\"a\":\n    }");
  EXPECT_TRUE(parse_error("?").starts_with("f.json: line 1, column 1: "));
  EXPECT_CONTAINS(parse_error(""), "f.json: is empty");
  EXPECT_CONTAINS(parse_error("version https://git-lfs.github.com/spec/v1\n"), "f.json: is a Git LFS pointer");
  EXPECT_TRUE(parse_error("{}\n{}").starts_with("f.json: line 2, column 1: "));
}

TEST(Json, RefusesWhatIsNotPlainJson) {
  EXPECT_CONTAINS(parse_error("{ // note\n}"), "JSON has no comments");
  EXPECT_CONTAINS(parse_error("[1e999]"), "line 1, column 6: not JSON: number overflow");
  EXPECT_CONTAINS(parse_error("[NaN]"), "not JSON");
  EXPECT_CONTAINS(parse_error("[1,]"), "not JSON");
  EXPECT_CONTAINS(parse_error("[\"\xff\"]"), "not JSON");
}

TEST(Json, RefusesAKeyGivenTwiceAndNamesItsPath) {
  EXPECT_EQ(parse_error(R"({"x": [0, {"lr": 1, "lr": 1}]})"),
            "f.json: x.1.lr: this key is given twice; remove one");
  EXPECT_NO_THROW(parse_json(R"([{"lr": 1}, {"lr": 2, "x": {"lr": 3}}])", "f.json"));
}

TEST(Json, RefusesDeepNesting) {
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "f.json"));
  EXPECT_CONTAINS(parse_error(std::string(100000, '[')), "f.json: nested deeper than 64 levels");
}

TEST(Json, FindsAKeyGivenTwiceAmongVeryMany) {
  std::string members;
  for (int i = 0; i < 1000; ++i)
    members += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":" + std::to_string(i);
  EXPECT_EQ(parse_json("{" + members + "}", "f.json").size(), 1000u);
  EXPECT_EQ(parse_error("{" + members + ",\"7\":0}"), "f.json: 7: this key is given twice; remove one");
  const auto lenient = try_parse_json("{" + members + ",\"7\":0,\"8\":1}");
  ASSERT_TRUE(lenient);
  EXPECT_EQ(lenient->size(), 1000u);
  EXPECT_EQ((*lenient)["7"], 0);
  EXPECT_EQ((*lenient)["8"], 1);
  EXPECT_EQ((*lenient)["9"], 9);
}

TEST(Json, WhatAProgramWroteIsDamagedWhereItIsWrong) {
  const auto error = [](const std::string& text) {
    return test::message_of<InputError>([&] { parse_stored_json(text, "f.json"); });
  };
  EXPECT_TRUE(
      error("[1,]").starts_with("f.json: is not JSON: [json.exception.parse_error.101] parse error at "))
      << error("[1,]");
  EXPECT_TRUE(error("[1,]").ends_with("; the file is damaged"));
  EXPECT_EQ(error(R"({"a": {"b": 1, "b": 2}})"),
            "f.json: has \"b\" twice, and which one holds cannot be told; write the file again");
  EXPECT_EQ(error(std::string(1000, '[')), "f.json: nested deeper than 70 levels; the file is damaged");
  EXPECT_FALSE(try_parse_json("[1,]"));
  EXPECT_FALSE(try_parse_json(std::string(100000, '[')));
}

TEST(Json, MembersAreFoundMadeAndSorted) {
  Json json;
  json["b"] = 1;
  json["a"]["y"] = 2.5;
  json["a"]["x"].push_back(true);
  const Json& read = json;
  EXPECT_TRUE(read["nothing"]["there"].is_null());
  EXPECT_EQ(to_line(json), R"({"b":1,"a":{"y":2.5,"x":[true]}})");
  EXPECT_EQ(to_line(sorted(json)), R"({"a":{"x":[true],"y":2.5},"b":1})");
  EXPECT_EQ(read["b"].whole(), 1u);
  EXPECT_EQ(Json(-1).whole(), std::nullopt);
  EXPECT_EQ(Json(1), Json(1.0));
  EXPECT_NE(Json(1), Json("1"));
  EXPECT_THROW(read["b"].text(), std::logic_error);
  EXPECT_THROW(json["b"].push_back(1), std::logic_error);
}

TEST(Json, NumbersAndStringsReadBackAsTheyWere) {
  const std::string text = R"([1e-05,0.1,100000.0,1e+16,-0.0,3,18446744073709551615,"\u0001\"\\/ä"])";
  EXPECT_EQ(to_line(parse_json(text, "f.json")), text);
  EXPECT_EQ(to_line("\xff"), "\"\xEF\xBF\xBD\"");
}

TEST(Json, TextAndBack) {
  const std::string text = "{\n  \"a\": 0.1,\n  \"b\": [\n    1,\n    \"\xc3\xa4\"\n  ],\n  \"c\": {}\n}\n";
  EXPECT_EQ(to_text(parse_json(text, "f.json")), text);
}

TEST(Json, DescriptionsAreShortAndOfOneLine) {
  EXPECT_EQ(describe(parse_json("[[1]]", "f.json")), "an array");
  EXPECT_EQ(describe(parse_json("1.50", "f.json")), "1.5");
  EXPECT_EQ(describe(Json("a\nb")), "\"a\\nb\"");
  EXPECT_LT(describe(Json(std::string(10000, 'x'))).size(), 100u);
  EXPECT_EQ(printable("a\nb"), "a?b");
}

}  // namespace
}  // namespace switchyard
