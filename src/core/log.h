// The console: leveled messages on standard error, through spdlog (kept out of headers), and numbers as people
// read them. A message is one line, whatever names stand in it (one_line of core/error.h).
#pragma once

#include <string>

namespace switchyard {

void log_info(const std::string& message);
void log_warning(const std::string& message);
void log_error(const std::string& message);
// Of several processes that do one run, from here on: what all of them have to say is said by the first. The
// others print warnings alone, with "rank 3: " before them; their errors are for whoever watches them to print.
void log_as_rank(int rank);
int log_rank();                                     // 0: the first, or the only process
void log_error_of_run(const std::string& message);  // whatever the rank

// "0s", "42s", "3m 05s", "2h 07m", "3d 04h"; the seconds are rounded.
std::string format_duration(double seconds);
std::string format_count(double value);  // rounded, with thousands separators: "12,345"

}  // namespace switchyard
