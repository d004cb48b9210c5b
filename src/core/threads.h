// The threads that operators use.
#pragma once

namespace switchyard {

// 0: one a core that this process may use. Call once, before the first operator.
void set_threads(int threads);
int thread_count();

}  // namespace switchyard
