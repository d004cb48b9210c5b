// The options that one type of router has beside the common ones, by key.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace switchyard::config {

using OptionValue = std::variant<bool, std::int64_t, double, std::string>;

class RouterOptions {
 public:
  RouterOptions() = default;
  RouterOptions(std::initializer_list<std::pair<std::string, OptionValue>> values) : values_(values) {}

  bool has(std::string_view key) const;
  // Each throws std::logic_error where the key is absent or of another type: a configuration that was read has
  // every option of its router's type.
  bool boolean(std::string_view key) const;
  std::int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;
  const std::string& word(std::string_view key) const;

  void set(std::string_view key, OptionValue value);  // replaces or adds
  const std::vector<std::pair<std::string, OptionValue>>& all() const { return values_; }
  bool operator==(const RouterOptions&) const = default;

 private:
  template <class T>
  const T& get(std::string_view key) const;
  std::vector<std::pair<std::string, OptionValue>> values_;
};

}  // namespace switchyard::config
