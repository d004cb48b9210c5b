#include "device.h"

#include <cstdlib>
#include <filesystem>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "attention_cudnn.h"
#include "core/error.h"
#include "core/log.h"
#include "core/polling.h"
#include "core/progress.h"
#include "error.h"
#include "gemm.h"
#include "launch.h"

namespace switchyard::ops::cuda {

namespace {

// Whether there was memory. An error that is handled is taken away: else the next launch is charged with it.
bool allocated(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return false;
  }
  SY_CUDA(error);
  return true;
}
// What a destructor calls must not throw. A failure here is one of the device, which the next call sees too.
void released(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
}

// Page-locked: copies from it go on while the host does.
void* allocate_staging(std::int64_t bytes) {
  void* memory = nullptr;
  return allocated(cudaMallocHost(&memory, static_cast<std::size_t>(bytes))) ? memory : nullptr;
}
void release_staging(void* memory) { released(cudaFreeHost(memory)); }

// Empty: whoever waits blocks.
std::function<void()> wait_check;

bool is_done(cudaStream_t stream) {
  const cudaError_t error = cudaStreamQuery(stream);
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();  // else the next launch would take it for a failure of its own
    return false;
  }
  SY_CUDA(error);
  return true;
}

void wait_for(cudaStream_t stream) {
  if (!wait_check) {
    SY_CUDA(cudaStreamSynchronize(stream));
  } else {
    // Perhaps for another rank: whoever looks for one that hangs (core/progress.h) looks elsewhere first.
    const Progress before = progress();
    mark_waiting(before.place, kOnDevice);
    poll([&] { return is_done(stream); }, wait_check);
    mark(before.place, before.index);
  }
}

// For work on the run's stream and on the default stream, on which those who have opened none put theirs.
void wait_for_device() {
  if (!wait_check) {
    SY_CUDA(cudaDeviceSynchronize());
    return;
  }
  wait_for(static_cast<cudaStream_t>(run_stream()));
  wait_for(nullptr);
}

// The run's stream may be any: both wait for all of them.
void fill(void* memory, int byte, std::int64_t bytes) {
  wait_for_device();
  SY_CUDA(cudaMemsetAsync(memory, byte, static_cast<std::size_t>(bytes), nullptr));
  wait_for_device();
}
void copy(void* to, const void* from, std::int64_t bytes) {
  wait_for_device();
  SY_CUDA(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, nullptr));
  wait_for_device();
}

constexpr int kOldestMajor = 8;  // compute capability: bf16 products and asynchronous copies

int current_device() {
  int device = 0;
  SY_CUDA(cudaGetDevice(&device));
  return device;
}

cudaDeviceProp properties_of(int device) {
  cudaDeviceProp prop;
  SY_CUDA(cudaGetDeviceProperties(&prop, device));
  return prop;
}
cudaDeviceProp properties() { return properties_of(current_device()); }

int attribute(cudaDeviceAttr name) {
  int value = 0;
  SY_CUDA(cudaDeviceGetAttribute(&value, name, current_device()));
  return value;
}

// Empty: some.
std::string reason_for_none() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    const char* const shown = std::getenv("CUDA_VISIBLE_DEVICES");
    return shown != nullptr ? fmt::format("CUDA_VISIBLE_DEVICES, which is \"{}\", shows no CUDA device", shown)
                            : "there is no CUDA device on this machine";
  }
  if (error != cudaSuccess)
    return fmt::format("no CUDA device can be used ({}); install or update NVIDIA's driver",
                       cudaGetErrorString(error));
  return "";
}

std::string reason_against(const cudaDeviceProp& prop) {
  if (prop.major >= kOldestMajor) return "";
  return fmt::format("{} has compute capability {}.{}, {}.0 or newer is needed", prop.name, prop.major,
                     prop.minor, kOldestMajor);
}

// As NVIDIA's tools write it: "GPU-1c5b7a0e-0c5b-...".
std::string words_of(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    if (i == 0 || (i >= 4 && i <= 10 && i % 2 == 0)) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

}  // namespace

std::string unavailable_reason() {
  const std::string reason = reason_for_none();
  return reason.empty() ? reason_against(properties()) : reason;
}

DeviceInventory inventory() {
  DeviceInventory all;
  // Both can be asked where there is no device; without a driver its version is 0.
  SY_CUDA(cudaDriverGetVersion(&all.driver));
  SY_CUDA(cudaRuntimeGetVersion(&all.toolkit));
  all.cublas = cublas_version();
  all.cudnn = cudnn_version();
  all.unusable = reason_for_none();
  if (!all.unusable.empty()) return all;
  int count = 0;
  SY_CUDA(cudaGetDeviceCount(&count));
  for (int device = 0; device < count; ++device) {
    const cudaDeviceProp prop = properties_of(device);
    all.device.push_back(
        {.name = prop.name,
         .uuid = words_of(prop.uuid),
         .pci = fmt::format("{:04x}:{:02x}:{:02x}.0", prop.pciDomainID, prop.pciBusID, prop.pciDeviceID),
         .capability = fmt::format("{}.{}", prop.major, prop.minor),
         .unusable = reason_against(prop),
         .memory = static_cast<std::int64_t>(prop.totalGlobalMem)});
    for (int other = 0; other < device; ++other) {
      int there = 0, back = 0;
      SY_CUDA(cudaDeviceCanAccessPeer(&there, other, device));
      SY_CUDA(cudaDeviceCanAccessPeer(&back, device, other));
      if (there == 0 || back == 0) all.apart.push_back({other, device});
    }
  }
  return all;
}

void use_device(int number) { SY_CUDA(cudaSetDevice(number)); }

std::string description() {
  const cudaDeviceProp prop = properties();
  return fmt::format("{}, {:.1f} GiB", prop.name, static_cast<double>(prop.totalGlobalMem) / (1 << 30));
}

bool is_turned_off(const char* variable) {
  static std::set<std::string> said;
  const char* const value = std::getenv(variable);
  if (value == nullptr || std::string(value) == "0") return false;
  if (said.insert(variable).second)
    log_warning(fmt::format("{} is set: the run is slower than it could be", variable));
  return true;
}

bool device_has_wgmma() {
  if (is_turned_off("SWITCHYARD_NO_WGMMA")) return false;
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

std::size_t shared_bytes_of_block() {
  return static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

void ask_for_shared_bytes(const char* op, const void* kernel, std::size_t dynamic_bytes) {
  struct Asked {
    std::size_t static_bytes = 0, dynamic_bytes = 0;
  };
  static std::unordered_map<const void*, Asked> asked_of;
  Asked& asked = asked_of[kernel];
  if (asked.dynamic_bytes == 0) {
    cudaFuncAttributes attributes{};
    SY_CUDA(cudaFuncGetAttributes(&attributes, kernel));
    asked.static_bytes = attributes.sharedSizeBytes;
  }
  const std::size_t bytes = asked.static_bytes + dynamic_bytes, most = shared_bytes_of_block();
  if (bytes > most)
    throw_run(
        "{}: a block needs {} KiB of shared memory, {} gives {}; use narrower heads or layers, or a device of "
        "compute capability 8.0 (163 KiB) or 9.0 (227 KiB)",
        op, (bytes + 1023) / 1024, properties().name, most / 1024);
  // Never less than before: what is recorded may be replayed after a launch that needs less.
  if (dynamic_bytes <= asked.dynamic_bytes) return;
  SY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(dynamic_bytes)));
  asked.dynamic_bytes = dynamic_bytes;
}

std::int64_t free_memory() {
  std::size_t free = 0, total = 0;
  SY_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

std::int64_t total_memory() {
  static const auto bytes =
      static_cast<std::int64_t>(properties().totalGlobalMem);  // asked once: it takes long
  return bytes;
}

void use_device_memory() {
  set_device_memory(Device::cuda, {take_device_memory, give_device_memory, fill, copy, allocate_staging,
                                   release_staging, free_memory, take_exchanged_memory, give_exchanged_memory});
}

void* take_device_memory(std::int64_t bytes) {
  void* memory = nullptr;
  return allocated(cudaMalloc(&memory, static_cast<std::size_t>(bytes))) ? memory : nullptr;
}
void give_device_memory(void* memory) { released(cudaFree(memory)); }

void upload(Tensor to, Tensor from, Context& ctx) {
  SY_CUDA(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<std::size_t>(from.nbytes()), cudaMemcpyHostToDevice,
                          stream_of(ctx)));
}

void set_wait_check(std::function<void()> check) { wait_check = std::move(check); }

void synchronise(Context& ctx) { wait_for(stream_of(ctx)); }

Graph::~Graph() {
  if (exec_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
}

void Graph::record(Context& ctx, const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  // Other threads may do what they like: a profiler's, say.
  SY_CUDA(cudaStreamBeginCapture(stream_of(ctx), cudaStreamCaptureModeThreadLocal));
  try {
    work();
  } catch (...) {
    if (cudaStreamEndCapture(stream_of(ctx), &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();  // what has failed is on its way as an exception
    throw;
  }
  SY_CUDA(cudaStreamEndCapture(stream_of(ctx), &graph));
  std::size_t n_nodes = 0;
  cudaGraphExec_t exec = nullptr;
  SY_CUDA(cudaGraphGetNodes(graph, nullptr, &n_nodes));
  SY_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  SY_CUDA(cudaGraphDestroy(graph));
  exec_ = exec;
  n_nodes_ = static_cast<std::int64_t>(n_nodes);
}

void Graph::launch(Context& ctx) {
  SY_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), stream_of(ctx)));
}

namespace {

cudaStream_t make_stream() {
  cudaStream_t made = nullptr;
  SY_CUDA(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
  return made;
}

}  // namespace

void* run_stream() {
  static cudaStream_t stream = make_stream();
  return stream;
}
void* stream_beside() {
  static cudaStream_t stream = make_stream();
  return stream;
}

namespace {

// Events that no point needs any more. One can be used again at once: a stream waits for what it stood for when
// the wait was asked for. They stay until the process ends.
std::vector<cudaEvent_t>& free_events() {
  static auto& events = *new std::vector<cudaEvent_t>;
  return events;
}

}  // namespace

StreamPoint::StreamPoint(void* stream) {
  cudaEvent_t event = nullptr;
  if (free_events().empty()) {
    SY_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  } else {
    event = free_events().back();
    free_events().pop_back();
  }
  event_ = event;
  const cudaError_t error = cudaEventRecord(event, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) free_events().push_back(event);
  SY_CUDA(error);
}

StreamPoint::~StreamPoint() { free_events().push_back(static_cast<cudaEvent_t>(event_)); }

void StreamPoint::hold_back(void* other) const {
  SY_CUDA(cudaStreamWaitEvent(static_cast<cudaStream_t>(other), static_cast<cudaEvent_t>(event_), 0));
}

void throw_cuda(cudaError_t error, const char* call, const char* file, int line) {
  (void)cudaGetLastError();  // on its way as an exception: nobody else is charged with it
  const char* advice = error == cudaErrorMemoryAllocation
                           ? "use a smaller model, train.micro_batch_size or train.seq_len"
                           : "run the same under compute-sanitizer to find the kernel";
  throw_run("CUDA: {} failed with '{}' ({}:{}); {}", call, cudaGetErrorString(error),
            std::filesystem::path(file).filename().string(), line, advice);
}

}  // namespace switchyard::ops::cuda
