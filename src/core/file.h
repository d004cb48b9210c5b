// Files: mapped reading, checked writing, checksums. A failed write says which file, why and how much was
// missing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace switchyard {

// A whole file, read only, mapped. Throws InputError (path and the system's reason) where it cannot be opened.
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // The pages that lie wholly in `part` no longer count as this process's memory; reading fetches them again.
  void release(std::span<const std::byte> part) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Copies to `path`, of `size` bytes, the name of the file that this process has mapped at `address`, cut where
// it is too long, and returns true; false where there is none. Takes no memory and may be called in a handler
// of signals: a mapped file that is cut meanwhile ends in SIGBUS where it is read.
bool find_mapped_file(const void* address, char* path, std::size_t size);

// A file written front to back. Each call checks; a full disk, a quota, a place without write permission throw
// InputError with the path and the system's reason. close() syncs to the disk; a destructor without close()
// leaves whatever was written, so callers write below a temporary name and rename.
class OutputFile {
 public:
  enum class Mode { create, append };
  explicit OutputFile(std::filesystem::path path, Mode mode = Mode::create);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void sync();   // to the disk; the file stays open
  void close();  // sync and close
  std::uint64_t bytes_written() const { return written_; }
  std::uint32_t crc() const { return crc_; }  // CRC-32 (zlib's) of all that was written through this object

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  bool seekable_ = false;  // pieces may be written out of order
  std::uint64_t written_ = 0;
  std::uint32_t crc_ = 0;
};

// A file of a length that is known before, of which several processes each write their own parts, in any order.
// Throws InputError like OutputFile.
class PositionedFile {
 public:
  // Makes the file, at its full length, of zeros; one process does so before any opens it.
  static void create(const std::filesystem::path& path, std::uint64_t bytes);
  explicit PositionedFile(std::filesystem::path path);
  ~PositionedFile();
  PositionedFile(PositionedFile&& other) noexcept;
  PositionedFile& operator=(PositionedFile&&) = delete;

  // Writes the parts side by side from `offset` on and returns the CRC-32 of all of them.
  std::uint32_t write(std::uint64_t offset, std::span<const std::span<const std::byte>> parts);
  void sync();  // to the disk
  // What was synced of these bytes leaves the system's cache: the next reading is from the disk.
  void forget(std::uint64_t offset, std::uint64_t bytes) const;
  // CRC-32 of what the file holds there.
  std::uint32_t crc(std::uint64_t offset, std::uint64_t bytes) const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

// What stands where a file should be and is not it: an empty file, a Git LFS pointer, a page of HTML, an
// archive. As the end of a message ("is empty; copy it again"); empty where it is none of these.
std::string stand_in(std::span<const std::byte> bytes);

std::string read_text_file(const std::filesystem::path& path);                   // throws InputError
void write_text_file(const std::filesystem::path& path, std::string_view text);  // create, write, sync, close
void sync_directory(const std::filesystem::path& path);                          // makes renames in it durable
std::uint32_t crc32_of_file(const std::filesystem::path& path);                  // throws InputError
// Of `bytes` of the file from `offset` on, which it has.
std::uint32_t crc32_of_file(const std::filesystem::path& path, std::uint64_t offset, std::uint64_t bytes);
std::uint32_t crc32(std::span<const std::byte> bytes);  // multi-threaded over large inputs
// Of two neighbours from the sums of both; `bytes`: length of the second.
std::uint32_t crc32_of_both(std::uint32_t first, std::uint32_t second, std::uint64_t bytes);

// True for the name of a file in the same directory: no path, not "." or "..".
bool is_plain_file_name(std::string_view name);

// Asked before a long write begins. Throws InputError, with path, bytes needed and bytes free, where the file
// system of `directory` has less room than `needed` bytes. A file system that does not tell passes: there the
// write itself fails.
void require_free_space(const std::filesystem::path& directory, std::uint64_t needed);

// A directory that is written before it is renamed to what it is to be: removed when this goes out of scope,
// unless it was told to keep it.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(std::filesystem::path path);  // throws InputError where it cannot be created
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }
  void keep() { kept_ = true; }

 private:
  std::filesystem::path path_;
  bool kept_ = false;
};

}  // namespace switchyard
