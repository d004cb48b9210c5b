#include "core/threads.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <cstdlib>

#include "core/cores.h"

namespace switchyard {

void limit_openmp_spinning(char** argv) {
  constexpr const char* kSpins = "1000";  // some microseconds: longer than the gaps between an operator's loops
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  if (::setenv("GOMP_SPINCOUNT", kSpins, 0) != 0) return;
  // With OMP_PROC_BIND the runtime has bound this thread to the first of its places by now, and the program
  // that follows would take that for all it may use.
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (const int core : usable_cores()) CPU_SET(core, &cores);
  ::sched_setaffinity(0, sizeof(cores), &cores);
  ::execv("/proc/self/exe", argv);
  // Where that is not possible, the run is only slower on a busy machine.
}

void set_threads(int threads) {
  omp_set_dynamic(0);  // a run on one configuration always splits its work in the same way
  if (threads > 0) omp_set_num_threads(threads);
}

int thread_count() { return omp_get_max_threads(); }

}  // namespace switchyard
