#include "parallel/launch.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <new>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "parallel/mpi.h"
#include "parallel/processes.h"
#include "parallel/rendezvous.h"
#include "parallel/start_limit.h"
#include "parallel/watch.h"

namespace switchyard::parallel {

namespace {

using Body = std::function<int(World&)>;

pid_t watcher = 0;  // the process that has started the ranks, as it and they know it

constexpr double kWaitForEnd = 8;      // more than a monitor waits before it says that the run is over
constexpr double kMonitorLingers = 3;  // after the end of a run, so that what it has said arrives

// The body, watched. `finish`: what all ranks do together when it has gone well.
int run_watched(const Body& body, World& world, Watch& watch, const std::function<void()>& finish) {
  log_as_rank(world.rank());
  try {
    const int code = body(world);
    mark_waiting("the end of the other ranks");
    finish();
    watch.goodbye(code);
    return code;
  } catch (const RunIsOver&) {
    return watch.wait_until_over(kWaitForEnd, kExitRun);
  } catch (const InputError& error) {
    watch.alarm(error.what(), kExitInput);
    return watch.wait_until_over(kWaitForEnd, kExitInput);
  } catch (const std::bad_alloc&) {
    watch.alarm("out of memory", kExitRun);
  } catch (const std::exception& error) {
    watch.alarm(error.what(), kExitRun);
  }
  return watch.wait_until_over(kWaitForEnd, kExitRun);
}

int run_copies(int nproc, const Body& body) {
  watcher = ::getpid();
  return run_processes(nproc, [&](World& world, Line line, RankName monitor) {
    // Left behind where the run fails: it then ends this process if nothing else does.
    static Watch* watch = nullptr;
    watch = new Watch(std::move(line), world.rank(), std::move(monitor), false);
    const int code = run_watched(body, world, *watch, [] {});
    if (watch->said_goodbye()) delete std::exchange(watch, nullptr);
    return code;
  });
}

struct Start {
  World world;
  Rendezvous met;
};

// A rank that fails before it knows the others has nobody to speak for it, and MPI would wait for it.
[[noreturn]] void fail_alone(const std::string& text) {
  log_error_of_run(fmt::format("rank {}: {} ({})", log_rank(), text, switchyard::describe(progress())));
  std::fflush(nullptr);
  ::_exit(kExitRun);
}

Start start_and_meet() {
  StartLimit limit(log_rank());
  try {
    mark("start of MPI");
    Start start;
    start.world = make_mpi_world();
    log_as_rank(start.world.rank());
    limit.says("the ranks have not found each other");
    start.met = meet(start.world, limit);
    return start;
  } catch (const InputError&) {
    throw;  // of how the copies were started: all of them find it, and the first says it
  } catch (const std::bad_alloc&) {
    fail_alone("out of memory");
  } catch (const std::exception& error) {
    fail_alone(error.what());
  }
}

int run_launched(const Body& body) {
  log_as_rank(launched_copies().number);
  auto [world, met] = start_and_meet();
  if (!met.error.empty()) throw_run("the control line between ranks: {}", met.error);
  std::thread monitor_thread;
  if (met.monitor)
    monitor_thread = std::thread([&monitor = *met.monitor] {
      while (!monitor.all_gone() && monitor.seconds_over() < kMonitorLingers) monitor.watch(50);
    });
  Watch watch(std::move(met.line), world.rank(), met.first, world.rank() == 1);
  const int code = run_watched(body, world, watch, finish_mpi);
  if (monitor_thread.joinable()) monitor_thread.join();
  if (watch.said_goodbye()) return met.monitor && met.monitor->is_over() ? met.monitor->exit_code() : code;
  // MPI would wait for ranks that have failed.
  std::fflush(nullptr);
  ::_exit(code);
}

}  // namespace

bool is_watched() { return watcher != 0 && watcher != ::getpid(); }

int run_ranks(int nproc, const Body& body) {
  const LaunchedCopies copies = launched_copies();
  if (nproc > 0 && copies.count > 1) {
    log_as_rank(copies.number);
    throw_input(
        "--nproc {}: {} copies of the program were started already ({}); use either --nproc or a launcher as "
        "mpirun",
        nproc, copies.count, copies.variable);
  }
  if (nproc > 1) return run_copies(nproc, body);
  if (copies.count > 1) return run_launched(body);
  World world = make_lone_world();
  return body(world);
}

}  // namespace switchyard::parallel
