// A JSON value, and text to value and back. Stricter than most readers: no comments, no key twice in one
// object, no number that a double cannot hold, no nesting deeper than any configuration needs.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace switchyard::config {

struct JsonMember;

struct Json {
  using Array = std::vector<Json>;
  using Object = std::vector<JsonMember>;  // in the order of the text

  // Integers are int64_t; uint64_t holds only those above its range.
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object> value;

  Json() = default;                // null
  template <std::same_as<bool> T>  // a template, so that no pointer becomes a bool
  Json(T v) : value(v) {}
  Json(double v) : value(v) {}
  Json(const char* v) : value(std::string(v)) {}
  Json(std::string_view v) : value(std::string(v)) {}
  Json(std::string v) : value(std::move(v)) {}
  Json(Array v);
  Json(Object v);
  template <std::integral T>
  requires(!std::same_as<T, bool>) Json(T v) {
    if (std::in_range<std::int64_t>(v)) {
      value = static_cast<std::int64_t>(v);
    } else {
      value = static_cast<std::uint64_t>(v);
    }
  }

  template <class T>
  const T* get() const {
    return std::get_if<T>(&value);
  }
  template <class T>
  T* get() {
    return std::get_if<T>(&value);
  }
  bool is_null() const { return value.index() == 0; }
};

struct JsonMember {
  std::string key;
  Json value;
};

const Json* find_member(const Json::Object& object, std::string_view key);  // null: no such key
Json* find_member(Json::Object& object, std::string_view key);

// Throws InputError that begins with `origin`: a syntax error (line and column, in bytes, both from 1), a key
// given twice (its path), nesting deeper than 64.
Json parse_json(std::string_view text, const std::string& origin);
// Two spaces of indent, a newline at the end; a double keeps all its digits. Strings are valid UTF-8.
std::string to_text(const Json& json);

// For messages, always one line: the value as JSON where it is short, else what it is ("an array").
std::string describe(const Json& json);
// The text without control characters, cut where it is long.
std::string printable(std::string_view text);
bool is_utf8(std::string_view text);

}  // namespace switchyard::config
