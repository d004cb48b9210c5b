// Files that all ranks of a run write together, each the parts that it owns. The bytes are those that one rank
// alone would have written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "checkpoint/file_layout.h"
#include "checkpoint/weights_files.h"
#include "config/config.h"
#include "core/tensor.h"
#include "parallel/group.h"

namespace switchyard::checkpoint {

// Bytes of this rank and where they belong: in memory of the host, or on a device.
struct FilePiece {
  std::size_t file = 0;
  std::uint64_t offset = 0;
  std::span<const std::byte> bytes;
  Tensor on_device{};  // defined: the bytes lie there, and `bytes` has only their number
};
FilePiece piece_of(const TensorPlace& place, std::int64_t first_element, const Tensor& tensor_N);

// Every rank writes its own pieces (Writers::all), or sends them to the first, which writes all of them in the
// order of the files; either way in portions of at most 64 MiB. All pieces of all ranks cover each file, its
// head included, once; else std::logic_error.
//
// What was written is synced and, with `verify`, read back from the disk; its CRC-32 is compared with that of
// the memory it came from. Without, what is compared are the bytes that were handed to the system. Returns size
// and CRC-32 of each file, on every rank. Throws on every rank, the same text, where one has failed: InputError
// that names the rank, the file and the cause. The caller removes `directory` then.
std::vector<FileDigest> write_together(const std::filesystem::path& directory,
                                       const std::vector<FileLayout>& files, std::vector<FilePiece> own,
                                       config::Writers writers, bool verify, const parallel::Group& all);

// Called on a rank before it writes, sends or reads back a portion of a file, where it is set: tests fill or
// spoil a disk by it.
enum class WritingStage { write, read_back };
using WritingHook = void (*)(WritingStage stage, const std::filesystem::path& file, int place);
extern WritingHook writing_hook;

}  // namespace switchyard::checkpoint
