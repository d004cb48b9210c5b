#include "error.h"

#include <filesystem>

#include "core/error.h"

namespace switchyard::ops::cuda {

void throw_cuda(cudaError_t error, const char* call, const char* file, int line) {
  const char* advice = error == cudaErrorMemoryAllocation
                           ? "use a smaller model, train.micro_batch_size or train.seq_len"
                           : "run the same under compute-sanitizer to find the kernel";
  throw_run("CUDA: {} failed with '{}' ({}:{}); {}", call, cudaGetErrorString(error),
            std::filesystem::path(file).filename().string(), line, advice);
}

}  // namespace switchyard::ops::cuda
