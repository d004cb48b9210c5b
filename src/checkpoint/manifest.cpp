#include "checkpoint/manifest.h"

#include <fmt/format.h>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::checkpoint {

namespace fs = std::filesystem;

std::string crc_text(std::uint32_t crc) { return fmt::format("{:08x}", crc); }

std::string manifest_json(const std::vector<std::pair<std::string, FileDigest>>& files) {
  Json manifest;
  manifest["format_version"] = kCheckpointFormat;
  for (const auto& [name, digest] : files) {
    manifest["files"][name] = Json::Object{{"bytes", digest.bytes}, {"crc32", crc_text(digest.crc)}};
  }
  return to_text(manifest);
}

std::vector<ManifestEntry> parse_manifest(std::string_view text, const std::string& origin) {
  const Json manifest = sorted(parse_stored_json(text, origin));
  const auto damaged = [&origin](const std::string& what) {
    throw_input("{}: {}; the checkpoint is damaged or of another version, use another one", origin, what);
  };
  if (manifest.size() != 2 || !manifest.contains("format_version") || !manifest["files"].is_object())
    damaged("is not {format_version, files}");
  if (manifest["format_version"] != kCheckpointFormat)
    damaged(fmt::format("format_version is {}, known is {}", printable(to_line(manifest["format_version"])),
                        kCheckpointFormat));
  std::vector<ManifestEntry> files;
  for (const auto& [name, entry] : manifest["files"].object()) {
    if (!is_plain_file_name(name) || name == kManifest)
      damaged(fmt::format("{} is not the name of a file", in_quotes(name)));
    const std::optional<std::uint64_t> bytes = entry["bytes"].whole();
    if (entry.size() != 2 || !bytes || !entry["crc32"].is_string())
      damaged(fmt::format("the entry of {} is not {{bytes, crc32}}", in_quotes(name)));
    files.push_back({name, *bytes, entry["crc32"].text()});
  }
  return files;
}

}  // namespace switchyard::checkpoint
