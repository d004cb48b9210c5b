#include "core/json_differences.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace switchyard {

namespace {

void collect(const Json& a, const Json& b, const std::string& path, std::vector<std::string>& paths) {
  if (a == b) return;
  const auto below = [&](std::string_view part) {
    return path.empty() ? std::string(part) : fmt::format("{}.{}", path, part);
  };
  if (a.is_object() && b.is_object()) {
    for (const auto& [key, value] : a.object()) {
      if (const Json* other = b.find(key); other != nullptr)
        collect(value, *other, below(key), paths);
      else
        paths.push_back(below(key));
    }
    for (const auto& [key, value] : b.object())
      if (!a.contains(key)) paths.push_back(below(key));
  } else if (a.is_array() && b.is_array()) {
    const std::size_t common = std::min(a.size(), b.size());
    for (std::size_t i = 0; i < common; ++i) collect(a[i], b[i], below(std::to_string(i)), paths);
    for (std::size_t i = a.size(); i > common; --i) paths.push_back(below(std::to_string(i - 1)));
    for (std::size_t i = common; i < b.size(); ++i) paths.push_back(below("-"));  // no element there to name
  } else {
    paths.push_back(path);
  }
}

}  // namespace

std::vector<std::string> differing_paths(const Json& a, const Json& b) {
  std::vector<std::string> paths;
  collect(a, b, "", paths);
  return paths;
}

const Json* find_path(const Json& json, std::string_view path) {
  const Json* found = &json;
  while (found != nullptr && !path.empty()) {
    const std::size_t dot = path.find('.');
    const std::string_view part = path.substr(0, dot);
    path = dot == std::string_view::npos ? std::string_view() : path.substr(dot + 1);
    std::size_t index = 0;
    if (!found->is_array()) {
      found = found->find(part);
    } else if (const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
               error == std::errc() && end == part.data() + part.size() && index < found->size()) {
      found = &(*found)[index];
    } else {
      found = nullptr;
    }
  }
  return found;
}

}  // namespace switchyard
