// Ranks on devices by NCCL: bytes from one device's memory to another's, and its own sums where they are asked
// for. Blocking communicators: one that is not would have to be polled in the middle of a recording; who waits
// too long for the others in making one is found by the run's watch.
#include "ops/device_group.h"

#include "core/error.h"
#include "core/progress.h"
#include "device.h"

#ifdef SWITCHYARD_HAS_NCCL

#include <nccl.h>

#ifndef SWITCHYARD_SIMT
#include <dlfcn.h>
#endif

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <vector>

#include "launch.h"
#include "ops/device.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kOldestWithWindows = 22800;

// The library is opened when ranks first ask for it, so that a run on one device does without.
#define SY_NCCL_FUNCTIONS(each)                                                                        \
  each(ncclGetVersion) each(ncclGetUniqueId) each(ncclCommInitRankConfig) each(ncclCommSplit)          \
      each(ncclCommGetAsyncError) each(ncclCommCount) each(ncclCommUserRank) each(ncclGetErrorString)  \
          each(ncclGetLastError) each(ncclGroupStart) each(ncclGroupEnd) each(ncclSend) each(ncclRecv) \
              each(ncclAllGather) each(ncclAllReduce) each(ncclReduce)

// Of 2.28.
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
#define SY_HAS_WINDOWS
#define SY_NEWER_NCCL_FUNCTIONS(each) \
  each(ncclAlltoAll) each(ncclMemAlloc) each(ncclMemFree) each(ncclCommWindowRegister)
#endif

struct Library {
#define SY_DECLARE(name) decltype(&::name) name = nullptr;
  SY_NCCL_FUNCTIONS(SY_DECLARE)
#undef SY_DECLARE
#ifdef SY_HAS_WINDOWS
#define SY_DECLARE(name) decltype(&::name) name = nullptr;  // null: it is older
  SY_NEWER_NCCL_FUNCTIONS(SY_DECLARE)
#undef SY_DECLARE
#endif
  bool found = false;
};

#ifdef SWITCHYARD_SIMT
Library open_library() {
  Library library;
#define SY_FIND(name) library.name = ::name;
  SY_NCCL_FUNCTIONS(SY_FIND)
#undef SY_FIND
  int version = 0;
#define SY_FIND(name) library.name = ::name;
  if (::ncclGetVersion(&version) == ncclSuccess && version >= kOldestWithWindows) {
    SY_NEWER_NCCL_FUNCTIONS(SY_FIND)
  }
#undef SY_FIND
  library.found = true;
  return library;
}
#else
Library open_library() {
  Library library;
  void* handle = nullptr;
  for (const char* const name : {"libnccl.so.2", SWITCHYARD_NCCL_LIBRARY})
    if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return library;
  library.found = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)> >(dlsym(handle, name));
    return function != nullptr;
  };
#define SY_FIND(name) library.found = find(library.name, #name) && library.found;
  SY_NCCL_FUNCTIONS(SY_FIND)
#undef SY_FIND
#ifdef SY_HAS_WINDOWS
#define SY_FIND(name) find(library.name, #name);
  SY_NEWER_NCCL_FUNCTIONS(SY_FIND)
#undef SY_FIND
#endif
  return library;
}
#endif

const Library& nccl() {
  static const Library library = open_library();
  return library;
}

std::string words_of(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

[[noreturn]] void throw_nccl(ncclResult_t error, ncclComm_t comm, const char* call, const char* file,
                             int line) {
  const char* const detail = nccl().ncclGetLastError(comm);
  throw_run("NCCL {}: {} failed with '{}'{}{} ({}:{}); run with NCCL_DEBUG=INFO to see what it tried",
            words_of(device_group_version()), call, nccl().ncclGetErrorString(error),
            detail != nullptr && *detail != 0 ? ": " : "", detail != nullptr ? detail : "",
            std::filesystem::path(file).filename().string(), line);
}

#define SY_NCCL(comm, call)                                              \
  do {                                                                   \
    const ncclResult_t sy_nccl_error = (call);                           \
    if (sy_nccl_error != ncclSuccess && sy_nccl_error != ncclInProgress) \
      throw_nccl(sy_nccl_error, comm, #call, __FILE__, __LINE__);        \
  } while (0)

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::bf16:
    case DType::i32:
      break;
  }
  SY_CHECK(false, "ranks add f32 or f64, not {}", name_of(dtype));
  return ncclFloat32;
}

// Memory from the library's own allocator, which a rank's device may read and write from another's. What is a
// window stays until the process ends, as its communicators do.
struct Symmetric {
  bool on = false;
  struct Piece {
    void* memory;
    std::int64_t bytes;
  };
  std::vector<Piece> pieces;
  bool registered = false;
};
Symmetric& symmetric() {
  static Symmetric& memory = *new Symmetric;  // what is static may hold device memory to the end
  return memory;
}

ncclConfig_t config_of_groups() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 1;
#ifdef SY_HAS_WINDOWS
  // By copy engines, where windows let it: the multiprocessors are left to what computes.
  if (symmetric().on) config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
#endif
  return config;
}

std::size_t bytes_of(const Tensor& x) { return static_cast<std::size_t>(x.nbytes()); }

// All exchanges of a process go to one stream: calls of two could meet in another order on another rank, and
// hang.
class Exchange {
 public:
  explicit Exchange(Context& ctx) : ctx_(ctx), beside_(ctx) { begin_exchange(ctx); }
  void end() {
    end_exchange(ctx_);
    beside_.join();
  }

 private:
  Context& ctx_;
  Beside beside_;
};

class NcclGroup final : public DeviceGroup {
 public:
  explicit NcclGroup(ncclComm_t comm) : comm_(comm) {
    SY_NCCL(comm, nccl().ncclCommCount(comm, &size_));
    SY_NCCL(comm, nccl().ncclCommUserRank(comm, &place_));
  }
  // The communicator stays until the process ends. Destroying it waits for other ranks, which may be gone, and
  // for recordings; aborting it has hung where one of them was (NVIDIA/nccl issues 863, 992, 1777).
  ~NcclGroup() override = default;

  void all_gather(const Tensor& to_NX, const Tensor& from_X, Context& ctx) override {
    Exchange exchange(ctx);
    SY_NCCL(comm_, nccl().ncclAllGather(from_X.raw(), to_NX.raw(), bytes_of(from_X), ncclUint8, comm_,
                                        stream_of(ctx)));
    exchange.end();
  }

  void exchange(const Tensor& to_NX, const Tensor& from_NX, Context& ctx) override {
    Exchange exchange(ctx);
    const std::size_t piece = bytes_of(from_NX) / static_cast<std::size_t>(size_);
#ifdef SY_HAS_WINDOWS
    if (nccl().ncclAlltoAll != nullptr) {
      SY_NCCL(comm_, nccl().ncclAlltoAll(from_NX.raw(), to_NX.raw(), piece, ncclUint8, comm_, stream_of(ctx)));
      return exchange.end();
    }
#endif
    SY_NCCL(comm_, nccl().ncclGroupStart());
    for (int p = 0; p < size_; ++p) {
      const std::size_t first = static_cast<std::size_t>(p) * piece;
      send(static_cast<const std::byte*>(from_NX.raw()) + first, piece, p, ctx);
      receive(static_cast<std::byte*>(to_NX.raw()) + first, piece, p, ctx);
    }
    SY_NCCL(comm_, nccl().ncclGroupEnd());
    exchange.end();
  }

  void move(std::span<const Message> out, std::span<const Message> in, Context& ctx) override {
    Exchange exchange(ctx);
    SY_NCCL(comm_, nccl().ncclGroupStart());
    for (const Message& message : out)
      send(message.data, static_cast<std::size_t>(message.bytes), message.place, ctx);
    for (const Message& message : in)
      receive(message.data, static_cast<std::size_t>(message.bytes), message.place, ctx);
    SY_NCCL(comm_, nccl().ncclGroupEnd());
    exchange.end();
  }

  void sum(const Tensor& x, Context& ctx) override {
    Exchange exchange(ctx);
    SY_NCCL(comm_, nccl().ncclAllReduce(x.raw(), x.raw(), static_cast<std::size_t>(x.numel()),
                                        type_of(x.dtype()), ncclSum, comm_, stream_of(ctx)));
    exchange.end();
  }

  // Parts differ in size, which a reduce-scatter does not allow: each is reduced to its owner, all at once.
  void sum_to_owners(const Tensor& x_P, std::span<const FlatRange> part_N, Context& ctx) override {
    Exchange exchange(ctx);
    SY_NCCL(comm_, nccl().ncclGroupStart());
    for (std::size_t p = 0; p < part_N.size(); ++p) {
      if (part_N[p].count == 0) continue;
      void* const part = static_cast<std::byte*>(x_P.raw()) + part_N[p].first * size_of(x_P.dtype());
      SY_NCCL(comm_,
              nccl().ncclReduce(part, part, static_cast<std::size_t>(part_N[p].count), type_of(x_P.dtype()),
                                ncclSum, static_cast<int>(p), comm_, stream_of(ctx)));
    }
    SY_NCCL(comm_, nccl().ncclGroupEnd());
    exchange.end();
  }

  std::unique_ptr<DeviceGroup> split(int color) override {
    ncclComm_t part = nullptr;
    ncclConfig_t config = config_of_groups();
    SY_NCCL(comm_, nccl().ncclCommSplit(comm_, color, place_, &part, symmetric().on ? &config : nullptr));
    return std::make_unique<NcclGroup>(part);
  }

  void register_memory() override {
#ifdef SY_HAS_WINDOWS
    for (const Symmetric::Piece& piece : symmetric().pieces) {
      ncclWindow_t window = nullptr;
      symmetric().registered = true;
      SY_NCCL(comm_, nccl().ncclCommWindowRegister(comm_, piece.memory, static_cast<std::size_t>(piece.bytes),
                                                   &window, NCCL_WIN_COLL_SYMMETRIC));
      if (window == nullptr)
        throw_run(
            "NCCL {} makes no windows of memory between these devices; set parallel.symmetric_memory to false, "
            "or run with NCCL_DEBUG=INFO to see why",
            words_of(device_group_version()));
    }
#endif
  }

  void check() override {
    ncclResult_t error = ncclSuccess;
    SY_NCCL(comm_, nccl().ncclCommGetAsyncError(comm_, &error));
    if (error == ncclSuccess || error == ncclInProgress) return;
    throw_run(
        "NCCL {} has met '{}' while ranks exchanged: a rank, its device or what connects them has failed; run "
        "with NCCL_DEBUG=INFO to see which",
        words_of(device_group_version()), nccl().ncclGetErrorString(error));
  }

 private:
  void send(const void* data, std::size_t bytes, int place, Context& ctx) {
    SY_NCCL(comm_, nccl().ncclSend(data, bytes, ncclUint8, place, comm_, stream_of(ctx)));
  }
  void receive(void* data, std::size_t bytes, int place, Context& ctx) {
    SY_NCCL(comm_, nccl().ncclRecv(data, bytes, ncclUint8, place, comm_, stream_of(ctx)));
  }

  ncclComm_t comm_;
  int size_ = 0, place_ = 0;
};

}  // namespace

int device_group_version() {
  static const int version = [] {
    int found = 0;
    return nccl().found && nccl().ncclGetVersion(&found) == ncclSuccess ? found : -1;
  }();
  return version;
}

std::string make_device_group_id() {
  SY_CHECK(nccl().found, "ranks meet by NCCL, which was not found");
  ncclUniqueId id;
  SY_NCCL(nullptr, nccl().ncclGetUniqueId(&id));
  return std::string(id.internal, sizeof id.internal);
}

std::string no_symmetric_memory_reason() {
#ifdef SY_HAS_WINDOWS
  if (device_group_version() >= kOldestWithWindows && nccl().ncclCommWindowRegister != nullptr) return "";
  return fmt::format("NCCL {} has none; {} or newer is needed", words_of(device_group_version()),
                     words_of(kOldestWithWindows));
#else
  return fmt::format("this program was built with NCCL {}; {} or newer is needed", words_of(NCCL_VERSION_CODE),
                     words_of(kOldestWithWindows));
#endif
}

std::vector<std::int64_t> symmetric_memory() {
  std::vector<std::int64_t> bytes;
  for (const Symmetric::Piece& piece : symmetric().pieces) bytes.push_back(piece.bytes);
  return bytes;
}

void* take_exchanged_memory(std::int64_t bytes) {
#ifdef SY_HAS_WINDOWS
  if (symmetric().on) {
    void* memory = nullptr;
    const ncclResult_t error = nccl().ncclMemAlloc(&memory, static_cast<std::size_t>(bytes));
    (void)cudaGetLastError();
    if (error == ncclUnhandledCudaError) return nullptr;  // it does not say more
    SY_NCCL(nullptr, error);
    symmetric().pieces.push_back({memory, bytes});
    return memory;
  }
#endif
  return take_device_memory(bytes);
}

void give_exchanged_memory(void* memory) {
#ifdef SY_HAS_WINDOWS
  std::vector<Symmetric::Piece>& pieces = symmetric().pieces;
  const auto piece = std::find_if(pieces.begin(), pieces.end(),
                                  [&](const Symmetric::Piece& each) { return each.memory == memory; });
  if (piece != pieces.end()) {
    if (symmetric().registered) return;
    pieces.erase(piece);
    (void)nccl().ncclMemFree(memory);
    (void)cudaGetLastError();
    return;
  }
#endif
  give_device_memory(memory);
}

std::unique_ptr<DeviceGroup> make_device_group(const std::string& id, int rank, int size, bool with_symmetric) {
  ncclUniqueId unique;
  SY_CHECK(id.size() == sizeof unique.internal, "an id of {} bytes", id.size());
  std::memcpy(unique.internal, id.data(), id.size());
  count_exchanges_in(exchanges_begun());
  ncclComm_t comm = nullptr;
  SY_CHECK(!with_symmetric || no_symmetric_memory_reason().empty(), "symmetric memory without windows");
  symmetric().on = with_symmetric;
  ncclConfig_t config = config_of_groups();
  SY_NCCL(nullptr, nccl().ncclCommInitRankConfig(&comm, size, unique, rank, &config));
  return std::make_unique<NcclGroup>(comm);
}

}  // namespace switchyard::ops::cuda

#else

namespace switchyard::ops::cuda {

int device_group_version() { return 0; }

std::string make_device_group_id() {
  SY_CHECK(false, "ranks meet by NCCL, without which this program was built");
  return {};
}

std::unique_ptr<DeviceGroup> make_device_group(const std::string&, int, int, bool) { return {}; }

std::string no_symmetric_memory_reason() { return "this program was built without NCCL"; }
std::vector<std::int64_t> symmetric_memory() { return {}; }
void* take_exchanged_memory(std::int64_t bytes) { return take_device_memory(bytes); }
void give_exchanged_memory(void* memory) { give_device_memory(memory); }

}  // namespace switchyard::ops::cuda

#endif
