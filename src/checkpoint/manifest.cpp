#include "checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>
#include <system_error>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"
#include "parallel/agreement.h"

namespace switchyard::checkpoint {

namespace fs = std::filesystem;

std::string crc_text(std::uint32_t crc) { return fmt::format("{:08x}", crc); }

std::string manifest_json(const std::vector<std::pair<std::string, FileDigest>>& files) {
  Json manifest;
  manifest["format_version"] = kCheckpointFormat;
  for (const auto& [name, digest] : files)
    manifest["files"][name] = Json(Json::Object{{"bytes", digest.bytes}, {"crc32", crc_text(digest.crc)}});
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

namespace {

// That the files are there, and no other, and how long they are.
void check_sizes(const fs::path& directory, const std::vector<ManifestEntry>& files) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    const bool vouched =
        name == kManifest ||
        std::any_of(files.begin(), files.end(), [&](const ManifestEntry& file) { return file.name == name; });
    if (!vouched)
      throw_input("{}: is not in {}; remove it or use another checkpoint", entry.path().string(), kManifest);
  }
  if (error) throw_input("{}: cannot be listed: {}", directory.string(), error.message());
  for (const ManifestEntry& expected : files) {
    const fs::path path = directory / expected.name;
    if (!fs::exists(path, error))
      throw_input("{}: is missing, though {} lists it; use another checkpoint", path.string(), kManifest);
    if (const std::uint64_t bytes = fs::file_size(path, error); bytes != expected.bytes)
      throw_input("{}: has {} bytes, {} says {}; the file was cut or changed, use another checkpoint",
                  path.string(), bytes, kManifest, expected.bytes);
  }
}

constexpr std::uint64_t kPortion = std::uint64_t{64} << 20;
struct Portion {
  std::size_t file = 0;
  std::uint64_t offset = 0, bytes = 0;
};

// The bytes of the files in their order; each rank has a run of neighbours of them.
std::vector<Portion> portions_of(const std::vector<ManifestEntry>& files) {
  std::vector<Portion> portions;
  for (std::size_t file = 0; file < files.size(); ++file)
    for (std::uint64_t offset = 0; offset < files[file].bytes; offset += kPortion)
      portions.push_back({file, offset, std::min(kPortion, files[file].bytes - offset)});
  return portions;
}

}  // namespace

void verify_files(const fs::path& directory, const std::vector<ManifestEntry>& files,
                  const parallel::Group& all) {
  parallel::by_first(all, [&] {
    check_sizes(directory, files);
    return "";
  });
  const std::vector<Portion> portions = portions_of(files);
  const std::vector<std::string> texts = parallel::gather(all, [&] {
    const auto own = parallel::part_of(static_cast<std::int64_t>(portions.size()), 1, all.size(), all.place());
    std::string text;
    for (std::int64_t i = own.first; i < own.first + own.count; ++i) {
      const Portion& portion = portions[static_cast<std::size_t>(i)];
      mark("checksum of checkpoint file", static_cast<std::int64_t>(portion.file));
      text += fmt::format("{} ",
                          crc32_of_file(directory / files[portion.file].name, portion.offset, portion.bytes));
    }
    return text;
  });
  std::istringstream sums(fmt::format("{}", fmt::join(texts, "")));
  std::vector<std::uint32_t> crc_F(files.size());
  for (const Portion& portion : portions) {
    std::uint32_t crc = 0;
    sums >> crc;
    crc_F[portion.file] = crc32_of_both(crc_F[portion.file], crc, portion.bytes);
  }
  for (std::size_t i = 0; i < files.size(); ++i)
    if (const std::string crc = crc_text(crc_F[i]); crc != files[i].crc)
      throw_input("{}: has CRC-32 {}, {} says {}; the file is damaged, use another checkpoint",
                  (directory / files[i].name).string(), crc, kManifest, files[i].crc);
}

}  // namespace switchyard::checkpoint
