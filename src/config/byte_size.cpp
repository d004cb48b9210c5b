#include "config/byte_size.h"

#include <fmt/core.h>

#include <charconv>
#include <utility>

namespace switchyard::config {

std::optional<std::int64_t> parse_byte_size(std::string_view text) {
  constexpr std::int64_t kMax = std::int64_t{1} << 62;
  constexpr std::pair<std::string_view, std::int64_t> kUnits[] = {{"", 1},
                                                                  {"B", 1},
                                                                  {"KB", 1000},
                                                                  {"MB", 1000000},
                                                                  {"GB", 1000000000},
                                                                  {"TB", 1000000000000},
                                                                  {"KiB", 1LL << 10},
                                                                  {"MiB", 1LL << 20},
                                                                  {"GiB", 1LL << 30},
                                                                  {"TiB", 1LL << 40}};
  std::int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || number <= 0) return std::nullopt;
  const std::string_view unit(stop, static_cast<std::size_t>(end - stop));
  for (const auto& [name, bytes] : kUnits)
    if (unit == name) return number > kMax / bytes ? std::nullopt : std::optional(number * bytes);
  return std::nullopt;
}

std::string format_byte_size(std::uint64_t bytes) {
  constexpr std::string_view kUnits[] = {"KB", "MB", "GB", "TB"};
  if (bytes < 1000) return fmt::format("{} bytes", bytes);
  double value = static_cast<double>(bytes) / 1000;
  std::size_t unit = 0;
  for (; value >= 999.95 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;  // printed as 1000.0 else
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace switchyard::config
