// JSON: a value, text to value and back. The only place that knows the JSON library.
//
// Stricter than most readers: no key twice in one object, no number that a double cannot hold, a bounded depth.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ranges>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace switchyard {

struct JsonMember;

struct Json {
  using Array = std::vector<Json>;
  using Object = std::vector<JsonMember>;  // in the order of the text

  // Integers are int64_t; uint64_t holds only those above its range.
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object> value;

  // Defined below, where JsonMember is complete: not every compiler takes them here.
  Json();                          // null
  template <std::same_as<bool> T>  // a template, so that no pointer becomes a bool
  Json(T v);
  Json(double v);
  Json(const char* v);
  Json(std::string_view v);
  Json(std::string v);
  Json(Array v);
  Json(Object v);
  template <std::integral T>
  requires(!std::same_as<T, bool>) Json(T v);
  Json(const Json&);
  Json(Json&&) noexcept;
  Json& operator=(const Json&);
  Json& operator=(Json&&) noexcept;
  ~Json();
  template <std::ranges::input_range Values>
  static Json list(const Values& values);

  // Null where the value is of another type.
  template <class T>
  const T* get() const {
    return std::get_if<T>(&value);
  }
  template <class T>
  T* get() {
    return std::get_if<T>(&value);
  }
  bool is_null() const { return value.index() == 0; }
  bool is_boolean() const { return get<bool>() != nullptr; }
  bool is_integer() const { return get<std::int64_t>() != nullptr || get<std::uint64_t>() != nullptr; }
  bool is_number() const { return is_integer() || get<double>() != nullptr; }
  bool is_string() const { return get<std::string>() != nullptr; }
  bool is_array() const { return get<Array>() != nullptr; }
  bool is_object() const { return get<Object>() != nullptr; }

  // Of a value that is known to be of the type: std::logic_error otherwise, or where the integer does not fit.
  bool boolean() const;
  std::int64_t integer() const;
  double number() const;
  const std::string& text() const;
  const Array& array() const;
  Array& array();
  const Object& object() const;
  Object& object();
  std::optional<std::uint64_t> whole() const;  // an integer of 0 or more; none: something else

  std::size_t size() const;  // elements of an array, members of an object; 0 of anything else
  const Json& operator[](std::size_t i) const { return array().at(i); }
  // A member; null where there is none, or where this is no object.
  const Json* find(std::string_view key) const;
  Json* find(std::string_view key);
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  const Json& operator[](std::string_view key) const;  // a null value where there is none
  // Adds the member where there is none; the reference holds until another one is added. Null becomes an
  // object; std::logic_error for anything else.
  Json& operator[](std::string_view key);
  void push_back(Json element);  // null becomes an array

  // Numbers are equal by what they are worth; objects member by member, in order.
  bool operator==(const Json& other) const;
};

struct JsonMember {
  std::string key;
  Json value;
  bool operator==(const JsonMember&) const = default;
};

inline Json::Json() = default;
template <std::same_as<bool> T>
Json::Json(T v) : value(v) {}
inline Json::Json(double v) : value(v) {}
inline Json::Json(const char* v) : value(std::string(v)) {}
inline Json::Json(std::string_view v) : value(std::string(v)) {}
inline Json::Json(std::string v) : value(std::move(v)) {}
inline Json::Json(Json&&) noexcept = default;
inline Json& Json::operator=(Json&&) noexcept = default;
inline Json::~Json() = default;
template <std::integral T>
requires(!std::same_as<T, bool>) Json::Json(T v) {
  if (std::in_range<std::int64_t>(v)) {
    value = static_cast<std::int64_t>(v);
  } else {
    value = static_cast<std::uint64_t>(v);
  }
}
template <std::ranges::input_range Values>
Json Json::list(const Values& values) {
  return Json(Array(std::ranges::begin(values), std::ranges::end(values)));
}

const Json* find_member(const Json::Object& object, std::string_view key);  // null: no such key
Json* find_member(Json::Object& object, std::string_view key);

// Every object's members in the order of their keys.
Json sorted(Json json);

// What a person writes. Throws InputError that begins with `origin`: a syntax error (line and column, in bytes,
// both from 1), a key given twice (its path), nesting deeper than 64.
Json parse_json(std::string_view text, const std::string& origin);
// The same with comments: from // to the end of the line, where JSON takes white space.
Json parse_commented_json(std::string_view text, const std::string& origin);
// What a program has written. Throws InputError that begins with `origin` and says that the file is damaged:
// not JSON, a key twice in one object, nesting deeper than 70 (a configuration and what is around it).
Json parse_stored_json(std::string_view text, const std::string& origin);
// None where the text is not JSON, or is nested deeper than 512. Of a key given twice the last one holds.
std::optional<Json> try_parse_json(std::string_view text);

// A double has the fewest digits that read back as the same. Bytes of strings that are not UTF-8 become U+FFFD.
std::string to_line(const Json& json);           // no white space, no newline
std::string to_text(const Json& json);           // two spaces of indent, a newline at the end
std::string json_string(std::string_view text);  // as a JSON string

// For messages, always one line: the value as JSON where it is short, else what it is ("an array").
std::string describe(const Json& json);
// At most 200 bytes of the text, control characters as '?'.
std::string printable(std::string_view text);
std::string in_quotes(std::string_view text);  // the same in double quotes

}  // namespace switchyard
