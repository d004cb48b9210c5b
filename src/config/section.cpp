#include "config/section.h"

#include <algorithm>
#include <cmath>

#include "config/spelling.h"
#include "core/error.h"
#include "core/utf8.h"

namespace switchyard::config {
namespace {

std::string join(std::span<const std::string_view> words) {
  std::string out;
  for (const std::string_view word : words) {
    if (!out.empty()) out += ", ";
    out += word;
  }
  return out;
}

std::string to_string(const Interval& range) {
  return fmt::format("{}{}, {}{}", range.low_open ? '(' : '[', range.low, range.high,
                     range.high_open ? ')' : ']');
}

// 1e3 and 1000.0 are whole, as far as a double holds every integer.
std::optional<std::int64_t> whole_number(const Json& json) {
  constexpr double kEveryInteger = 9007199254740992.0;  // 2^53
  if (const auto* integer = json.get<std::int64_t>()) return *integer;
  const auto* real = json.get<double>();
  if (real == nullptr || std::abs(*real) > kEveryInteger || std::trunc(*real) != *real) return std::nullopt;
  return static_cast<std::int64_t>(*real);
}

}  // namespace

Section::Section(const Json* json, std::string path, const Source& source, const SectionKeys& keys,
                 std::span<const std::string_view> ignored, const Accept& accept)
    : path_(std::move(path)), source_(source), keys_(keys) {
  if (json == nullptr) return;
  object_ = json->get<Json::Object>();
  if (object_ == nullptr) source_.fail(path_, fmt::format("is {}, expected an object", describe(*json)));
  const auto any = [](std::span<const std::string_view> words, const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  };
  for (const JsonMember& member : *object_) {
    if (any(keys_.keys, member.key) || any(ignored, member.key)) continue;
    if (const std::string meant = other_key_here(member.key); !meant.empty())
      fail(member.key, fmt::format("unknown key; did you mean \"{}\"?", meant));
    if (accept && accept(member)) continue;
    fail_unknown(member);
  }
}

std::string Section::other_key_here(const std::string& key, bool unsure) const {
  if (const std::string_view near = nearest(key, keys_.keys); !near.empty()) return std::string(near);
  const std::string prefix = std::string(keys_.name) + ".";
  const std::string_view meant = meant_by(
      keys_.name, key,
      [&](std::string_view path) {
        return path.starts_with(prefix) &&
               std::find(keys_.keys.begin(), keys_.keys.end(), path.substr(prefix.size())) != keys_.keys.end();
      },
      unsure);
  return meant.empty() ? "" : std::string(meant.substr(prefix.size()));
}

std::string Section::key_elsewhere(const std::string& key) const {
  // Only a section with a fixed path can be pointed at; of `model`, the layout's that the text is of.
  const auto is_pointed_at = [&](const SectionKeys& other) {
    return other.name != keys_.name && other.name.find('.') == std::string_view::npos &&
           (other.layout.empty() || source_.layout().empty() || other.layout == source_.layout());
  };
  const auto path_in = [](const SectionKeys& section, std::string_view known) {
    return section.name.empty() ? std::string(known) : fmt::format("{}.{}", section.name, known);
  };
  std::string near;
  for (const SectionKeys& other : all_sections()) {
    if (!is_pointed_at(other)) continue;
    if (std::find(other.keys.begin(), other.keys.end(), key) != other.keys.end()) return path_in(other, key);
    if (const std::string_view found = nearest(key, other.keys); near.empty() && !found.empty())
      near = path_in(other, found);
  }
  const std::string_view meant = meant_by(keys_.name, key, [&](std::string_view path) {
    return std::any_of(all_sections().begin(), all_sections().end(), [&](const SectionKeys& other) {
      return is_pointed_at(other) && std::any_of(other.keys.begin(), other.keys.end(),
                                                 [&](auto known) { return path_in(other, known) == path; });
    });
  });
  return meant.empty() ? near : std::string(meant);
}

void Section::fail_unknown(const JsonMember& member) const {
  const std::string& key = member.key;
  if (!keys_.layout.empty()) {
    for (const SectionKeys& other : all_sections()) {
      if (other.name != keys_.name || std::find(other.keys.begin(), other.keys.end(), key) == other.keys.end())
        continue;
      fail(key, fmt::format("is {}: unknown key for model_type \"{}\" (\"{}\" has it)", describe(member.value),
                            keys_.layout, other.layout));
    }
  }
  if (const std::string meant = other_key_here(key, true); !meant.empty())
    fail(key, fmt::format("is {}: unknown key; did you mean \"{}\"?", describe(member.value), meant));
  if (const std::string path = key_elsewhere(key); !path.empty())
    fail(key, fmt::format("unknown key; did you mean \"{}\"?", path));
  if (!keys_.layout.empty())
    fail(key, fmt::format("is {}: unknown key, and no value that turns something off; model_type \"{}\" "
                          "computes nothing of that name",
                          describe(member.value), keys_.layout));
  constexpr std::size_t kFew = 10;
  if (keys_.keys.size() <= kFew) fail(key, fmt::format("unknown key; known here: {}", join(keys_.keys)));
  fail(key, fmt::format("unknown key; docs/configuration.md lists those of \"{}\"", keys_.name));
}

std::string Section::path_of(std::string_view key) const {
  const std::string name = printable(key);
  return path_.empty() ? name : path_ + "." + name;
}

void Section::fail(std::string_view key, const std::string& problem, const std::string& other) const {
  source_.fail(path_of(key), problem, other);
}

bool Section::has(std::string_view key) const {
  return object_ != nullptr && find_member(*object_, key) != nullptr;
}

const Json* Section::find(std::string_view key) {
  const auto known = std::find(keys_.keys.begin(), keys_.keys.end(), key);
  SY_CHECK(known != keys_.keys.end(), "{} is read, but not in the table of keys", path_of(key));
  read_.insert(*known);
  return object_ == nullptr ? nullptr : find_member(*object_, key);
}

const Json& Section::required(std::string_view key) {
  const Json* json = find(key);
  if (json == nullptr) fail(key, "missing, and it has no default; add it");
  return *json;
}

std::int64_t Section::to_integer(std::string_view key, const Json& json, std::int64_t low,
                                 std::int64_t high) const {
  const std::optional<std::int64_t> value = whole_number(json);
  if (!value || *value < low || *value > high)
    fail(key, fmt::format("is {}, expected an integer in [{}, {}]", describe(json), low, high));
  return *value;
}

std::int64_t Section::integer(std::string_view key, std::int64_t low, std::int64_t high,
                              std::optional<std::int64_t> fallback) {
  if (fallback && !has(key)) return (find(key), *fallback);
  return to_integer(key, required(key), low, high);
}

std::optional<std::int64_t> Section::nullable_integer(std::string_view key, std::int64_t low,
                                                      std::int64_t high) {
  const Json* json = find(key);
  if (json == nullptr || json->is_null()) return std::nullopt;
  return to_integer(key, *json, low, high);
}

std::uint64_t Section::seed(std::string_view key, std::uint64_t fallback) {
  const Json* json = find(key);
  if (json == nullptr) return fallback;
  if (const auto* large = json->get<std::uint64_t>()) return *large;
  const std::optional<std::int64_t> value = whole_number(*json);
  if (!value || *value < 0) {
    fail(key, fmt::format("is {}, expected an integer in [0, {}]", describe(*json), UINT64_MAX));
  }
  return static_cast<std::uint64_t>(*value);
}

double Section::to_number(std::string_view key, const Json& json, const Interval& range) const {
  std::optional<double> value;
  if (const auto* v = json.get<double>()) value = *v;
  if (const auto* v = json.get<std::int64_t>()) value = static_cast<double>(*v);
  if (const auto* v = json.get<std::uint64_t>()) value = static_cast<double>(*v);
  const bool inside = value && *value >= range.low && *value <= range.high &&
                      !(range.low_open && *value == range.low) && !(range.high_open && *value == range.high);
  if (!inside) fail(key, fmt::format("is {}, expected a number in {}", describe(json), to_string(range)));
  return *value;
}

double Section::number(std::string_view key, const Interval& range, std::optional<double> fallback) {
  if (fallback && !has(key)) return (find(key), *fallback);
  return to_number(key, required(key), range);
}

std::optional<double> Section::nullable_number(std::string_view key, const Interval& range) {
  const Json* json = find(key);
  if (json == nullptr || json->is_null()) return std::nullopt;
  return to_number(key, *json, range);
}

bool Section::boolean(std::string_view key, bool fallback) {
  const Json* json = find(key);
  if (json == nullptr) return fallback;
  const auto* value = json->get<bool>();
  if (value == nullptr) fail(key, fmt::format("is {}, expected true or false", describe(*json)));
  return *value;
}

std::string Section::text(std::string_view key, std::optional<std::string> fallback) {
  if (fallback && !has(key)) return (find(key), *fallback);
  const Json& json = required(key);
  const auto* value = json.get<std::string>();
  if (value == nullptr) fail(key, fmt::format("is {}, expected a string", describe(json)));
  if (value->empty()) fail(key, "is empty, expected a string with something in it");
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (std::any_of(value->begin(), value->end(), is_control) || !is_utf8(*value)) {
    fail(key, fmt::format("is {}, expected valid UTF-8 without control characters", describe(json)));
  }
  return *value;
}

std::string Section::word(std::string_view key, const std::vector<std::string_view>& all,
                          std::string_view fallback) {
  if (!has(key)) return (find(key), std::string(fallback));
  std::string found = text(key);
  if (std::find(all.begin(), all.end(), found) == all.end()) fail_choice(key, found, all);
  return found;
}

void Section::fail_choice(std::string_view key, const std::string& found,
                          const std::vector<std::string_view>& names) const {
  std::string_view near = nearest(found, names);
  const auto has_found = [letters = letters_of(found)](std::string_view name) {  // softmax: softmax_topk
    return letters.size() >= 3 && letters_of(name).find(letters) != std::string::npos;
  };
  if (near.empty() && std::count_if(names.begin(), names.end(), has_found) == 1)
    near = *std::find_if(names.begin(), names.end(), has_found);
  fail(key, fmt::format("is {}, expected one of: {}{}", describe(Json(found)), join(names),
                        near.empty() ? "" : fmt::format(" (did you mean \"{}\"?)", near)));
}

void Section::finish() const {
  for (const std::string_view key : keys_.keys) {
    SY_CHECK(read_.contains(key), "{} is in the table of keys, but never read", path_of(key));
  }
}

}  // namespace switchyard::config
