// manifest.json of a checkpoint: size and CRC-32 of every other file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/weights_files.h"
#include "parallel/group.h"

namespace switchyard::checkpoint {

constexpr const char* kManifest = "manifest.json";
constexpr int kCheckpointFormat = 1;

struct ManifestEntry {
  std::string name;
  std::uint64_t bytes = 0;
  std::string crc;  // as crc_text writes it
};

std::string crc_text(std::uint32_t crc);
std::string manifest_json(const std::vector<std::pair<std::string, FileDigest>>& files);
// Throws InputError naming `origin` where the text is not a manifest of this version.
std::vector<ManifestEntry> parse_manifest(std::string_view text, const std::string& origin);

// Checks every file of `directory` against its manifest, and that no other file is there; each rank reads a
// part of the bytes. Throws InputError on every rank, naming the file and what is wrong with it.
void verify_files(const std::filesystem::path& directory, const std::vector<ManifestEntry>& files,
                  const parallel::Group& all);

}  // namespace switchyard::checkpoint
