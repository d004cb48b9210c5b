// A run that is nothing but marks and barriers, for tests/cli/ranks_launch_test.py: ranks of it fail in all
// ways.
//   parallel_ranks_demo NPROC STEPS [RANK STEP KIND [NPROC2 ...]] [--patience S] [--milliseconds M]
// KIND: throw, input, exit, kill, stop, hang, deadlock, abort, leave; "-": none. SIGTERM ends it after the
// step.
#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "parallel/launch.h"
#include "parallel/watch.h"

namespace {

using namespace switchyard;

volatile std::sig_atomic_t stop_signal = 0;
void request_stop(int signal) {
  stop_signal = signal;
  std::signal(signal, SIG_DFL);
}

struct Options {
  int nproc = 0, steps = 0, rank = -1, step = 0;
  std::string kind = "-";
  double patience = 45;
  int milliseconds = 1;
};

void sleep_for_ever() {
  for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
}

void fail(const std::string& kind, const parallel::Group& all) {
  if (kind == "throw") throw_run("the test has broken this rank");
  if (kind == "input") throw_input("the test does not like its input");
  if (kind == "exit") std::_Exit(3);
  if (kind == "kill") ::raise(SIGKILL);
  if (kind == "stop") ::raise(SIGSTOP);
  if (kind == "abort") ::raise(SIGABRT);
  if (kind == "hang") sleep_for_ever();
  if (kind == "term") ::raise(SIGTERM);
  if (kind == "deadlock") all.barrier();  // which the others do not expect
}

int body(const Options& options, parallel::World& world) {
  parallel::set_patience(options.patience);
  std::signal(SIGTERM, request_stop);
  std::vector<int> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  const parallel::Group all(*world.transport, ranks);
  log_info(fmt::format("{} ranks", world.size()));
  // For the test, which looks for processes that are left.
  fmt::print("process {}\n", ::getpid());
  std::fflush(stdout);
  const bool is_chosen = options.rank == world.rank() || options.rank == 99;  // 99: all
  if (is_chosen && options.step == 0) fail(options.kind, all);
  for (int step = 1; step <= options.steps; ++step) {
    mark_step(step);
    if (world.rank() == 0) parallel::set_checkpoint_note(fmt::format("the last checkpoint is {}", step - 1));
    for (int layer = 0; layer < 3; ++layer) {
      mark("forward of layer", layer);
      std::this_thread::sleep_for(std::chrono::milliseconds(options.milliseconds));
      if (is_chosen && step == options.step && layer == 1) fail(options.kind, all);
      all.barrier();
    }
    if (all.any(stop_signal != 0)) {
      log_warning("stopped");
      return 128 + SIGTERM;
    }
  }
  if (is_chosen && options.kind == "late exit code") return 4;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--patience")
      options.patience = std::atof(argv[++i]);
    else if (word == "--milliseconds")
      options.milliseconds = std::atoi(argv[++i]);
    else
      words.push_back(word);
  }
  if (words.size() != 2 && words.size() != 5) return 64;
  options.nproc = std::stoi(words[0]);
  options.steps = std::stoi(words[1]);
  if (words.size() == 5) {
    options.rank = std::stoi(words[2]);
    options.step = std::stoi(words[3]);
    options.kind = words[4];
  }
  try {
    return parallel::run_ranks(options.nproc, [&](parallel::World& world) { return body(options, world); });
  } catch (const InputError& error) {
    log_error(error.what());
    return 2;
  } catch (const std::exception& error) {
    log_error(error.what());
    return 1;
  }
}
