// Runs a test's code with a given number of OpenMP threads.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include "tensors.h"

namespace switchyard::test {

template <class F>
auto with_threads(int threads, F&& f) {
  struct Restore {
    int before = omp_get_max_threads();
    ~Restore() { omp_set_num_threads(before); }
  } restore;
  omp_set_num_threads(threads);
  return f();
}

// compute() returns a fresh OwnedTensor: it must hold the same bits whatever the number of threads.
template <class F>
void expect_same_bits_on_any_thread_count(F&& compute) {
  const OwnedTensor one = with_threads(1, compute);
  for (int threads : {2, 3}) {
    const OwnedTensor more = with_threads(threads, compute);
    EXPECT_TRUE(same_bits(one, more)) << threads << " threads";
  }
}

}  // namespace switchyard::test
