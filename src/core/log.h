// The console: leveled messages on standard error, through spdlog (kept out of headers), and numbers as people
// read them.
#pragma once

#include <string>

namespace switchyard {

void log_info(const std::string& message);
void log_warning(const std::string& message);
void log_error(const std::string& message);

// "0s", "42s", "3m 05s", "2h 07m", "3d 04h"; the seconds are rounded.
std::string format_duration(double seconds);
std::string format_count(double value);  // rounded, with thousands separators: "12,345"

}  // namespace switchyard
