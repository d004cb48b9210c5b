#include "parallel/start_limit.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "parallel/monitor.h"
#include "parallel/mpi.h"
#include "parallel/world.h"

namespace switchyard::parallel {

namespace {

constexpr double kLaterSeconds = 6;  // more than a launcher takes to end the ranks when one has ended

std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();  // what cannot be read is nothing: a process may just have ended
  return text.str();
}

// A process that the same launcher has started on this machine and that is stopped, in words; empty:
// none.
std::string stopped_rank() {
  const char* const size_variable = launched_copies().variable;
  if (!size_variable) return "";
  std::string variable = size_variable;  // "..._SIZE"; the rank's is beside it
  variable.replace(variable.rfind('_') + 1, std::string::npos, "RANK=");
  std::error_code error;
  for (std::filesystem::directory_iterator entries("/proc", error), end; !error && entries != end;
       entries.increment(error)) {
    const std::filesystem::path process = entries->path();
    if (std::atoll(process.filename().c_str()) == 0) continue;
    const std::string stat = text_of(process / "stat");
    const std::size_t state = stat.rfind(") ");  // then "T 4711 ...": the state and the parent
    if (state == std::string::npos || (stat[state + 2] != 'T' && stat[state + 2] != 't') ||
        std::atoll(stat.c_str() + state + 4) != ::getppid())
      continue;
    const std::string variables = '\0' + text_of(process / "environ");
    const std::size_t at = variables.find('\0' + variable);
    if (at == std::string::npos) continue;
    const int rank = std::atoi(variables.c_str() + at + 1 + variable.size());
    return fmt::format("; {} is stopped", describe(rank, {host_name(), std::atoll(stat.c_str())}));
  }
  return "";
}

}  // namespace

double start_seconds() {
  constexpr double kUsual = 40;
  const char* const given = std::getenv("SWITCHYARD_START_SECONDS");
  if (given == nullptr) return kUsual;
  char* end = nullptr;
  const double seconds = std::strtod(given, &end);
  if (end == given || *end != 0 || !(seconds > 0) || seconds > 1e6)
    throw_input("SWITCHYARD_START_SECONDS is '{}'; set it to a number of seconds above 0, or unset it", given);
  return seconds;
}

StartLimit::StartLimit(int rank, double seconds) : rank_(rank), thread_([this, seconds] { run(seconds); }) {}

StartLimit::~StartLimit() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  wakes_.notify_one();
  thread_.join();
}

void StartLimit::says(const std::string& what) {
  const std::lock_guard lock(mutex_);
  what_ = what;
}

void StartLimit::run(double seconds) {
  constexpr double kRound = 0.25, kLongRound = 2;
  const double limit = seconds + kLaterSeconds * std::min(rank_, 2);
  std::unique_lock lock(mutex_);
  for (double waited = 0; waited < limit;) {
    const auto begin = std::chrono::steady_clock::now();
    if (wakes_.wait_for(lock, std::chrono::duration<double>(kRound), [this] { return over_; })) return;
    const double round = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    waited += round > kLongRound ? kRound : round;  // this process itself was stopped, and others have spoken
  }
  if (rank_ < 2)
    log_error_of_run(fmt::format("{}{}, for {:.0f} s (SWITCHYARD_START_SECONDS allows more), {}{}",
                                 what_.starts_with("rank ") ? "" : fmt::format("rank {}: ", rank_), what_,
                                 limit, switchyard::describe(progress()), stopped_rank()));
  ::_exit(kExitRun);
}

}  // namespace switchyard::parallel
