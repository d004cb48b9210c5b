// Runs of this program as processes side by side.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace switchyard::sweep {

// One command of this program.
struct Program {
  std::vector<std::string> arguments;   // {"train", "c.json", ...}
  std::vector<std::string> launcher{};  // what starts it, {"mpirun", "-np", "8"}; empty: nothing in between
};

// Commands one after another; the first that fails ends the task.
struct Task {
  std::vector<Program> programs;
  std::filesystem::path log;  // what they print is added to it; its directory is there
};

struct Outcome {
  int exit_code = 0;   // of the command that ended the task; 128 + n where signal n killed it
  std::string error;   // the last line that it printed, where it failed
  double seconds = 0;  // that the task took
};

// Runs all tasks, `jobs` at a time, each on `threads` cores of its own where the machine has that many for all
// of them (one with a launcher: where that puts it). `begun` and `ended` are told of each task by its index.
// Ctrl-C, SIGTERM and SIGHUP, where it is not ignored, are passed on to what runs; nothing new begins then, and
// what runs is waited for. Returns the signal, or 0: all have run. Throws RunError where a process cannot be
// started or a log cannot be opened.
int run_side_by_side(const std::vector<Task>& tasks, std::int64_t jobs, std::int64_t threads,
                     const std::function<void(std::size_t)>& begun,
                     const std::function<void(std::size_t, const Outcome&)>& ended);

}  // namespace switchyard::sweep
