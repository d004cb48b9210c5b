// Runs CUDA kernels on the CPU: every thread of a block is a fiber, blocks run one after another in one thread
// of the operating system. The headers beside this file (include/cuda_runtime.h and its neighbours) give
// kernels the names of the toolkit and call what is declared here. Nothing of this is part of the trainer.
//
// What is checked while a kernel runs, each with the kernel's name in the message (std::runtime_error):
//   - a barrier or a warp-wide operation that some of its threads never reach;
//   - lanes of one warp that meet in different warp-wide operations;
//   - writes outside device memory and shared memory, by marks around each piece, looked at after each block;
//   - more shared memory than the launch asked for or the device has, static and dynamic together;
//   - a grid of more blocks than a device's dimensions hold;
//   - shuffles from lanes that take no part.
// checks.cpp sees more where it is linked and kernels are compiled with hooks (docs/testing.md).
// Everywhere else the host reads and writes no device memory: its pages are protected.
// Shared memory is filled with NaN when a block starts and fresh device memory is, too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace simt {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
};

constexpr unsigned kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;
struct Capability {
  int major, minor, multiprocessors;
};
// What the device says of itself.
inline Capability capability{9, 0, 2};

constexpr std::size_t kMaxSharedBytes = 227 * 1024;     // of a block, on a device of compute capability 9.0
constexpr std::size_t kUnaskedSharedBytes = 48 * 1024;  // static and dynamic together, where none was asked for
constexpr unsigned kMostBlocks = 0x7fffffff, kMostBlocksAcross = 65535;  // of a grid's x; of its y and z

enum class BlockOrder { ascending, descending };
// The order in which blocks run: a result that depends on it is a race between blocks. Default: as SIMT_ORDER
// in the environment says: ascending, descending, or the seed of a random order; threads run in such an order,
// too.
void set_block_order(BlockOrder order);

// The most shared memory that a block may ask for: another device's. Default: kMaxSharedBytes.
void set_max_shared_bytes(std::size_t bytes);
std::size_t max_shared_bytes();

struct MemoryRange {
  const void* begin;
  std::size_t bytes;
};

// Runs `body` once for each thread of the grid. `parameters`: where the kernel's arguments lie, which its
// threads may read. `function` is what stands for the kernel where its attributes are asked for or set
// (cudaFuncSetAttribute); none: as if all shared memory had been asked for.
void launch(const char* kernel, Dim3 grid, Dim3 block, std::size_t dynamic_shared_bytes,
            const std::function<void()>& body, MemoryRange parameters, const void* function);
// The same of a lambda that holds the arguments.
template <class Body>
void launch(const char* kernel, Dim3 grid, Dim3 block, std::size_t dynamic_shared_bytes, const Body& body,
            const void* function = nullptr) {
  launch(kernel, grid, block, dynamic_shared_bytes, std::cref(body), {&body, sizeof body}, function);
}
// A kernel's static shared memory, as far as its blocks have used any: what they did not reach is not known.
std::size_t static_shared_bytes(const void* function);
// From here on a launch of it may have so much dynamic shared memory.
void ask_for_shared_bytes(const void* function, std::size_t dynamic_bytes);

// The device's clock, in nanoseconds. A test sets one of its own; none: the host's.
inline std::int64_t (*clock)() = nullptr;
std::int64_t nanoseconds();

// Below, only within a kernel.

const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_dim();
const Dim3& grid_dim();
unsigned lane();
unsigned thread_number();  // within the block
// Whether it is the kernel's parameters, a stack of the thread's warp, whose lanes hand each other what is
// there, or the emulator's own.
bool is_of_launch(const void* memory);
const std::byte* end_of_stack();  // of the thread's, which grows down from there
[[noreturn]] void fail(const std::string& what);

void sync_block();
void note_atomic(const void* at, std::size_t bytes);  // an atomic operation is about to be done there
// Waits until ready() is true, which others bring about. `what` stands in the message if none does.
void wait_until(const std::function<bool()>& ready, const std::string& what);

// All lanes of `mask` meet; the last one to arrive runs complete(args of each lane, null outside the mask),
// then all go on. `operation` names the kind of meeting: lanes of one mask must mean the same one.
void meet_warp(unsigned mask, const char* operation, void* args, void (*complete)(void* const args[kWarpSize]));

// One piece of the block's shared memory for each key; the same piece for all threads of the block.
void* static_shared(const void* key, std::size_t bytes);
void* dynamic_shared();
std::size_t dynamic_shared_bytes();

// What instructions remember of a block while it runs (include/simt_wgmma.h).
struct BlockState {
  virtual ~BlockState() = default;
  virtual void check_end() = 0;  // fails where the block left something undone
};
std::unique_ptr<BlockState>& block_state();  // null when a block starts

// Asynchronous copies to shared memory: nothing arrives before its group is waited for.
void async_copy(void* to, const void* from, unsigned bytes, unsigned zeros_after);
void async_commit();
void async_wait(unsigned groups_left);

// Device memory. The host may touch it only within DeviceAccess, where kernels and the runtime's copies are:
// elsewhere the program ends with a message.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};
void* allocate(std::size_t bytes);                         // filled with NaN
void release(void* memory);                                // of allocate(), or null
MemoryRange device_memory_range();                         // in which all pieces lie
bool is_device_memory(const void* memory);                 // live or not
bool is_allocated(const void* memory, std::size_t bytes);  // all of it in one live piece
constexpr std::size_t kDeviceBytes = std::size_t{1} << 30;
std::size_t allocated_bytes();
// Memory that other processes map: the name of a piece from its beginning on, and such a piece of another
// process here, a piece like those of allocate() but for its contents. Throws std::runtime_error where a name
// is of this process, of memory that was released since, or open already.
std::string share(void* memory);
void* open_shared(const std::string& name);
void close_shared(void* memory);
// Throws where a mark around a piece of device memory was overwritten.
void check_memory(const char* kernel);

}  // namespace simt
