#include <fmt/format.h>

#include <algorithm>
#include <sstream>
#include <system_error>

#include "checkpoint/manifest.h"
#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "parallel/agreement.h"

namespace switchyard::checkpoint {

namespace fs = std::filesystem;

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
