#include "parallel/agreement.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "core/error.h"

namespace switchyard::parallel {

namespace {

// The first letter of what a rank reports: done, or what it has thrown.
constexpr char kDone = 'd', kInputError = 'i', kOtherError = 'o';

std::string report_of(const std::function<std::string()>& f) {
  try {
    return kDone + f();
  } catch (const RunIsOver&) {
    throw;
  } catch (const InputError& error) {
    return std::string(1, kInputError) + error.what();
  } catch (const std::bad_alloc&) {
    return std::string(1, kOtherError) + "out of memory";
  } catch (const std::exception& error) {
    return std::string(1, kOtherError) + error.what();
  }
}

[[noreturn]] void throw_error(char kind, const std::string& text) {
  if (kind == kInputError) throw InputError(text);
  throw RunError(text);
}

}  // namespace

std::vector<std::string> gather(const Group& group, const std::function<std::string()>& f) {
  if (group.size() == 1) return {f()};
  std::vector<std::string> reports = group.gather_text(report_of(f));
  const auto failed = std::find_if(reports.begin(), reports.end(),
                                   [](const std::string& report) { return report.front() != kDone; });
  if (failed != reports.end()) {
    const std::string text = failed->substr(1);
    const bool all_say_so = std::all_of(reports.begin(), reports.end(),
                                        [&](const std::string& report) { return report == *failed; });
    const int rank = group.ranks()[static_cast<std::size_t>(failed - reports.begin())];
    throw_error(failed->front(), all_say_so ? text : fmt::format("rank {}: {}", rank, text));
  }
  for (std::string& report : reports) report.erase(0, 1);
  return reports;
}

void together(const Group& group, const std::function<void()>& f) {
  gather(group, [&] {
    f();
    return std::string();
  });
}

std::string by_first(const Group& group, const std::function<std::string()>& f) {
  if (group.size() == 1) return f();
  const std::string report = group.text_of_first(group.place() == 0 ? report_of(f) : std::string());
  if (report.front() != kDone) throw_error(report.front(), report.substr(1));
  return report.substr(1);
}

}  // namespace switchyard::parallel
