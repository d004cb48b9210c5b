// The threads that operators use.
#pragma once

namespace switchyard {

// GCC's OpenMP threads spin for milliseconds while they wait for one another. Where another program wants the
// core, they so keep each other from running: with one compiler beside it, a training run was seen to slow down
// to a seventh. The runtime reads its settings before main(), so this re-executes the program, once, with a
// short spin; it does nothing where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set. Call it first in main().
void limit_openmp_spinning(char** argv);

// 0: one a core that this process may use. Call once, before the first operator.
void set_threads(int threads);
int thread_count();

}  // namespace switchyard
