// From one command to many ranks: under mpirun the processes are there, with --nproc this process starts them.
#pragma once

#include <functional>

#include "parallel/world.h"

namespace switchyard::parallel {

// Runs `body` on every rank and returns the exit code of this process.
//   nproc 0: as many ranks as mpirun (or another launcher that MPI knows) started, one without any
//   nproc N: N ranks on this machine, copies of this process, which so may have no threads yet; this one
//   watches
//            them and never runs `body`. 1: the same as 0
// A rank that sets no mark (core/progress.h) for a time counts as hung: body says for how long (watch.h).
// An exception of `body` ends all ranks within seconds, with one line on the console, that of the first to
// fail; InputError gives exit code 2 on all, others 1. The same happens where a rank dies, stops or hangs: the
// line says which rank, on which machine, in which step and where. Throws InputError where the way in which the
// processes were started cannot work. With one rank alone body is called, and nothing else happens.
int run_ranks(int nproc, const std::function<int(World&)>& body);

// True in a process of which another one tells the user how it ended.
bool is_watched();

}  // namespace switchyard::parallel
