// Device memory is a range of addresses that the host may not touch but through the runtime: outside
// DeviceAccess its pages are protected, and whoever reads or writes them ends the program with a message, as a
// kernel's pointer in the host's hands would on a real device.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>

#include "engine.h"
#include "marked.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace simt {

namespace {

constexpr std::size_t kPage = 4096,
                      kRange = 4 * kDeviceBytes;  // of addresses; gaps between pieces cost no memory

class Memory {
 public:
  Memory() {
    void* const range = mmap(nullptr, kRange, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) throw std::runtime_error("no addresses for the emulator's device memory");
    range_ = static_cast<std::byte*>(range);
  }

  void open() {
    if (depth_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    if (--depth_ == 0) protect(PROT_NONE);
  }

  std::byte* allocate(std::size_t bytes) {
    const std::size_t size = (bytes + 2 * kMarkBytes + kPage - 1) / kPage * kPage;
    std::size_t place = 0;
    for (const auto& [first, piece] : pieces_) {
      if (place + size <= first) break;
      place = first + piece.size;
    }
    if (place + size > kRange) throw std::runtime_error("no addresses left for the emulator's device memory");
    pieces_.emplace(place, Piece{size, bytes});
    if (place + size > used_) {
      // What lies behind is protected all the time; to poison all of it would take a third of a second.
      ASAN_POISON_MEMORY_REGION(range_ + used_, place + size - used_);
      used_ = place + size;
      if (depth_ > 0) protect(PROT_READ | PROT_WRITE);
    }
    const DeviceAccess access;
    std::byte* const data = range_ + place + kMarkBytes;
    ASAN_UNPOISON_MEMORY_REGION(data - kMarkBytes, bytes + 2 * kMarkBytes);
    std::memset(data, kPoison, bytes);
    set_marks(data, bytes);
    return data;
  }

  void release(std::byte* data) {
    const auto piece = pieces_.find(static_cast<std::size_t>(data - kMarkBytes - range_));
    if (data < range_ || piece == pieces_.end())
      throw std::runtime_error("release of memory that was not allocated");
    ASAN_POISON_MEMORY_REGION(range_ + piece->first, piece->second.size);
    madvise(range_ + piece->first, piece->second.size, MADV_DONTNEED);
    pieces_.erase(piece);
  }

  bool is_allocated(const std::byte* data, std::size_t bytes) const {
    if (!has(data)) return false;
    const auto at = static_cast<std::size_t>(data - range_);
    const auto after = pieces_.upper_bound(at);
    if (after == pieces_.begin()) return false;
    const auto& [place, piece] = *std::prev(after);
    return at >= place + kMarkBytes && at + bytes <= place + kMarkBytes + piece.bytes;
  }

  std::size_t allocated_bytes() const {
    std::size_t bytes = 0;
    for (const auto& [place, piece] : pieces_) bytes += piece.bytes;
    return bytes;
  }

  void check(const char* kernel) {
    const DeviceAccess access;
    for (const auto& [place, piece] : pieces_) {
      std::byte* const data = range_ + place + kMarkBytes;
      if (marks_are_whole(data, piece.bytes)) continue;
      set_marks(data, piece.bytes);  // told once
      throw std::runtime_error(std::string(kernel) + ": writes outside a piece of device memory of " +
                               std::to_string(piece.bytes) + " bytes");
    }
  }

  bool has(const void* address) const {
    return range_ <= address && static_cast<const std::byte*>(address) < range_ + kRange;
  }

 private:
  struct Piece {
    std::size_t size, bytes;  // with marks, in whole pages; and what was asked for
  };
  void protect(int access) {
    if (used_ > 0 && mprotect(range_, used_, access) != 0) std::abort();
  }

  std::byte* range_ = nullptr;
  std::size_t used_ = 0;                 // how far pieces reach
  std::map<std::size_t, Piece> pieces_;  // by place
  int depth_ = 0;
};

struct sigaction before;

Memory& memory() {
  // Never destroyed: what is static may hold device memory to the end.
  static Memory& memory = *new Memory;
  static const bool handles = [] {
    struct sigaction action = {};
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
      constexpr char kMessage[] = "emulator: the host touches device memory outside of copies and kernels\n";
      if (simt::memory().has(info->si_addr)) (void)!write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
      sigaction(SIGSEGV, &before, nullptr);  // the same access ends the program now, in the usual way
    };
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &before);
    return true;
  }();
  (void)handles;
  return memory;
}

}  // namespace

DeviceAccess::DeviceAccess() { memory().open(); }
DeviceAccess::~DeviceAccess() { memory().close(); }

void* allocate(std::size_t bytes) { return memory().allocate(bytes); }
void release(void* data) {
  if (data) memory().release(static_cast<std::byte*>(data));
}
bool is_device_memory(const void* data) { return memory().has(data); }
bool is_allocated(const void* data, std::size_t bytes) {
  return memory().is_allocated(static_cast<const std::byte*>(data), bytes);
}
std::size_t allocated_bytes() { return memory().allocated_bytes(); }
void check_memory(const char* kernel) { memory().check(kernel); }

}  // namespace simt
