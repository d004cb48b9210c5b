// What the readers of a tokenizer.json's parts share. `where` is the file and the JSON path of a part.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "tokenizer/pattern.h"
#include "tokenizer/utf8.h"

namespace switchyard::tokenizer {

inline std::string type_of(const nlohmann::json& part, const std::string& where) {
  if (!part.is_object() || !part.contains("type") || !part["type"].is_string())
    throw_input("{}: is not an object with a type", where);
  return part["type"];
}

// part[key], or null where there is none.
inline nlohmann::json member(const nlohmann::json& part, const char* key) {
  return part.is_object() ? part.value(key, nlohmann::json()) : nlohmann::json();
}

// The value of `key`, or `fallback` where it is missing or null. Throws InputError for another type.
template <class T>
T entry(const nlohmann::json& part, const char* key, const std::string& where, T fallback) {
  if (!part.contains(key) || part[key].is_null()) return fallback;
  const nlohmann::json& value = part[key];
  bool fits = true;
  if constexpr (std::is_same_v<T, bool>) fits = value.is_boolean();
  if constexpr (std::is_same_v<T, std::string>) fits = value.is_string();
  if constexpr (std::is_same_v<T, std::int64_t>) fits = value.is_number_integer();
  if (!fits) throw_input("{}.{}: is {}, of another type than expected", where, key, value.dump());
  return value.get<T>();
}

// An array, which may be missing only where null may be.
inline nlohmann::json list_of(const nlohmann::json& part, const char* key, const std::string& where) {
  if (!part.contains(key) || !part[key].is_array()) throw_input("{}.{}: is not a list", where, key);
  return part[key];
}

// One character.
inline std::string character_of(const nlohmann::json& part, const char* key, const std::string& where,
                                const std::string& fallback) {
  const auto text = entry<std::string>(part, key, where, fallback);
  if (text.empty() || character_size(text, 0) != text.size())
    throw_input("{}.{}: is \"{}\", expected one character", where, key, text);
  return text;
}

// part["pattern"]: {"Regex": ...} or {"String": ...}.
inline Pattern pattern_of(const nlohmann::json& part, const std::string& where) {
  const nlohmann::json pattern = member(part, "pattern");
  if (pattern.is_object() && pattern.size() == 1) {
    if (pattern.contains("Regex") && pattern["Regex"].is_string())
      return Pattern(pattern["Regex"], where + ".pattern");
    if (pattern.contains("String") && pattern["String"].is_string()) return Pattern::literal(pattern["String"]);
  }
  throw_input("{}.pattern: is {}, expected {{\"Regex\": ...}} or {{\"String\": ...}}", where, pattern.dump());
}

}  // namespace switchyard::tokenizer
