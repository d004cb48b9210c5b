#include "core/threads.h"

#include <omp.h>

namespace switchyard {

void set_threads(int threads) {
  omp_set_dynamic(0);  // a run on one configuration always splits its work in the same way
  if (threads > 0) omp_set_num_threads(threads);
}

int thread_count() { return omp_get_max_threads(); }

}  // namespace switchyard
