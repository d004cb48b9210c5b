#include "config/overrides.h"

#include <charconv>

#include "core/error.h"
#include "core/utf8.h"

namespace switchyard::config {
namespace {

constexpr std::size_t kMaxParts = 16;  // more than any key has

[[noreturn]] void fail(const std::string& text, const std::string& problem) {
  throw_input("--set {}: {}", printable(text), problem);
}

std::vector<std::string> split_path(const std::string& text, std::string_view path) {
  std::vector<std::string> parts;
  while (true) {
    const std::size_t dot = path.find('.');
    parts.emplace_back(path.substr(0, dot));
    if (parts.back().empty()) fail(text, "a part of the key is empty; expected section.key=value");
    if (parts.size() > kMaxParts) fail(text, fmt::format("the key has more than {} parts", kMaxParts));
    if (!is_utf8(parts.back())) fail(text, "the key is not valid UTF-8");
    if (dot == std::string_view::npos) return parts;
    path.remove_prefix(dot + 1);
  }
}

Json parse_value(const std::string& text, const std::string& value) {
  try {
    // Without a file to read there is no line and column worth telling: what is not JSON is a string.
    return parse_json(value, "");
  } catch (const InputError&) {
    if (!is_utf8(value)) fail(text, "the value is not valid UTF-8");
    return Json(value);
  }
}

Json& element_at(Json::Array& array, const std::string& part, const std::string& path,
                 const std::string& text) {
  std::size_t index = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
  if (error != std::errc() || end != part.data() + part.size() || index >= array.size()) {
    fail(text, fmt::format("{} is an array of {}, and \"{}\" is not the index of an element", path,
                           array.size(), printable(part)));
  }
  return array[index];
}

}  // namespace

void apply_override(Json& root, const std::string& text, Source& source) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) fail(text, "no '=' in it; expected section.key=value");
  const std::vector<std::string> parts = split_path(text, std::string_view(text).substr(0, equals));

  Json* node = &root;
  std::string path;
  std::string made;  // the highest path that the text did not have
  for (const std::string& part : parts) {
    Json* next = nullptr;
    if (auto* array = node->get<Json::Array>()) {
      next = &element_at(*array, part, path, text);
    } else if (auto* object = node->get<Json::Object>()) {
      next = find_member(*object, part);
    } else {
      fail(text, fmt::format("{} is {}, which holds no key \"{}\"", path, describe(*node), printable(part)));
    }
    if (!path.empty()) path += '.';
    path += printable(part);
    if (next == nullptr) {
      if (made.empty()) made = path;
      auto& object = *node->get<Json::Object>();
      object.push_back({part, Json(Json::Object{})});
      next = &object.back().value;
    }
    node = next;
  }
  *node = parse_value(text, text.substr(equals + 1));
  source.add_override(path, made.empty() ? path : made, text);
}

}  // namespace switchyard::config
