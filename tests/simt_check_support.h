// Kernels under the checks of the emulator: what is told of them.
#pragma once

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace switchyard::ops::cuda {

// `body` holds what it uses, as a kernel's arguments do.
template <class Body>
std::string told_of(simt::Dim3 grid, unsigned threads, const Body& body, std::size_t shared_bytes = 0) {
  try {
    simt::launch("k", grid, {threads, 1, 1}, shared_bytes, body);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "nothing";
}
#define EXPECT_TOLD(text, part)                              \
  do {                                                       \
    const std::string told_ = text;                          \
    EXPECT_NE(told_.find(part), std::string::npos) << told_; \
  } while (false)

inline int me() { return static_cast<int>(threadIdx.x); }

// Device memory for n ints, which are zero.
class Ints {
 public:
  explicit Ints(std::size_t n) {
    cudaMalloc(&memory_, n * sizeof(int));
    cudaMemset(memory_, 0, n * sizeof(int));
  }
  ~Ints() { cudaFree(memory_); }
  Ints(const Ints&) = delete;
  Ints& operator=(const Ints&) = delete;
  int* get() const { return static_cast<int*>(memory_); }

 private:
  void* memory_ = nullptr;
};

}  // namespace switchyard::ops::cuda
