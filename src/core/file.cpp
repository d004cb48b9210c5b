#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#include "core/disk_space.h"
#include "core/error.h"

namespace switchyard {

namespace {

const char* advice_for(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "free some space or choose another directory";
    case EFBIG:
      return "raise the file size limit (ulimit -f) or choose another directory";
    case EACCES:
    case EPERM:
    case EROFS:
      return "choose a directory that you may write to";
    case EIO:
      return "the disk may be failing: choose another one";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files (ulimit -n)";
    case ENOMEM:
      return "free some memory";
    default:
      return "check the path";
  }
}

[[noreturn]] void throw_write_error(const std::filesystem::path& path, std::uint64_t at, int error) {
  throw_input("{}: write failed after {} bytes: {}; {}", path.string(), at, std::strerror(error),
              advice_for(error));
}

// A checksum is taken piece by piece just after the piece is written, while it is in the cache.
constexpr std::size_t kPiece = std::size_t{1} << 20;

// Writes the parts side by side from `offset` on, their pieces in parallel: while one thread's piece is being
// written, others take their checksums. Returns the CRC-32 of all parts.
std::uint32_t write_at(int fd, const std::filesystem::path& path, std::uint64_t offset,
                       std::span<const std::span<const std::byte>> parts) {
  struct Piece {
    std::uint64_t offset;
    std::span<const std::byte> bytes;
    std::uint32_t crc = 0;
  };
  std::vector<Piece> pieces;
  std::uint64_t end = offset;
  for (const std::span<const std::byte>& part : parts) {
    for (std::size_t begin = 0; begin < part.size(); begin += kPiece)
      pieces.push_back({end + begin, part.subspan(begin, std::min(kPiece, part.size() - begin))});
    end += part.size();
  }
  std::atomic<int> failure = 0;
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    Piece& piece = pieces[i];
    for (std::size_t done = 0; done < piece.bytes.size() && failure == 0;) {
      const ssize_t n = ::pwrite(fd, piece.bytes.data() + done, piece.bytes.size() - done,
                                 static_cast<off_t>(piece.offset + done));
      if (n < 0 && errno != EINTR) failure = errno;
      if (n > 0) done += static_cast<std::size_t>(n);
    }
    piece.crc = static_cast<std::uint32_t>(
        ::crc32_z(0, reinterpret_cast<const Bytef*>(piece.bytes.data()), piece.bytes.size()));
  }
  if (failure != 0) throw_write_error(path, offset, failure);
  std::uint32_t crc = 0;
  for (const Piece& piece : pieces) crc = crc32_of_both(crc, piece.crc, piece.bytes.size());
  return crc;
}

}  // namespace

MappedFile::MappedFile(std::filesystem::path path) : path_(std::move(path)) {
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    throw_input("{}: cannot be opened: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw_input("{}: not a regular file; give a file", path_.string());
  }
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ > 0) {
    void* p = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      throw_input("{}: cannot be mapped: {}; {}", path_.string(), std::strerror(error), advice_for(error));
    }
    data_ = static_cast<const std::byte*>(p);
  }
  ::close(fd);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::release(std::span<const std::byte> part) const {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(part.data());
  const std::uintptr_t first = (begin + page - 1) / page * page;
  const std::uintptr_t last = (begin + part.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

// /proc/self/maps: "FIRST-END perms offset device inode    PATH", a line a mapping.
bool find_mapped_file(const void* address, char* path, std::size_t size) {
  const int fd = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  enum class Part { first, end, other, name, skip } part = Part::first;
  std::uintptr_t number = 0;
  bool found = false, done = false;
  std::size_t length = 0;
  char buffer[4096];
  for (ssize_t n = 0; !done && (n = ::read(fd, buffer, sizeof buffer)) > 0;) {
    for (ssize_t i = 0; !done && i < n; ++i) {
      const char c = buffer[i];
      if (c == '\n') {
        done = found;
        part = Part::first;
        number = 0;
      } else if (part == Part::first || part == Part::end) {
        const bool is_digit = c >= '0' && c <= '9';
        if (is_digit || (c >= 'a' && c <= 'f')) {
          number = number << 4 | static_cast<std::uintptr_t>(is_digit ? c - '0' : c - 'a' + 10);
        } else {
          if (part == Part::first ? wanted < number : wanted >= number)
            part = Part::skip;
          else
            part = part == Part::first ? Part::end : Part::other;
          found = part == Part::other;
          number = 0;
        }
      } else if (part == Part::other || part == Part::name) {
        if (c == '/') part = Part::name;
        if (part == Part::name && length + 1 < size) path[length++] = c;
      }
    }
  }
  ::close(fd);
  if (size > 0) path[length] = 0;
  return found && length > 0;
}

OutputFile::OutputFile(std::filesystem::path path, Mode mode) : path_(std::move(path)) {
  const int disposition = mode == Mode::append ? O_APPEND : O_TRUNC;
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | disposition, 0644);
  if (fd_ < 0)
    throw_input("{}: cannot be written: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
  struct stat info {};
  seekable_ = mode == Mode::create && ::fstat(fd_, &info) == 0 && S_ISREG(info.st_mode);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(std::span<const std::byte> bytes) {
  if (seekable_ && bytes.size() >= 4 * kPiece) {
    crc_ = crc32_of_both(crc_, write_at(fd_, path_, written_, std::span(&bytes, 1)), bytes.size());
    written_ += bytes.size();
    if (::lseek(fd_, static_cast<off_t>(written_), SEEK_SET) < 0)
      throw_input("{}: write failed: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
    return;
  }
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPiece));
    const ssize_t n = ::write(fd_, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_write_error(path_, written_, errno);
    const auto done = static_cast<std::size_t>(n);
    crc_ = static_cast<std::uint32_t>(::crc32_z(crc_, reinterpret_cast<const Bytef*>(piece.data()), done));
    written_ += done;
    bytes = bytes.subspan(done);
  }
}

void OutputFile::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void OutputFile::sync() {
  if (::fsync(fd_) == 0 || errno == EINVAL || errno == EROFS) return;  // a pipe cannot be synced
  throw_input("{}: write failed: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
}

void OutputFile::close() {
  if (fd_ < 0) return;
  sync();
  const bool closed = ::close(std::exchange(fd_, -1)) == 0;
  if (!closed) throw_input("{}: write failed: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
}

void PositionedFile::create(const std::filesystem::path& path, std::uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const bool made = fd >= 0 && ::ftruncate(fd, static_cast<off_t>(bytes)) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!made)
    throw_input("{}: cannot be written: {}; {}", path.string(), std::strerror(error), advice_for(error));
}

PositionedFile::PositionedFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
  if (fd_ < 0)
    throw_input("{}: cannot be written: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
}

PositionedFile::~PositionedFile() {
  if (fd_ >= 0) ::close(fd_);
}

PositionedFile::PositionedFile(PositionedFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

std::uint32_t PositionedFile::write(std::uint64_t offset, std::span<const std::span<const std::byte>> parts) {
  return write_at(fd_, path_, offset, parts);
}

void PositionedFile::sync() {
  if (::fsync(fd_) != 0)
    throw_input("{}: write failed: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
}

void PositionedFile::forget(std::uint64_t offset, std::uint64_t bytes) const {
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
}

std::uint32_t PositionedFile::crc(std::uint64_t offset, std::uint64_t bytes) const {
  const auto n_pieces = static_cast<std::size_t>((bytes + kPiece - 1) / kPiece);
  std::vector<std::uint32_t> crcs(n_pieces);
  std::atomic<int> failure = 0;
  const auto length_of = [&](std::size_t i) { return std::min<std::uint64_t>(kPiece, bytes - i * kPiece); };
#pragma omp parallel
  {
    std::vector<std::byte> buffer;
    try {
      buffer.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, bytes)));
    } catch (const std::bad_alloc&) {
      failure = ENOMEM;  // no exception leaves a parallel region
    }
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < n_pieces; ++i) {
      const auto length = static_cast<std::size_t>(length_of(i));
      for (std::size_t done = 0; done < length && failure == 0;) {
        const ssize_t n =
            ::pread(fd_, buffer.data() + done, length - done, static_cast<off_t>(offset + i * kPiece + done));
        if (n == 0) failure = ENODATA;
        if (n < 0 && errno != EINTR) failure = errno;
        if (n > 0) done += static_cast<std::size_t>(n);
      }
      if (failure == 0)
        crcs[i] =
            static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(buffer.data()), length));
    }
  }
  if (failure != 0)
    throw_input("{}: {} bytes from byte {} on cannot be read back: {}; {}", path_.string(), bytes, offset,
                std::strerror(failure), advice_for(failure));
  std::uint32_t crc = 0;
  for (std::size_t i = 0; i < n_pieces; ++i) crc = crc32_of_both(crc, crcs[i], length_of(i));
  return crc;
}

std::string stand_in(std::span<const std::byte> bytes) {
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  constexpr std::string_view kWhite = "\xEF\xBB\xBF \t\r\n";
  if (all.empty()) return "is empty; copy or download it again";
  if (all.starts_with("version https://git-lfs"))
    return "is a Git LFS pointer, not the file itself; fetch the file with 'git lfs pull'";
  if (all.starts_with("PK\3\4"))
    return "is a zip archive (PyTorch's .bin and .pt are); unpack it, or convert it to what is expected here";
  if (all.starts_with("\x1f\x8b")) return "is compressed with gzip; unpack it";
  std::string head(all.substr(std::min(all.find_first_not_of(kWhite), all.size())).substr(0, 9));
  for (char& c : head) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (head.starts_with("<!doctype") || head.starts_with("<html") || head.starts_with("<?xml"))
    return "is a web page, an answer of the server that it came from; download it again";
  return "";
}

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

std::string read_text_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  file.close();
}

void sync_directory(const std::filesystem::path& path) {
  // Some file systems do not open or sync directories; a rename itself is still atomic there.
  const auto check = [&](bool done) {
    if (!done && (errno == EIO || errno == ENOSPC || errno == EDQUOT || errno == EMFILE || errno == ENFILE ||
                  errno == ENOMEM))
      throw_input("{}: cannot be synced to the disk: {}; {}", path.string(), std::strerror(errno),
                  advice_for(errno));
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(fd >= 0);
  if (fd < 0) return;
  const bool synced = ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  errno = error;
  check(synced);
}

// Mapped window by window, so that a large file never counts as this process's memory.
std::uint32_t crc32_of_file(const std::filesystem::path& path, std::uint64_t offset, std::uint64_t bytes) {
  constexpr std::size_t kWindow = std::size_t{32} << 20;
  const MappedFile file(path);
  if (offset + bytes > file.bytes().size())
    throw_input("{}: has {} bytes, expected {}; the file was cut", path.string(), file.bytes().size(),
                offset + bytes);
  const auto part = file.bytes().subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(bytes));
  std::uint32_t crc = 0;
  for (std::size_t begin = 0; begin < part.size(); begin += kWindow) {
    const auto window = part.subspan(begin, std::min(kWindow, part.size() - begin));
    crc = crc32_of_both(crc, crc32(window), window.size());
    file.release(window);
  }
  return crc;
}

std::uint32_t crc32_of_file(const std::filesystem::path& path) {
  return crc32_of_file(path, 0, MappedFile(path).bytes().size());
}

std::uint32_t crc32(std::span<const std::byte> bytes) {
  constexpr std::size_t kCrcPiece = std::size_t{4} << 20;
  const auto n_pieces = static_cast<std::int64_t>((bytes.size() + kCrcPiece - 1) / kCrcPiece);
  std::vector<std::uint32_t> crcs(static_cast<std::size_t>(n_pieces));
  const auto piece_of = [&](std::int64_t i) {
    const std::size_t begin = static_cast<std::size_t>(i) * kCrcPiece;
    return bytes.subspan(begin, std::min(kCrcPiece, bytes.size() - begin));
  };
#pragma omp parallel for schedule(static) if (n_pieces > 1)
  for (std::int64_t i = 0; i < n_pieces; ++i) {
    const auto piece = piece_of(i);
    crcs[static_cast<std::size_t>(i)] =
        static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(piece.data()), piece.size()));
  }
  std::uint32_t crc = 0;
  for (std::int64_t i = 0; i < n_pieces; ++i)
    crc = crc32_of_both(crc, crcs[static_cast<std::size_t>(i)], piece_of(i).size());
  return crc;
}

std::uint32_t crc32_of_both(std::uint32_t first, std::uint32_t second, std::uint64_t bytes) {
  return static_cast<std::uint32_t>(::crc32_combine(first, second, static_cast<z_off_t>(bytes)));
}

void require_free_space(const std::filesystem::path& directory, std::uint64_t needed) {
  const auto space = disk_space(directory);
  if (space && space->free < needed)
    throw_input("{}: {} bytes are needed and {} are free; free some space or choose another --out",
                directory.string(), needed, space->free);
}

TemporaryDirectory::TemporaryDirectory(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code error;
  std::filesystem::create_directory(path_, error);
  if (error) throw_input("{}: cannot be created: {}", path_.string(), error.message());
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  if (!kept_) std::filesystem::remove_all(path_, ignored);
}

}  // namespace switchyard
