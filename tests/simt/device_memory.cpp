// Device memory is a range of addresses that the host may not touch but through the runtime: outside
// DeviceAccess its pages are protected, and whoever reads or writes them ends the program with a message, as a
// kernel's pointer in the host's hands would on a real device.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

#include "engine.h"
#include "marked.h"
#include "watcher.h"

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
    const DeviceAccess access;
    std::byte* const data = take(bytes);
    std::memset(data, kPoison, bytes);
    set_marks(data, bytes);
    return data;
  }

  void release(std::byte* data) {
    const auto piece = find(data);
    if (piece == pieces_.end() || piece->second.is_foreign)
      throw std::runtime_error("release of memory that was not allocated");
    if (piece->second.file >= 0) ::close(piece->second.file);
    give_back(piece);
  }

  // From here on the piece's pages are those of a file.
  std::string share(std::byte* data) {
    const auto found = find(data);
    if (found == pieces_.end() || found->second.is_foreign)
      throw std::runtime_error("only memory of this process is shared, from its beginning on");
    auto& [place, piece] = *found;
    if (piece.file < 0) {
      const DeviceAccess access;
      std::byte* const first = range_ + place;
      piece.file = memfd_create("simt device memory", MFD_CLOEXEC);
      const std::size_t used = piece.bytes + 2 * kMarkBytes;  // what lies behind is poisoned
      if (piece.file < 0 || ftruncate(piece.file, static_cast<off_t>(piece.size)) != 0 ||
          pwrite(piece.file, first, used, 0) != static_cast<ssize_t>(used) ||
          mmap(first, piece.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, piece.file, 0) != first)
        throw std::runtime_error("no file for memory that is shared");
      struct stat status = {};
      fstat(piece.file, &status);
      piece.name = std::to_string(getpid()) + " " + std::to_string(piece.file) + " " +
                   std::to_string(status.st_ino) + " " + std::to_string(piece.bytes);
    }
    return piece.name;
  }

  std::byte* open_shared(const std::string& name) {
    std::istringstream words(name);
    pid_t process = 0;
    int number = -1;
    ino_t inode = 0;
    std::size_t bytes = 0;
    if (!(words >> process >> number >> inode >> bytes)) throw std::runtime_error("no name of shared memory");
    if (process == getpid()) throw std::runtime_error("shared memory is opened by its own process");
    for (const auto& [place, piece] : pieces_)
      if (piece.name == name) throw std::runtime_error("shared memory is open already");
    const std::string path = "/proc/" + std::to_string(process) + "/fd/" + std::to_string(number);
    const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    struct stat status = {};
    const bool is_same = file >= 0 && fstat(file, &status) == 0 && status.st_ino == inode;
    const DeviceAccess access;
    std::byte* data = nullptr;
    if (is_same) {
      data = take(bytes);
      Piece& piece = find(data)->second;
      piece.name = name;
      piece.is_foreign = true;
      if (mmap(data - kMarkBytes, piece.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) ==
          MAP_FAILED)
        std::abort();
    }
    if (file >= 0) ::close(file);
    if (data == nullptr) throw std::runtime_error("shared memory was released, or its process has ended");
    return data;
  }

  void close_shared(std::byte* data) {
    const auto piece = find(data);
    if (piece == pieces_.end() || !piece->second.is_foreign)
      throw std::runtime_error("memory is closed that was not opened");
    give_back(piece);
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
    for (const auto& [place, piece] : pieces_) bytes += piece.is_foreign ? 0 : piece.bytes;
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

  MemoryRange range() const { return {range_, kRange}; }
  bool has(const void* address) const {
    return range_ <= address && static_cast<const std::byte*>(address) < range_ + kRange;
  }

 private:
  struct Piece {
    std::size_t size, bytes;  // with marks, in whole pages; and what was asked for
    int file = -1;            // of memory that is shared
    std::string name = {};    // as other processes know it
    bool is_foreign = false;  // it lies in another process
  };
  using Pieces = std::map<std::size_t, Piece>;  // by place

  // Room for a piece, of which nothing is set.
  std::byte* take(std::size_t bytes) {
    const std::size_t size = (bytes + 2 * kMarkBytes + kPage - 1) / kPage * kPage;
    std::size_t place = 0;
    for (const auto& [first, piece] : pieces_) {
      if (place + size <= first) break;
      place = first + piece.size;
    }
    if (place + size > kRange) throw std::runtime_error("no addresses left for the emulator's device memory");
    pieces_.emplace(place, Piece{.size = size, .bytes = bytes});
    if (place + size > used_) {
      // What lies behind is protected all the time; to poison all of it would take a third of a second.
      ASAN_POISON_MEMORY_REGION(range_ + used_, place + size - used_);
      used_ = place + size;
      if (depth_ > 0) protect(PROT_READ | PROT_WRITE);
    }
    std::byte* const data = range_ + place + kMarkBytes;
    ASAN_UNPOISON_MEMORY_REGION(data - kMarkBytes, bytes + 2 * kMarkBytes);
    return data;
  }
  Pieces::iterator find(const std::byte* data) {
    return has(data) ? pieces_.find(static_cast<std::size_t>(data - kMarkBytes - range_)) : pieces_.end();
  }
  void give_back(Pieces::iterator piece) {
    std::byte* const first = range_ + piece->first;
    const std::size_t size = piece->second.size;
    if (watcher) watcher->emptied(first + kMarkBytes, piece->second.bytes);
    ASAN_POISON_MEMORY_REGION(first, size);
    if (piece->second.name.empty())
      madvise(first, size, MADV_DONTNEED);
    else if (mmap(first, size, depth_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != first)
      std::abort();
    pieces_.erase(piece);
  }
  void protect(int access) {
    if (used_ > 0 && mprotect(range_, used_, access) != 0) std::abort();
  }

  std::byte* range_ = nullptr;
  std::size_t used_ = 0;  // how far pieces reach
  Pieces pieces_;
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
std::string share(void* data) { return memory().share(static_cast<std::byte*>(data)); }
void* open_shared(const std::string& name) { return memory().open_shared(name); }
void close_shared(void* data) { memory().close_shared(static_cast<std::byte*>(data)); }
MemoryRange device_memory_range() { return memory().range(); }
bool is_device_memory(const void* data) { return memory().has(data); }
bool is_allocated(const void* data, std::size_t bytes) {
  return memory().is_allocated(static_cast<const std::byte*>(data), bytes);
}
std::size_t allocated_bytes() { return memory().allocated_bytes(); }
void check_memory(const char* kernel) { memory().check(kernel); }

}  // namespace simt
