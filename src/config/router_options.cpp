#include "config/router_options.h"

#include <algorithm>

#include "core/error.h"

namespace switchyard::config {

namespace {

template <class Values>
auto find(Values& values, std::string_view key) {
  return std::find_if(values.begin(), values.end(), [&](const auto& entry) { return entry.first == key; });
}

}  // namespace

bool RouterOptions::has(std::string_view key) const { return find(values_, key) != values_.end(); }

template <class T>
const T& RouterOptions::get(std::string_view key) const {
  const auto found = find(values_, key);
  SY_CHECK(found != values_.end(), "the router has no option {}", key);
  const T* value = std::get_if<T>(&found->second);
  SY_CHECK(value != nullptr, "the router's option {} is of another type", key);
  return *value;
}

bool RouterOptions::boolean(std::string_view key) const { return get<bool>(key); }
std::int64_t RouterOptions::integer(std::string_view key) const { return get<std::int64_t>(key); }
double RouterOptions::number(std::string_view key) const { return get<double>(key); }
const std::string& RouterOptions::word(std::string_view key) const { return get<std::string>(key); }

void RouterOptions::set(std::string_view key, OptionValue value) {
  const auto found = find(values_, key);
  if (found != values_.end())
    found->second = std::move(value);
  else
    values_.emplace_back(std::string(key), std::move(value));
}

}  // namespace switchyard::config
