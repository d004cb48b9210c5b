// Linked into the program for tests/cli/ranks_fault_test.py: breaks one rank at a mark (core/progress.h), as
// the environment says.
//   SWITCHYARD_FAULT="rank=1,step=3,place=backward of layer,nth=2,kind=kill"
// At the nth mark, from step 3 on, whose place begins with that text. Kinds: kill, stop, hang, throw, exit,
// sigterm, full_disk (from there on nothing can be written), no_memory, nap (two seconds).
#include <fmt/core.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>

#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"

namespace {

using namespace switchyard;

struct Fault {
  int rank = 0, step = 0, nth = 1;
  std::string place, kind;
};

Fault fault_of(const char* text) {
  Fault fault;
  std::istringstream entries(text);
  for (std::string entry; std::getline(entries, entry, ',');) {
    const std::size_t equals = entry.find('=');
    const std::string key = entry.substr(0, equals), value = entry.substr(equals + 1);
    if (key == "rank") fault.rank = std::stoi(value);
    if (key == "step") fault.step = std::stoi(value);
    if (key == "nth") fault.nth = std::stoi(value);
    if (key == "place") fault.place = value;
    if (key == "kind") fault.kind = value;
  }
  return fault;
}

void happen(const std::string& kind) {
  if (kind == "kill") ::raise(SIGKILL);
  if (kind == "stop") ::raise(SIGSTOP);
  if (kind == "sigterm") ::kill(::getpid(), SIGTERM);  // not to this thread, which computes
  if (kind == "exit") std::_Exit(3);
  if (kind == "throw") throw_run("the test has broken this rank");
  if (kind == "no_memory") throw std::bad_alloc();
  if (kind == "nap") std::this_thread::sleep_for(std::chrono::seconds(2));
  while (kind == "hang") std::this_thread::sleep_for(std::chrono::seconds(1));
  if (kind == "full_disk") {
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_FSIZE, &none);
  }
}

void look(const Progress& at) {
  static Fault fault = fault_of(std::getenv("SWITCHYARD_FAULT"));
  if (fault.nth <= 0 || log_rank() != fault.rank || at.step < fault.step ||
      !std::string_view(at.place).starts_with(fault.place) || --fault.nth > 0)
    return;
  fmt::print(stderr, "fault: {}\n", describe(at));
  std::fflush(stderr);
  happen(fault.kind);
}

const bool is_set = [] {
  if (std::getenv("SWITCHYARD_FAULT")) progress_hook = look;
  return true;
}();

}  // namespace
