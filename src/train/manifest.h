// manifest.json of a checkpoint: size and CRC-32 of every other file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/safetensors_writer.h"

namespace switchyard::train {

constexpr const char* kManifest = "manifest.json";
constexpr int kCheckpointFormat = 1;

struct VouchedFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string crc;  // as crc_text writes it
};

std::string crc_text(std::uint32_t crc);
std::string manifest_json(const std::vector<std::pair<std::string, FileDigest>>& files);
// Throws InputError naming `origin` where the text is not a manifest of this version.
std::vector<VouchedFile> parse_manifest(std::string_view text, const std::string& origin);

}  // namespace switchyard::train
