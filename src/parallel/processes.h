// Ranks as processes that this one starts on its own machine (--nproc).
#pragma once

#include <functional>

#include "parallel/control_line.h"
#include "parallel/monitor.h"
#include "parallel/world.h"

namespace switchyard::parallel {

// Makes `ranks` copies of this process and returns in each of them what `as_rank` returns; in this one, the
// exit code of the run once all of them are gone. Call where no thread has been started yet. SIGINT, SIGTERM,
// SIGUSR1 and, where it is not ignored, SIGHUP are handed on to all ranks. Throws RunError where the system
// refuses.
using AsRank = std::function<int(World& world, Line line, RankName monitor)>;
int run_processes(int ranks, const AsRank& as_rank);

// "was killed by signal 9 (SIGKILL)", "ended with exit code 3", of what waitpid says.
std::string describe_end(int status);

}  // namespace switchyard::parallel
