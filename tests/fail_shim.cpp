// A library that is loaded before the program's own (LD_PRELOAD) and makes the n-th call of a kind fail, or
// spoils what it writes. tests/cli/failing_calls_test.py sets it up. Calls before main do not count.
//
//   SHIM_CALL    write (pwrite, writev), fsync (fdatasync), rename, open (for writing), open_read,
//                mmap (but not oneDNN's),
//                malloc (every allocation on the heap, but what oneDNN makes once), large (those of 64 KiB or
//                more)
//   SHIM_N       which call, from 1; 0 or absent: none fails
//   SHIM_MODE    once (default), from (that and every later one), flip (once: a write succeeds, with one bit
//   changed) SHIM_PATH    calls on files whose path holds this text alone SHIM_CHILD   the calls of this child
//   alone, numbered from 0 as they are forked; without: each process counts its own SHIM_COUNT   a file to
//   which the number of calls goes when the program ends by exit or from main
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace {

enum class Call { none, write, fsync, rename, open, open_read, mmap, malloc, large };

Call wanted = Call::none;
long nth = 0;
bool stays = false, flips = false;
const char* path_part = nullptr;
int only_child = -1, own_child = -1;
std::atomic<int> n_children{0};
std::atomic<long> n_calls{0};
std::atomic<bool> active{false};

template <class F>
F* next(const char* name) {
  return reinterpret_cast<F*>(::dlsym(RTLD_NEXT, name));
}

bool is_path(const char* path) { return path_part == nullptr || std::strstr(path, path_part) != nullptr; }

bool is_path_of(int fd) {
  if (path_part == nullptr) return true;
  char link[64], path[PATH_MAX];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = ::readlink(link, path, sizeof path - 1);
  if (n < 0) return false;
  path[n] = '\0';
  return is_path(path);
}

// Counts a call; true: it is one that is to fail.
bool hit(Call call) {
  if (call != wanted || !active || (only_child >= 0 && own_child != only_child)) return false;
  const long number = ++n_calls;
  return nth > 0 && (number == nth || (stays && number > nth));
}

void report() {
  active = false;
  const char* path = std::getenv("SHIM_COUNT");
  if (path == nullptr || (only_child >= 0 ? own_child != only_child : own_child >= 0)) return;
  char text[32];
  const int n = std::snprintf(text, sizeof text, "%ld\n", n_calls.load());
  const int fd = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0644));
  ::syscall(SYS_write, fd, text, static_cast<std::size_t>(n));
  ::syscall(SYS_close, fd);
}

int (*program)(int, char**, char**) = nullptr;

int counted_main(int argc, char** argv, char** environment) {
  const auto text = [](const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  constexpr const char* kNames[] = {"",          "write", "fsync",  "rename", "open",
                                    "open_read", "mmap",  "malloc", "large"};
  for (int i = 1; i < static_cast<int>(std::size(kNames)); ++i)
    if (std::strcmp(kNames[i], text("SHIM_CALL")) == 0) wanted = static_cast<Call>(i);
  nth = std::atol(text("SHIM_N"));
  stays = std::strcmp(text("SHIM_MODE"), "from") == 0;
  flips = std::strcmp(text("SHIM_MODE"), "flip") == 0;
  path_part = std::getenv("SHIM_PATH");
  if (*text("SHIM_CHILD") != '\0') only_child = std::atoi(text("SHIM_CHILD"));
  std::atexit(report);
  active = true;
  return program(argc, argv, environment);
}

// The heap before dlsym has found the true functions, which itself asks for some: never given back.
alignas(64) char early[1 << 16];
std::atomic<std::size_t> early_used{0};
void* take_early(std::size_t bytes) {
  const std::size_t at = early_used.fetch_add((bytes + 63) / 64 * 64);
  return at + bytes <= sizeof early ? early + at : nullptr;
}
bool is_early(const void* p) { return p >= early && p < early + sizeof early; }

// The true function; null while dlsym looks for one on this thread.
thread_local bool looking = false;
template <class F>
F* heap_function(F*& kept, const char* name) {
  if (kept == nullptr && !looking) {
    looking = true;
    kept = next<F>(name);
    looking = false;
  }
  return kept;
}
void* (*true_malloc)(std::size_t) = nullptr;
void* (*true_calloc)(std::size_t, std::size_t) = nullptr;
void* (*true_realloc)(void*, std::size_t) = nullptr;
void* (*true_aligned_alloc)(std::size_t, std::size_t) = nullptr;
void* (*true_memalign)(std::size_t, std::size_t) = nullptr;
int (*true_posix_memalign)(void**, std::size_t, std::size_t) = nullptr;
void (*true_free)(void*) = nullptr;

// oneDNN looks at no result of mmap where it asks for memory for the code that it generates.
bool is_of_onednn(const void* caller) {
  Dl_info info{};
  return ::dladdr(caller, &info) != 0 && info.dli_fname != nullptr &&
         std::strstr(info.dli_fname, "dnnl") != nullptr;
}

// What oneDNN makes of a kind of kernel once, by pthread_once, it uses later without a look at whether it was
// made: between two of its frames on the stack is one of the C library.
thread_local bool tracing = false;
bool is_of_onednns_once() {
  tracing = true;
  void* frame[64];
  const int n = ::backtrace(frame, static_cast<int>(std::size(frame)));
  bool inner = false, once = false, outer = false;
  for (int i = 0; i < n && !outer; ++i) {
    const bool of_onednn = is_of_onednn(frame[i]);
    outer = once && of_onednn;
    once = once || (inner && !of_onednn);
    inner = inner || of_onednn;
  }
  tracing = false;
  return outer;
}

bool heap_fails(std::size_t bytes) {
  constexpr std::size_t kLarge = 64 << 10;
  if (tracing || !(hit(Call::malloc) || (bytes >= kLarge && hit(Call::large))) || is_of_onednns_once())
    return false;
  errno = ENOMEM;
  return true;
}

// The length to write, and where from: the caller's bytes, or a copy with one bit changed.
struct Spoilt {
  char copy[1 << 16];
};
thread_local Spoilt spoilt;
std::size_t spoil(const void* bytes, std::size_t n) {
  n = std::min(n, sizeof spoilt.copy);  // the caller goes on with what is left
  std::memcpy(spoilt.copy, bytes, n);
  spoilt.copy[n / 2] = static_cast<char>(spoilt.copy[n / 2] ^ 4);
  return n;
}

int fail(int error) {
  errno = error;
  return -1;
}

bool for_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) != 0; }
bool open_fails(const char* path, int flags) {
  if (!is_path(path) || !hit(for_writing(flags) ? Call::open : Call::open_read)) return false;
  errno = for_writing(flags) ? ENOSPC : EMFILE;
  return true;
}
unsigned mode_of(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, unsigned) : 0;
}

}  // namespace

extern "C" {

int __libc_start_main(int (*main)(int, char**, char**), int argc, char** argv, void (*init)(), void (*fini)(),
                      void (*rtld_fini)(), void* stack_end) {
  program = main;
  return next<decltype(__libc_start_main)>("__libc_start_main")(counted_main, argc, argv, init, fini, rtld_fini,
                                                                stack_end);
}

pid_t fork() {
  const int number = n_children++;
  const pid_t process = next<pid_t()>("fork")();
  if (process == 0) {
    own_child = number;
    n_calls = 0;
  }
  return process;
}

void _exit(int code) {
  report();
  ::syscall(SYS_exit_group, code);
  __builtin_unreachable();
}

ssize_t write(int fd, const void* bytes, std::size_t n) {
  static const auto original = next<ssize_t(int, const void*, std::size_t)>("write");
  if (fd <= STDERR_FILENO || !is_path_of(fd) || !hit(Call::write)) return original(fd, bytes, n);
  if (!flips) return fail(ENOSPC);
  n = spoil(bytes, n);
  return original(fd, spoilt.copy, n);
}

ssize_t pwrite(int fd, const void* bytes, std::size_t n, off_t offset) {
  static const auto original = next<ssize_t(int, const void*, std::size_t, off_t)>("pwrite");
  if (!is_path_of(fd) || !hit(Call::write)) return original(fd, bytes, n, offset);
  if (!flips) return fail(ENOSPC);
  n = spoil(bytes, n);
  return original(fd, spoilt.copy, n, offset);
}
ssize_t pwrite64(int fd, const void* bytes, std::size_t n, off_t offset) {
  return pwrite(fd, bytes, n, offset);
}

ssize_t writev(int fd, const iovec* parts, int n) {
  static const auto original = next<ssize_t(int, const iovec*, int)>("writev");
  if (fd <= STDERR_FILENO || !is_path_of(fd) || !hit(Call::write)) return original(fd, parts, n);
  return fail(ENOSPC);
}

int fsync(int fd) {
  static const auto original = next<int(int)>("fsync");
  return is_path_of(fd) && hit(Call::fsync) ? fail(EIO) : original(fd);
}
int fdatasync(int fd) {
  static const auto original = next<int(int)>("fdatasync");
  return is_path_of(fd) && hit(Call::fsync) ? fail(EIO) : original(fd);
}

int rename(const char* from, const char* to) {
  static const auto original = next<int(const char*, const char*)>("rename");
  return is_path(to) && hit(Call::rename) ? fail(EIO) : original(from, to);
}
int renameat(int from_directory, const char* from, int to_directory, const char* to) {
  static const auto original = next<int(int, const char*, int, const char*)>("renameat");
  return is_path(to) && hit(Call::rename) ? fail(EIO) : original(from_directory, from, to_directory, to);
}
int renameat2(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) {
  static const auto original = next<int(int, const char*, int, const char*, unsigned)>("renameat2");
  return is_path(to) && hit(Call::rename) ? fail(EIO) : original(from_directory, from, to_directory, to, flags);
}

int open(const char* path, int flags, ...) {
  static const auto original = next<int(const char*, int, ...)>("open");
  va_list arguments;
  va_start(arguments, flags);
  const unsigned mode = mode_of(flags, arguments);
  va_end(arguments);
  return open_fails(path, flags) ? -1 : original(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  static const auto original = next<int(const char*, int, ...)>("open64");
  va_list arguments;
  va_start(arguments, flags);
  const unsigned mode = mode_of(flags, arguments);
  va_end(arguments);
  return open_fails(path, flags) ? -1 : original(path, flags, mode);
}
int openat(int directory, const char* path, int flags, ...) {
  static const auto original = next<int(int, const char*, int, ...)>("openat");
  va_list arguments;
  va_start(arguments, flags);
  const unsigned mode = mode_of(flags, arguments);
  va_end(arguments);
  return open_fails(path, flags) ? -1 : original(directory, path, flags, mode);
}
FILE* fopen(const char* path, const char* mode) {
  static const auto original = next<FILE*(const char*, const char*)>("fopen");
  return open_fails(path, mode[0] == 'r' && std::strchr(mode, '+') == nullptr ? O_RDONLY : O_RDWR | O_CREAT)
             ? nullptr
             : original(path, mode);
}
FILE* fopen64(const char* path, const char* mode) { return fopen(path, mode); }

void* mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (wanted == Call::mmap && !is_of_onednn(__builtin_return_address(0)) && hit(Call::mmap)) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(::syscall(SYS_mmap, at, bytes, protection, flags, fd, offset));
}
void* mmap64(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

void* malloc(std::size_t bytes) {
  auto* const original = heap_function(true_malloc, "malloc");
  if (original == nullptr) return take_early(bytes);
  return heap_fails(bytes) ? nullptr : original(bytes);
}
void* calloc(std::size_t n, std::size_t each) {
  auto* const original = heap_function(true_calloc, "calloc");
  if (original == nullptr) return take_early(n * each);  // zeros, since nothing has been given back
  return heap_fails(n * each) ? nullptr : original(n, each);
}
void* realloc(void* p, std::size_t bytes) {
  if (is_early(p)) {
    void* const moved = malloc(bytes);
    if (moved != nullptr)
      std::memcpy(moved, p, std::min<std::size_t>(bytes, early + sizeof early - static_cast<char*>(p)));
    return moved;
  }
  auto* const original = heap_function(true_realloc, "realloc");
  return heap_fails(bytes) ? nullptr : original(p, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  auto* const original = heap_function(true_aligned_alloc, "aligned_alloc");
  return heap_fails(bytes) ? nullptr : original(alignment, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) {
  auto* const original = heap_function(true_memalign, "memalign");
  return heap_fails(bytes) ? nullptr : original(alignment, bytes);
}
int posix_memalign(void** to, std::size_t alignment, std::size_t bytes) {
  auto* const original = heap_function(true_posix_memalign, "posix_memalign");
  return heap_fails(bytes) ? ENOMEM : original(to, alignment, bytes);
}
void free(void* p) {
  if (p == nullptr || is_early(p)) return;
  if (auto* const original = heap_function(true_free, "free")) original(p);
}

}  // extern "C"
