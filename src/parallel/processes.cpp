#include "parallel/processes.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "core/control_group.h"
#include "core/cores.h"
#include "core/error.h"
#include "core/log.h"
#include "parallel/shared_memory.h"

namespace switchyard::parallel {

namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
constexpr int kRoundMilliseconds = 20;
constexpr double kKillSeconds = 10;    // after the end of the run, what is left is killed
constexpr double kGiveUpSeconds = 40;  // and what cannot even be killed is left to the system
constexpr double kAfterGoodbye = 20;   // a rank that has said goodbye, but stays so long, hangs

volatile std::sig_atomic_t signal_count[64];
void count_signal(int signal) { signal_count[signal] = signal_count[signal] + 1; }

struct Child {
  pid_t process = -1;
  bool gone = false, stopped = false;
  int exit_code = 0;
};

// Memory that children write their marks to. It stays as long as each process does: a rank that fails is looked
// at to its end.
ProgressCell* shared_cells(int ranks) {
  const std::size_t bytes = static_cast<std::size_t>(ranks) * sizeof(ProgressCell);
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw_run("no memory for {} ranks to share: {}", ranks, std::strerror(errno));
  auto* const first = static_cast<ProgressCell*>(memory);
  for (int rank = 0; rank < ranks; ++rank) new (first + rank) ProgressCell;
  return first;
}

class Parent {
 public:
  explicit Parent(int ranks) : monitor_(ranks), children_(static_cast<std::size_t>(ranks)) {}

  void add(int rank, pid_t process, Line line, const ProgressCell& cell) {
    children_[static_cast<std::size_t>(rank)].process = process;
    monitor_.add(rank, std::move(line), {host_name(), process}, &cell, false);
  }

  // Until all are gone.
  int watch() {
    while (!all_gone()) {
      hand_on_signals();
      monitor_.watch(kRoundMilliseconds);
      reap();
      for (std::size_t i = 0; i < children_.size(); ++i)
        if (!children_[i].gone && monitor_.seconds_after_goodbye(static_cast<int>(i)) > kAfterGoodbye)
          monitor_.died(static_cast<int>(i), "has done its work but does not end,");
      if (monitor_.is_over()) kill_the_rest();
      if (monitor_.seconds_over() > kGiveUpSeconds) break;
    }
    if (monitor_.is_over()) return monitor_.exit_code();
    for (const Child& child : children_)
      if (child.exit_code != 0) return child.exit_code;
    return 0;
  }

 private:
  bool all_gone() const {
    return std::all_of(children_.begin(), children_.end(), [](const Child& child) { return child.gone; });
  }
  void signal_all(int signal) {
    for (const Child& child : children_)
      if (!child.gone) ::kill(child.process, signal);
  }
  // A process that is stopped cannot end itself.
  void kill_the_rest() {
    for (const Child& child : children_)
      if (!child.gone && (child.stopped || monitor_.seconds_over() > kKillSeconds))
        ::kill(child.process, SIGKILL);
  }
  // The first of a kind asks the ranks to save and stop, the second ends them: their own handlers do so.
  void hand_on_signals() {
    for (const int signal : kSignals)
      for (; handed_on_[signal] < signal_count[signal]; ++handed_on_[signal]) signal_all(signal);
  }
  void reap() {
    for (std::size_t i = 0; i < children_.size(); ++i) {
      Child& child = children_[i];
      int status = 0;
      if (child.gone || ::waitpid(child.process, &status, WNOHANG | WUNTRACED | WCONTINUED) != child.process)
        continue;
      const int rank = static_cast<int>(i);
      if (WIFSTOPPED(status) || WIFCONTINUED(status)) {
        child.stopped = WIFSTOPPED(status);
        monitor_.set_stopped(rank, child.stopped);
        continue;
      }
      child.gone = true;
      monitor_.watch(0);  // what it has said before it ended
      judge_end(rank, child, status);
    }
  }
  void judge_end(int rank, Child& child, int status) {
    if (WIFEXITED(status)) {
      child.exit_code = WEXITSTATUS(status);
      if (monitor_.promised_exit_code(rank) == child.exit_code) return;
    } else if (WIFSIGNALED(status) && WTERMSIG(status) < 64 && handed_on_[WTERMSIG(status)] > 0) {
      monitor_.end("", 128 + WTERMSIG(status));  // as asked: there is nothing to explain
      return;
    }
    std::string how = describe_end(status);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && killed_for_memory() > memory_kills_before_)
      how += ", perhaps for want of memory,";
    monitor_.died(rank, how);
  }

  Monitor monitor_;
  std::vector<Child> children_;
  int handed_on_[64] = {};
  std::int64_t memory_kills_before_ = killed_for_memory();
};

}  // namespace

std::string describe_end(int status) {
  if (WIFEXITED(status)) return fmt::format("ended with exit code {}", WEXITSTATUS(status));
  const char* const name = ::sigabbrev_np(WTERMSIG(status));
  return name ? fmt::format("was killed by signal {} (SIG{})", WTERMSIG(status), name)
              : fmt::format("was killed by signal {}", WTERMSIG(status));
}

int run_processes(int ranks, const AsRank& as_rank) {
  SharedMemory memory(ranks);
  ProgressCell* const cells = shared_cells(ranks);
  // On the heap, so that a rank can let go of what it has inherited and does not need.
  auto parent = std::make_unique<Parent>(ranks);
  const pid_t own = ::getpid();
  const RankName monitor{host_name(), own};
  const int cores = std::max(1, static_cast<int>(usable_cores().size()) / ranks);
  // A signal between here and the handler waits, in every copy.
  sigset_t signals, before;
  ::sigemptyset(&signals);
  for (const int signal : kSignals) ::sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, &before);
  struct sigaction action_before[std::size(kSignals)];
  for (std::size_t i = 0; i < std::size(kSignals); ++i) {
    struct sigaction action {};
    action.sa_handler = count_signal;
    ::sigaction(kSignals[i], &action, &action_before[i]);
    if (kSignals[i] == SIGHUP && action_before[i].sa_handler == SIG_IGN)
      ::sigaction(SIGHUP, &action_before[i], nullptr);  // as nohup has it
  }
  std::fflush(nullptr);
  for (int rank = 0; rank < ranks; ++rank) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      throw_run("cannot start rank {}: no connection to it: {}", rank, std::strerror(errno));
    const pid_t process = ::fork();
    if (process < 0) throw_run("cannot start rank {}: {}", rank, std::strerror(errno));
    if (process > 0) {
      ::close(ends[1]);
      parent->add(rank, process, Line(ends[0]), cells[rank]);
      continue;
    }
    // This is the rank. It does not outlive the parent, and a terminal's signals come through the parent alone.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != own) ::_exit(kExitRun);
    ::setpgid(0, 0);
    ::close(ends[0]);
    parent.reset();
    for (std::size_t i = 0; i < std::size(kSignals); ++i) ::sigaction(kSignals[i], &action_before[i], nullptr);
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    keep_progress_in(cells[rank]);
    World world;
    world.transport = make_shared_memory_transport(memory, rank);
    world.launcher = "--nproc";
    world.node_rank = rank;
    world.node_size = ranks;
    world.cores = cores;
    return as_rank(world, Line(ends[1]), monitor);
  }
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
  return parent->watch();
}

}  // namespace switchyard::parallel
