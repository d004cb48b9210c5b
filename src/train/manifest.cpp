#include "train/manifest.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/json_text.h"

namespace switchyard::train {

std::string crc_text(std::uint32_t crc) { return fmt::format("{:08x}", crc); }

std::string manifest_json(const std::vector<std::pair<std::string, FileDigest>>& files) {
  nlohmann::ordered_json manifest;
  manifest["format_version"] = kCheckpointFormat;
  for (const auto& [name, digest] : files)
    manifest["files"][name] = {{"bytes", digest.bytes}, {"crc32", crc_text(digest.crc)}};
  return manifest.dump(2) + "\n";
}

std::vector<VouchedFile> parse_manifest(std::string_view text, const std::string& origin) {
  const nlohmann::json manifest = parse_json_text(text, origin);
  const auto damaged = [&origin](const std::string& what) {
    throw_input("{}: {}; the checkpoint is damaged or of another version, use another one", origin, what);
  };
  if (!manifest.is_object() || manifest.size() != 2 || !manifest.contains("format_version") ||
      !manifest.contains("files") || !manifest["files"].is_object())
    damaged("is not {format_version, files}");
  if (manifest["format_version"] != kCheckpointFormat)
    damaged(fmt::format("format_version is {}, known is {}", printable(manifest["format_version"].dump()),
                        kCheckpointFormat));
  std::vector<VouchedFile> files;
  for (const auto& [name, entry] : manifest["files"].items()) {
    if (!is_plain_file_name(name) || name == kManifest)
      damaged(fmt::format("{} is not the name of a file", in_quotes(name)));
    if (!entry.is_object() || entry.size() != 2 || !entry.contains("bytes") ||
        !entry["bytes"].is_number_unsigned() || !entry.contains("crc32") || !entry["crc32"].is_string())
      damaged(fmt::format("the entry of {} is not {{bytes, crc32}}", in_quotes(name)));
    files.push_back({name, entry["bytes"].get<std::uint64_t>(), entry["crc32"].get<std::string>()});
  }
  return files;
}

}  // namespace switchyard::train
