#include "config/source.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/utf8.h"

namespace switchyard::config {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExtends = "extends";
constexpr const char* kTypes[] = {"type", "model_type", "rope_type"};
constexpr std::size_t kMaxParts = 16;  // more than any key has

bool at_or_below(const std::string& path, const std::string& ancestor) {
  return ancestor.empty() || path == ancestor || path.starts_with(ancestor + ".");
}

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

std::string below(const std::string& path, std::string_view key) {
  return path.empty() ? printable(key) : path + "." + printable(key);
}

// One file's values by path, that of an object with a dot behind it.
void list_values(const Json& json, const std::string& path, const std::string& file,
                 std::map<std::string, std::string>& file_of) {
  const auto* object = json.get<Json::Object>();
  if (object == nullptr) {
    file_of[path] = file;
    return;
  }
  file_of[path + "."] = file;
  for (const JsonMember& member : *object) list_values(member.value, below(path, member.key), file, file_of);
}

bool names_another_type(const Json& base, const Json& top) {
  return std::any_of(std::begin(kTypes), std::end(kTypes), [&](const char* key) {
    const Json *before = base.find(key), *now = top.find(key);
    return now != nullptr && (before == nullptr || *before != *now);
  });
}

// Puts the values of `top` over those of `base`; what stays of the base stays in `file_of`.
void merge(Json& base, Json top, const std::string& path, std::map<std::string, std::string>& file_of) {
  if (!base.is_object() || !top.is_object() || names_another_type(base, top)) {
    base = std::move(top);
    std::erase_if(file_of, [&](const auto& entry) { return at_or_below(entry.first, path); });
    return;
  }
  file_of.erase(path + ".");
  for (JsonMember& member : top.object()) {
    Json* const before = base.find(member.key);
    if (before != nullptr)
      merge(*before, std::move(member.value), below(path, member.key), file_of);
    else
      base[member.key] = std::move(member.value);
  }
}

struct Merged {
  Json root;
  std::map<std::string, std::string> file_of;  // of what the files that it extends have given
};

Merged read_merged(const std::string& text, const std::string& file, std::vector<fs::path>& chain);

Merged read_base(const Json& extends, const std::string& file, std::vector<fs::path>& chain) {
  const auto* name = extends.get<std::string>();
  if (name == nullptr || name->empty())
    throw_input("{}: {}: is {}, expected the path of a configuration, relative to this file's directory", file,
                kExtends, describe(extends));
  const fs::path path = (fs::path(file).parent_path() / *name).lexically_normal();
  std::error_code error;
  if (!fs::is_regular_file(path, error))
    throw_input("{}: {}: is {}, and there is no file {}", file, kExtends, describe(extends), path.string());
  const fs::path whole = fs::canonical(path);
  if (std::find(chain.begin(), chain.end(), whole) != chain.end())
    throw_input("{}: {}: is {}, which is this file or extends it; a configuration cannot extend itself", file,
                kExtends, describe(extends));
  chain.push_back(whole);
  Merged base = read_merged(read_text_file(path), path.string(), chain);
  for (const JsonMember& member : base.root.object()) {
    std::map<std::string, std::string> own;
    list_values(member.value, printable(member.key), path.string(), own);
    base.file_of.merge(own);  // keeps what is there: the values of the base's own bases
  }
  return base;
}

Merged read_merged(const std::string& text, const std::string& file, std::vector<fs::path>& chain) {
  Json root = parse_commented_json(text, file);
  auto* const members = root.get<Json::Object>();
  if (members == nullptr) throw_input("{}: is {}, expected an object", file, describe(root));
  const auto extends = std::find_if(members->begin(), members->end(),
                                    [](const JsonMember& member) { return member.key == kExtends; });
  if (extends == members->end()) return {std::move(root), {}};
  const Json name = std::move(extends->value);
  members->erase(extends);
  Merged merged = read_base(name, file, chain);
  merge(merged.root, std::move(root), "", merged.file_of);
  return merged;
}

}  // namespace

void Source::add_override(std::string path, std::string made, std::string text) {
  overrides_.push_back({std::move(path), std::move(made), std::move(text)});
}

const Source::Override* Source::find_override(const std::string& path) const {
  if (path.empty()) return nullptr;
  // The later override holds.
  const auto it = std::find_if(overrides_.rbegin(), overrides_.rend(), [&](const Override& o) {
    return at_or_below(path, o.path) || (at_or_below(o.path, path) && at_or_below(path, o.made));
  });
  return it == overrides_.rend() ? nullptr : &*it;
}

void Source::fail(const std::string& path, const std::string& problem, const std::string& other) const {
  const Override* given = find_override(path);
  if (given == nullptr) given = find_override(other);
  const std::string origin = given != nullptr ? "--set " + printable(given->text) : file_of(path);
  if (path.empty()) throw_input("{}: {}", origin, problem);
  throw_input("{}: {}: {}", origin, path, problem);
}

bool Source::overridden(const std::string& path) const { return find_override(path) != nullptr; }

const std::string& Source::file_of(std::string path) const {
  if (const auto found = file_of_.find(path + "."); found != file_of_.end()) return found->second;
  if (const auto found = file_of_.find(path); found != file_of_.end()) return found->second;
  // A value in an array is where the array is. A key that is missing in an object is nowhere.
  for (std::size_t dot = path.rfind('.'); dot != std::string::npos; dot = path.rfind('.')) {
    path.erase(dot);
    if (const auto above = file_of_.find(path); above != file_of_.end()) return above->second;
  }
  return origin_;
}

Json read_configuration(const std::string& text, Source& source) {
  std::vector<fs::path> chain;
  std::error_code error;
  if (const fs::path whole = fs::canonical(source.origin(), error); !error) chain.push_back(whole);
  Merged merged = read_merged(text, source.origin(), chain);
  source.set_base(std::move(merged.file_of));
  return std::move(merged.root);
}

void apply_override(Json& root, const std::string& text, Source& source) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) fail(text, "no '=' in it; expected section.key=value");
  const std::vector<std::string> parts = split_path(text, std::string_view(text).substr(0, equals));

  if (parts.front() == kExtends) fail(text, "a configuration names what it extends itself; write it there");

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
