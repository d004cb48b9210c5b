// Reading one object of a configuration: each value is checked for type and range where it is read, and every
// message begins with where the text came from and the path of the key.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/keys.h"
#include "config/names.h"
#include "config/ranges.h"
#include "config/source.h"
#include "core/json.h"

namespace switchyard::config {

class Section {
 public:
  // `json`: the object, or null where the text does not have it (then every key has its default). `path`: its
  // own path, empty for the top level. Throws InputError: not an object; a key that is neither in `keys` nor in
  // `ignored`, unless `accept` takes it. What is but another spelling or name of one in `keys` it is not asked.
  using Accept = std::function<bool(const JsonMember&)>;
  Section(const Json* json, std::string path, const Source& source, const SectionKeys& keys,
          std::span<const std::string_view> ignored = {}, const Accept& accept = {});

  bool has(std::string_view key) const;  // null counts as given
  const Json* find(std::string_view key);
  std::string path_of(std::string_view key) const;
  const Source& source() const { return source_; }
  [[noreturn]] void fail(std::string_view key, const std::string& problem, const std::string& other = "") const;

  // Each returns the key's value, or the fallback where the key is absent; without a fallback the key is
  // required.
  std::int64_t integer(std::string_view key, std::int64_t low, std::int64_t high,
                       std::optional<std::int64_t> fallback = std::nullopt);
  std::optional<std::int64_t> nullable_integer(std::string_view key, std::int64_t low, std::int64_t high);
  std::uint64_t seed(std::string_view key, std::uint64_t fallback);
  double number(std::string_view key, const Interval& range, std::optional<double> fallback = std::nullopt);
  std::optional<double> nullable_number(std::string_view key, const Interval& range);
  bool boolean(std::string_view key, bool fallback);
  std::string text(std::string_view key,
                   std::optional<std::string> fallback = std::nullopt);  // UTF-8, not empty
  template <class Enum>
  Enum choice(std::string_view key, std::span<const Enum> all, std::optional<Enum> fallback = std::nullopt,
              std::string_view (*full_name)(std::string_view) = nullptr) {
    if (fallback && !has(key)) return (find(key), *fallback);
    std::string found = text(key);
    if (full_name != nullptr) found = full_name(found);
    std::vector<std::string_view> names;
    for (const Enum value : all) {
      if (name_of(value) == found) return value;
      names.push_back(name_of(value));
    }
    fail_choice(key, found, names);
  }

  // One of `all`.
  std::string word(std::string_view key, const std::vector<std::string_view>& all, std::string_view fallback);

  // Checks, at the end, that the code asked for every key of the table.
  void finish() const;

 private:
  const Json& required(std::string_view key);
  std::int64_t to_integer(std::string_view key, const Json& json, std::int64_t low, std::int64_t high) const;
  double to_number(std::string_view key, const Json& json, const Interval& range) const;
  [[noreturn]] void fail_choice(std::string_view key, const std::string& found,
                                const std::vector<std::string_view>& names) const;
  // What `key` was meant to be: a key of this section, or the path of one of another; empty: nothing known.
  std::string other_key_here(const std::string& key, bool unsure = false) const;
  std::string key_elsewhere(const std::string& key) const;
  [[noreturn]] void fail_unknown(const JsonMember& member) const;

  const Json::Object* object_ = nullptr;
  std::string path_;
  const Source& source_;
  const SectionKeys& keys_;
  std::set<std::string_view> read_;
};

}  // namespace switchyard::config
