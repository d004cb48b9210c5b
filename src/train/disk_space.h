// Free space, asked before a long write begins.
#pragma once

#include <cstdint>
#include <filesystem>

namespace switchyard::train {

// Throws InputError, with path, bytes needed and bytes free, where the file system of `directory` has less room
// than `needed` bytes. A file system that does not tell passes: there the write itself fails.
void require_free_space(const std::filesystem::path& directory, std::uint64_t needed);

}  // namespace switchyard::train
