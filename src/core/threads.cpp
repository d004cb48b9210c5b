#include "core/threads.h"

#include <omp.h>
#include <unistd.h>

#include <cstdlib>

namespace switchyard {

void limit_openmp_spinning(char** argv) {
  constexpr const char* kSpins = "1000";  // some microseconds: longer than the gaps between an operator's loops
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  if (::setenv("GOMP_SPINCOUNT", kSpins, 0) == 0) ::execv("/proc/self/exe", argv);
  // Where that is not possible, the run is only slower on a busy machine.
}

void set_threads(int threads) {
  omp_set_dynamic(0);  // a run on one configuration always splits its work in the same way
  if (threads > 0) omp_set_num_threads(threads);
}

int thread_count() { return omp_get_max_threads(); }

}  // namespace switchyard
