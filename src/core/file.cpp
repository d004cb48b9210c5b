#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

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
    default:
      return "check the path";
  }
}

}  // namespace

MappedFile::MappedFile(std::filesystem::path path) : path_(std::move(path)) {
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_input("{}: cannot be opened: {}; check the path", path_.string(), std::strerror(errno));
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
      throw_input("{}: cannot be mapped: {}", path_.string(), std::strerror(error));
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
  // The checksum is taken piece by piece just after each piece is written, while it is in the cache.
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  if (seekable_ && bytes.size() >= 4 * kPiece) return write_large(bytes);
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPiece));
    const ssize_t n = ::write(fd_, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      throw_input("{}: write failed after {} bytes: {}; {}", path_.string(), written_, std::strerror(errno),
                  advice_for(errno));
    const auto done = static_cast<std::size_t>(n);
    crc_ = static_cast<std::uint32_t>(::crc32_z(crc_, reinterpret_cast<const Bytef*>(piece.data()), done));
    written_ += done;
    bytes = bytes.subspan(done);
  }
}

// Pieces in parallel: while one thread's piece is being written, others take their checksums.
void OutputFile::write_large(std::span<const std::byte> bytes) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  const auto pieces = static_cast<std::int64_t>((bytes.size() + kPiece - 1) / kPiece);
  std::vector<uLong> crcs(static_cast<std::size_t>(pieces));
  std::atomic<int> failure = 0;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < pieces; ++i) {
    const std::size_t begin = static_cast<std::size_t>(i) * kPiece;
    const auto piece = bytes.subspan(begin, std::min(kPiece, bytes.size() - begin));
    for (std::size_t done = 0; done < piece.size() && failure == 0;) {
      const ssize_t n =
          ::pwrite(fd_, piece.data() + done, piece.size() - done, static_cast<off_t>(written_ + begin + done));
      if (n < 0 && errno != EINTR) failure = errno;
      if (n > 0) done += static_cast<std::size_t>(n);
    }
    crcs[static_cast<std::size_t>(i)] =
        ::crc32_z(0, reinterpret_cast<const Bytef*>(piece.data()), piece.size());
  }
  if (failure != 0)
    throw_input("{}: write failed after {} bytes: {}; {}", path_.string(), written_, std::strerror(failure),
                advice_for(failure));
  for (std::int64_t i = 0; i < pieces; ++i) {
    const std::size_t left = bytes.size() - static_cast<std::size_t>(i) * kPiece;
    crc_ = static_cast<std::uint32_t>(
        ::crc32_combine(crc_, crcs[static_cast<std::size_t>(i)], static_cast<z_off_t>(std::min(left, kPiece))));
  }
  written_ += bytes.size();
  if (::lseek(fd_, static_cast<off_t>(written_), SEEK_SET) < 0)
    throw_input("{}: write failed: {}; {}", path_.string(), std::strerror(errno), advice_for(errno));
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
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // some file systems do not open directories; the rename itself is still atomic
  ::fsync(fd);
  ::close(fd);
}

// Mapped window by window, so that a large file never counts as this process's memory.
std::uint32_t crc32_of_file(const std::filesystem::path& path) {
  constexpr std::size_t kWindow = std::size_t{32} << 20;
  const MappedFile file(path);
  uLong crc = 0;
  for (std::size_t begin = 0; begin < file.bytes().size(); begin += kWindow) {
    const auto window = file.bytes().subspan(begin, std::min(kWindow, file.bytes().size() - begin));
    crc = ::crc32_combine(crc, crc32(window), static_cast<z_off_t>(window.size()));
    file.release(window);
  }
  return static_cast<std::uint32_t>(crc);
}

std::uint32_t crc32(std::span<const std::byte> bytes) {
  constexpr std::size_t kPiece = std::size_t{4} << 20;
  const auto pieces = static_cast<std::int64_t>((bytes.size() + kPiece - 1) / kPiece);
  std::vector<uLong> crcs(static_cast<std::size_t>(pieces));
#pragma omp parallel for schedule(static) if (pieces > 1)
  for (std::int64_t i = 0; i < pieces; ++i) {
    const auto piece = bytes.subspan(static_cast<std::size_t>(i) * kPiece);
    crcs[static_cast<std::size_t>(i)] =
        ::crc32_z(0, reinterpret_cast<const Bytef*>(piece.data()), std::min(piece.size(), kPiece));
  }
  uLong crc = 0;
  for (std::int64_t i = 0; i < pieces; ++i) {
    const std::size_t left = bytes.size() - static_cast<std::size_t>(i) * kPiece;
    crc = ::crc32_combine(crc, crcs[static_cast<std::size_t>(i)], static_cast<z_off_t>(std::min(left, kPiece)));
  }
  return static_cast<std::uint32_t>(crc);
}

void require_free_space(const std::filesystem::path& directory, std::uint64_t needed) {
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0 || info.f_blocks == 0) return;
  const std::uint64_t free = std::uint64_t{info.f_bavail} * info.f_frsize;
  if (free < needed)
    throw_input("{}: {} bytes are needed and {} are free; free some space or choose another --out",
                directory.string(), needed, free);
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
