// What the readers of a tokenizer.json's parts share. `where` is the file and the JSON path of a part.
#pragma once

#include <string>

#include "core/error.h"
#include "core/json.h"
#include "core/utf8.h"
#include "tokenizer/pattern.h"

namespace switchyard::tokenizer {

inline const std::string& type_of(const Json& part, const std::string& where) {
  if (!part["type"].is_string()) throw_input("{}: is not an object with a type", where);
  return part["type"].text();
}

// The value of `key`, or `fallback` where it is missing or null. Throws InputError for another type.
template <class T>
T entry(const Json& part, std::string_view key, const std::string& where, T fallback) {
  const Json& value = part[key];
  if (value.is_null()) return fallback;
  const T* found = value.get<T>();
  if (found == nullptr) throw_input("{}.{}: is {}, of another type than expected", where, key, to_line(value));
  return *found;
}

// An array, which may be missing only where null may be.
inline const Json::Array& list_of(const Json& part, std::string_view key, const std::string& where) {
  const Json& list = part[key];
  if (!list.is_array()) throw_input("{}.{}: is not a list", where, key);
  return list.array();
}

// One character.
inline std::string character_of(const Json& part, std::string_view key, const std::string& where,
                                const std::string& fallback) {
  const auto text = entry<std::string>(part, key, where, fallback);
  if (text.empty() || character_size(text, 0) != text.size())
    throw_input("{}.{}: is {}, expected one character", where, key, in_quotes(text));
  return text;
}

// part["pattern"]: {"Regex": ...} or {"String": ...}.
inline Pattern pattern_of(const Json& part, const std::string& where) {
  const Json& pattern = part["pattern"];
  if (pattern.size() == 1) {
    if (pattern["Regex"].is_string()) return Pattern(pattern["Regex"].text(), where + ".pattern");
    if (pattern["String"].is_string()) return Pattern::literal(pattern["String"].text());
  }
  throw_input("{}.pattern: is {}, expected {{\"Regex\": ...}} or {{\"String\": ...}}", where, to_line(pattern));
}

}  // namespace switchyard::tokenizer
