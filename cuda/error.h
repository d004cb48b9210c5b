// Every call of the CUDA runtime goes through SY_CUDA: a failed one throws RunError with the call, the file and
// line, and what to do.
#pragma once

#include <cuda_runtime.h>

namespace switchyard::cuda {

[[noreturn]] void throw_cuda(cudaError_t error, const char* call, const char* file, int line);

}  // namespace switchyard::cuda

#define SY_CUDA(call)                                                           \
  do {                                                                          \
    const cudaError_t sy_cuda_error = (call);                                   \
    if (sy_cuda_error != cudaSuccess)                                           \
      ::switchyard::cuda::throw_cuda(sy_cuda_error, #call, __FILE__, __LINE__); \
  } while (0)
