// The console: leveled messages on standard error, through spdlog (kept out of headers).
#pragma once

#include <string>

namespace switchyard {

void log_info(const std::string& message);
void log_warning(const std::string& message);
void log_error(const std::string& message);

}  // namespace switchyard
