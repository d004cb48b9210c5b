#include "device.h"
#include "launch.h"

// How many exchanges the device has begun, and how long it has been in them, in memory of the host that the
// device writes to: whoever watches the process sees it while the main thread waits for the device, and while a
// recording is replayed. One exchange ends before the next begins: all are on one stream.

namespace switchyard::ops::cuda {

namespace {

struct Count {
  std::int64_t begun, nanoseconds;  // of exchanges that have ended
};

// The clock of the whole device; it may stand still for a microsecond.
__device__ std::int64_t device_nanoseconds() {
#ifdef SWITCHYARD_SIMT
  return simt::nanoseconds();
#else
  std::int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#endif
}

// What the device keeps for itself, since to read memory of the host takes it a microsecond.
__device__ Count counted;
__device__ std::int64_t began_at;

__global__ void __launch_bounds__(1) begin_exchange_kernel(Count* told) {
  told->begun = ++counted.begun;
  began_at = device_nanoseconds();
}
__global__ void __launch_bounds__(1) end_exchange_kernel(Count* told) {
  counted.nanoseconds += device_nanoseconds() - began_at;
  told->nanoseconds = counted.nanoseconds;
}

struct Told {
  Count *on_host = nullptr, *on_device = nullptr;
  Told() {
    void *host = nullptr, *device = nullptr;
    SY_CUDA(cudaHostAlloc(&host, sizeof(Count), cudaHostAllocMapped));
    SY_CUDA(cudaHostGetDevicePointer(&device, host, 0));
    on_host = static_cast<Count*>(host);
    on_device = static_cast<Count*>(device);
    *on_host = {};
  }
};
const Told& told() {
  static const Told told;  // until the process ends
  return told;
}

}  // namespace

void begin_exchange(Context& ctx) {
  launch("begin_exchange", begin_exchange_kernel, {1, 1}, ctx, told().on_device);
}
void end_exchange(Context& ctx) { launch("end_exchange", end_exchange_kernel, {1, 1}, ctx, told().on_device); }

const std::int64_t* exchanges_begun() { return &told().on_host->begun; }

double exchange_seconds() {
  // Read once, whenever the device writes it.
  return 1e-9 * static_cast<double>(*static_cast<const volatile std::int64_t*>(&told().on_host->nanoseconds));
}

}  // namespace switchyard::ops::cuda
