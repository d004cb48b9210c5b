#include "core/log.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/error.h"

namespace switchyard {

namespace {

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = spdlog::stderr_color_st("switchyard");
    made->set_pattern("%^%l%$: %v");
    return made;
  }();
  return *instance;
}

int own_rank = 0;

}  // namespace

void log_info(const std::string& message) {
  if (own_rank == 0) logger().info(one_line(message));
}
void log_warning(const std::string& message) {
  logger().warn(one_line(own_rank == 0 ? message : fmt::format("rank {}: {}", own_rank, message)));
}
void log_error(const std::string& message) {
  if (own_rank == 0) logger().error(one_line(message));
}
void log_error_of_run(const std::string& message) { logger().error(one_line(message)); }
void log_as_rank(int rank) { own_rank = rank; }
int log_rank() { return own_rank; }

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds >= 1e15) return "?";
  const auto total = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
  const std::int64_t minutes = total / 60, hours = total / 3600;
  if (total < 60) return fmt::format("{}s", total);
  if (total < 3600) return fmt::format("{}m {:02}s", minutes, total % 60);
  if (total < 86400) return fmt::format("{}h {:02}m", hours, minutes % 60);
  return fmt::format("{}d {:02}h", hours / 24, hours % 24);
}

std::string format_count(double value) {
  if (!std::isfinite(value) || std::abs(value) >= 1e15) return fmt::format("{:.3g}", value);
  std::string text = std::to_string(std::llround(value));
  const std::size_t first = text.front() == '-' ? 1 : 0;
  for (std::size_t end = text.size(); end > first + 3; end -= 3) text.insert(end - 3, 1, ',');
  return text;
}

}  // namespace switchyard
