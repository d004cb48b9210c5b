#include "device.h"

#include <filesystem>

#include "core/error.h"
#include "error.h"
#include "launch.h"
#include "ops/device.h"

namespace switchyard::ops::cuda {

namespace {

void* allocate(std::int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) return nullptr;
  SY_CUDA(error);
  return memory;
}

// What a destructor calls must not throw; a failure here is seen by the next call.
void release(void* memory) { (void)cudaFree(memory); }

// Page-locked: copies from it go on while the host does.
void* allocate_staging(std::int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) return nullptr;
  SY_CUDA(error);
  return memory;
}
void release_staging(void* memory) { (void)cudaFreeHost(memory); }

// The run's stream may be any: both wait for all of them.
void fill(void* memory, int byte, std::int64_t bytes) {
  SY_CUDA(cudaDeviceSynchronize());
  SY_CUDA(cudaMemset(memory, byte, static_cast<std::size_t>(bytes)));
  SY_CUDA(cudaDeviceSynchronize());
}
void copy(void* to, const void* from, std::int64_t bytes) {
  SY_CUDA(cudaDeviceSynchronize());
  SY_CUDA(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault));
  SY_CUDA(cudaDeviceSynchronize());  // from pageable memory it may return before the last byte has arrived
}

constexpr int kOldestMajor = 8;  // compute capability: bf16 products and asynchronous copies

cudaDeviceProp properties() {
  cudaDeviceProp prop;
  SY_CUDA(cudaGetDeviceProperties(&prop, 0));
  return prop;
}

int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  SY_CUDA(cudaGetDevice(&device));
  SY_CUDA(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

}  // namespace

std::string unavailable_reason() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    return fmt::format("no CUDA device can be used ({}); install or update NVIDIA's driver",
                       cudaGetErrorString(error));
  if (count == 0) return "there is no CUDA device on this machine";
  const cudaDeviceProp prop = properties();
  if (prop.major >= kOldestMajor) return "";
  return fmt::format("{} has compute capability {}.{}, {}.0 or newer is needed", prop.name, prop.major,
                     prop.minor, kOldestMajor);
}

std::string description() {
  const cudaDeviceProp prop = properties();
  return fmt::format("{}, {:.1f} GiB", prop.name, static_cast<double>(prop.totalGlobalMem) / (1 << 30));
}

bool device_has_wgmma() {
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

std::size_t shared_bytes_of_block() {
  return static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

void check_shared_bytes(const char* op, std::size_t bytes) {
  const std::size_t most = shared_bytes_of_block();
  if (bytes > most)
    throw_run(
        "{}: a block needs {} KiB of shared memory, {} gives {}; use narrower heads or layers, or a device of "
        "compute capability 8.0 (163 KiB) or 9.0 (227 KiB)",
        op, (bytes + 1023) / 1024, properties().name, most / 1024);
}

std::int64_t free_memory() {
  std::size_t free = 0, total = 0;
  SY_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

void use_device_memory() {
  set_device_memory(Device::cuda, {allocate, release, fill, copy, allocate_staging, release_staging});
}

void upload(Tensor to, Tensor from, Context& ctx) {
  SY_CUDA(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<std::size_t>(from.nbytes()), cudaMemcpyHostToDevice,
                          stream_of(ctx)));
}

void synchronise(Context& ctx) { SY_CUDA(cudaStreamSynchronize(stream_of(ctx))); }

Graph::~Graph() {
  if (exec_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
}

void Graph::begin(Context& ctx) {
  SY_CUDA(cudaStreamBeginCapture(stream_of(ctx), cudaStreamCaptureModeGlobal));
}

void Graph::end(Context& ctx) {
  cudaGraph_t graph = nullptr;
  SY_CUDA(cudaStreamEndCapture(stream_of(ctx), &graph));
  std::size_t n_nodes = 0;
  cudaGraphExec_t exec = nullptr;
  SY_CUDA(cudaGraphGetNodes(graph, nullptr, &n_nodes));
  SY_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  SY_CUDA(cudaGraphDestroy(graph));
  exec_ = exec;
  n_nodes_ = static_cast<std::int64_t>(n_nodes);
}

void Graph::abandon(Context& ctx) noexcept {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream_of(ctx), &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();  // what has failed is on its way as an exception
}

void Graph::launch(Context& ctx) {
  SY_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), stream_of(ctx)));
}

void* run_stream() {
  static cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    SY_CUDA(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
  }();
  return stream;
}

void throw_cuda(cudaError_t error, const char* call, const char* file, int line) {
  const char* advice = error == cudaErrorMemoryAllocation
                           ? "use a smaller model, train.micro_batch_size or train.seq_len"
                           : "run the same under compute-sanitizer to find the kernel";
  throw_run("CUDA: {} failed with '{}' ({}:{}); {}", call, cudaGetErrorString(error),
            std::filesystem::path(file).filename().string(), line, advice);
}

}  // namespace switchyard::ops::cuda
