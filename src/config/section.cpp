#include "config/section.h"

#include <algorithm>

#include "core/error.h"

namespace switchyard::config {
namespace {

// Optimal string alignment distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

std::string join(std::span<const std::string_view> words) {
  std::string out;
  for (const std::string_view word : words) {
    if (!out.empty()) out += ", ";
    out += word;
  }
  return out;
}

bool at_or_below(const std::string& path, const std::string& ancestor) {
  return path == ancestor || path.starts_with(ancestor + ".");
}

std::string to_string(const Interval& range) {
  return fmt::format("{}{}, {}{}", range.low_open ? '(' : '[', range.low, range.high,
                     range.high_open ? ')' : ']');
}

}  // namespace

std::string_view nearest(std::string_view word, std::span<const std::string_view> words) {
  constexpr std::size_t kLongestKey = 200;  // keeps a hostile text from costing time
  if (word.size() > kLongestKey) return {};
  std::string_view best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() * 2 / 5) + 1;
  for (const std::string_view candidate : words) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

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
  const std::string origin = given != nullptr ? "--set " + printable(given->text) : origin_;
  if (path.empty()) throw_input("{}: {}", origin, problem);
  throw_input("{}: {}: {}", origin, path, problem);
}

Section::Section(const Json* json, std::string path, const Source& source, const SectionKeys& keys,
                 std::span<const std::string_view> ignored)
    : path_(std::move(path)), source_(source), keys_(keys) {
  if (json == nullptr) return;
  object_ = json->get<Json::Object>();
  if (object_ == nullptr) source_.fail(path_, fmt::format("is {}, expected an object", describe(*json)));
  for (const JsonMember& member : *object_) {
    const auto is_key = [&](std::string_view known) { return known == member.key; };
    if (std::any_of(keys_.keys.begin(), keys_.keys.end(), is_key)) continue;
    if (std::any_of(ignored.begin(), ignored.end(), is_key)) continue;
    fail_unknown(member.key);
  }
}

void Section::fail_unknown(const std::string& key) const {
  if (!keys_.family.empty()) {
    for (const SectionKeys& other : all_sections()) {
      if (other.name != keys_.name || std::find(other.keys.begin(), other.keys.end(), key) == other.keys.end())
        continue;
      fail(key, fmt::format("unknown key for model_type \"{}\" (\"{}\" has it); remove it", keys_.family,
                            other.family));
    }
  }
  if (const std::string_view near = nearest(key, keys_.keys); !near.empty()) {
    fail(key, fmt::format("unknown key; did you mean \"{}\"?", near));
  }
  for (const SectionKeys& other : all_sections()) {
    // Only sections with a fixed path can be pointed at.
    if (!other.family.empty() || other.name.find('.') != std::string_view::npos) continue;
    if (std::find(other.keys.begin(), other.keys.end(), key) == other.keys.end()) continue;
    fail(key,
         fmt::format("unknown key; did you mean \"{}{}{}\"?", other.name, other.name.empty() ? "" : ".", key));
  }
  fail(key, fmt::format("unknown key; known here: {}", join(keys_.keys)));
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
  const auto* value = json.get<std::int64_t>();
  if (value == nullptr || *value < low || *value > high) {
    fail(key, fmt::format("is {}, expected an integer in [{}, {}]", describe(json), low, high));
  }
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
  const auto* value = json->get<std::int64_t>();
  if (value == nullptr || *value < 0) {
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
  const std::string_view near = nearest(found, names);
  fail(key, fmt::format("is {}, expected one of: {}{}", describe(Json(found)), join(names),
                        near.empty() ? "" : fmt::format(" (did you mean \"{}\"?)", near)));
}

void Section::finish() const {
  for (const std::string_view key : keys_.keys) {
    SY_CHECK(read_.contains(key), "{} is in the table of keys, but never read", path_of(key));
  }
}

}  // namespace switchyard::config
