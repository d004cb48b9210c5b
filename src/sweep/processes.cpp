#include "sweep/processes.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>

#include "core/cores.h"
#include "core/error.h"
#include "core/file.h"

namespace switchyard::sweep {

namespace {

using Clock = std::chrono::steady_clock;

struct Running {
  std::size_t task;
  std::size_t command;  // of the task
  pid_t process;
  Clock::time_point begun;
};

// The last line of a log that says something.
std::string last_line(const std::filesystem::path& log) {
  const std::string text = read_text_file(log);
  const std::size_t end = text.find_last_not_of("\n\r ");
  if (end == std::string::npos) return "";
  const std::size_t before = text.rfind('\n', end);
  return text.substr(before == std::string::npos ? 0 : before + 1,
                     end - (before == std::string::npos ? -1 : before));
}

class SideBySide {
 public:
  SideBySide(const std::vector<Task>& tasks, std::int64_t jobs, std::int64_t threads)
      : tasks_(tasks), slot_(static_cast<std::size_t>(jobs)), threads_(static_cast<std::size_t>(threads)) {
    cores_ = usable_cores();
    if (slot_.size() * threads_ > cores_.size()) cores_.clear();
    ::sigemptyset(&signals_);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) ::sigaddset(&signals_, signal);
    // As nohup has it: one that is blocked waits even where it is ignored.
    struct sigaction hangup {};
    if (::sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler == SIG_IGN)
      ::sigdelset(&signals_, SIGHUP);
    // A SIGCHLD that comes before it is waited for stays pending.
    ::sigprocmask(SIG_BLOCK, &signals_, &before_);
  }
  ~SideBySide() {
    // An error leaves nothing running behind.
    for (const auto& running : slot_)
      if (running) {
        ::kill(running->process, SIGTERM);
        ::waitpid(running->process, nullptr, 0);
      }
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  SideBySide(const SideBySide&) = delete;
  SideBySide& operator=(const SideBySide&) = delete;

  int run(const std::function<void(std::size_t)>& begun,
          const std::function<void(std::size_t, const Outcome&)>& ended) {
    for (;;) {
      bool any = false;
      for (std::size_t s = 0; s < slot_.size(); ++s) {
        if (!slot_[s] && stopped_by_ == 0 && next_ < tasks_.size()) {
          begun(next_);
          start(s, next_++, 0, Clock::now());
        }
        any = any || slot_[s];
      }
      if (!any) return stopped_by_;
      wait(ended);
    }
  }

 private:
  void start(std::size_t s, std::size_t task, std::size_t command, Clock::time_point begun) {
    const Program& wanted = tasks_[task].programs[command];
    const std::string log = tasks_[task].log.string();
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (out < 0) throw_run("{}: cannot be opened: {}", log, std::strerror(errno));
    std::vector<std::string> words = wanted.launcher;
    words.push_back(program_);
    words.insert(words.end(), wanted.arguments.begin(), wanted.arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t own = ::getpid(), process = ::fork();
    if (process < 0) {
      ::close(out);
      throw_run("cannot start '{} {}': {}", words.front(), wanted.arguments.front(), std::strerror(errno));
    }
    if (process == 0) {
      // A terminal's signals come through this program alone, and a run whose sweep is gone saves and stops.
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != own) ::_exit(1);
      ::setpgid(0, 0);
      if (!cores_.empty() && wanted.launcher.empty()) {
        cpu_set_t set;
        CPU_ZERO(&set);
        for (std::size_t i = 0; i < threads_; ++i) CPU_SET(cores_[s * threads_ + i], &set);
        ::sched_setaffinity(0, sizeof set, &set);
      }
      const int nothing = ::open("/dev/null", O_RDONLY);
      ::dup2(nothing, STDIN_FILENO);
      ::dup2(out, STDOUT_FILENO);
      ::dup2(out, STDERR_FILENO);
      ::sigprocmask(SIG_SETMASK, &before_, nullptr);
      // By the link, which a program that was replaced meanwhile has, too: all runs are of the one that began.
      if (wanted.launcher.empty()) ::execv("/proc/self/exe", argv.data());
      ::execvp(argv.front(), argv.data());
      const std::string failed =
          fmt::format("error: {}: cannot be started: {}\n", words.front(), std::strerror(errno));
      [[maybe_unused]] const auto written = ::write(STDERR_FILENO, failed.data(), failed.size());
      ::_exit(127);
    }
    ::close(out);
    slot_[s] = Running{task, command, process, begun};
  }

  void wait(const std::function<void(std::size_t, const Outcome&)>& ended) {
    int signal = 0;
    while (::sigwait(&signals_, &signal) != 0) {
    }
    if (signal != SIGCHLD) {
      stopped_by_ = signal;
      for (const auto& running : slot_)
        if (running) ::kill(running->process, signal);
      return;
    }
    for (std::size_t s = 0; s < slot_.size(); ++s) {
      if (!slot_[s]) continue;
      int status = 0;
      const pid_t found = ::waitpid(slot_[s]->process, &status, WNOHANG);
      if (found != slot_[s]->process || !(WIFEXITED(status) || WIFSIGNALED(status))) continue;
      const Running done = *slot_[s];
      slot_[s].reset();
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      const Task& task = tasks_[done.task];
      if (code == 0 && done.command + 1 < task.programs.size() && stopped_by_ == 0) {
        start(s, done.task, done.command + 1, done.begun);
        continue;
      }
      if (code == 0 && done.command + 1 < task.programs.size()) continue;  // stopped between two commands
      ended(done.task, {code, code == 0 ? "" : last_line(task.log),
                        std::chrono::duration<double>(Clock::now() - done.begun).count()});
    }
  }

  const std::vector<Task>& tasks_;
  const std::string program_ = std::filesystem::read_symlink("/proc/self/exe").string();
  std::vector<std::optional<Running>> slot_;
  std::size_t threads_, next_ = 0;
  std::vector<int> cores_;  // empty: every process runs where the system puts it
  sigset_t signals_, before_;
  int stopped_by_ = 0;
};

}  // namespace

int run_side_by_side(const std::vector<Task>& tasks, std::int64_t jobs, std::int64_t threads,
                     const std::function<void(std::size_t)>& begun,
                     const std::function<void(std::size_t, const Outcome&)>& ended) {
  return SideBySide(tasks, jobs, threads).run(begun, ended);
}

}  // namespace switchyard::sweep
