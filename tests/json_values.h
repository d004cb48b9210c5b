// JSON in tests, by the program's own reader.
#pragma once

#include <cstddef>
#include <filesystem>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace switchyard {

inline void PrintTo(const Json& json, std::ostream* out) { *out << to_line(json); }  // in GoogleTest's messages

}  // namespace switchyard

namespace switchyard::test {

inline Json parsed(std::string_view text) { return parse_stored_json(text, "the test's JSON"); }
inline Json parsed_file(const std::filesystem::path& path) {
  return parse_stored_json(read_text_file(path), path.string());
}

template <class T>
std::vector<T> numbers(const Json& array) {
  std::vector<T> values;
  for (const Json& value : array.array()) values.push_back(static_cast<T>(value.number()));
  return values;
}

// `base` with the members of an object instead of its own.
inline Json with_members(Json base, std::string_view members) {
  const Json own = parsed(members);
  for (const auto& [key, value] : own.object()) base[key] = value;
  return base;
}

// How many there were: 0 or 1.
inline std::size_t erase(Json& object, std::string_view key) {
  return std::erase_if(object.object(), [&](const JsonMember& member) { return member.key == key; });
}

}  // namespace switchyard::test
