// Every call of the CUDA runtime goes through SY_CUDA: a failed one throws RunError with the call, the file and
// line, and what to do.
#pragma once

#include <cuda_runtime.h>

namespace switchyard::ops::cuda {

[[noreturn]] void throw_cuda(cudaError_t error, const char* call, const char* file, int line);

}  // namespace switchyard::ops::cuda

#define SY_CUDA(call)                                                                \
  do {                                                                               \
    const cudaError_t sy_cuda_error = (call);                                        \
    if (sy_cuda_error != cudaSuccess)                                                \
      ::switchyard::ops::cuda::throw_cuda(sy_cuda_error, #call, __FILE__, __LINE__); \
  } while (0)
