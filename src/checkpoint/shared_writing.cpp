#include "checkpoint/shared_writing.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "parallel/agreement.h"

namespace switchyard::checkpoint {

namespace {

constexpr std::uint64_t kPortion = std::uint64_t{64} << 20;

// Neighbouring bytes of a file that one rank owns.
struct Range {
  std::size_t file = 0;
  std::uint64_t offset = 0, bytes = 0;
  int place = 0;            // of the rank that owns them
  std::uint32_t meant = 0;  // CRC-32 of its memory
  std::uint32_t found = 0;  // of the file, or of what was handed to the system where nothing is read back
};

bool by_place_in_files(const Range& a, const Range& b) {
  return std::tie(a.file, a.offset) < std::tie(b.file, b.offset);
}

std::vector<Range> ranges_of(std::span<const FilePiece> pieces, int place) {
  std::vector<Range> ranges;
  for (const FilePiece& piece : pieces) {
    if (piece.bytes.empty()) continue;
    const bool goes_on = !ranges.empty() && ranges.back().file == piece.file &&
                         ranges.back().offset + ranges.back().bytes == piece.offset;
    if (!goes_on) ranges.push_back({.file = piece.file, .offset = piece.offset, .place = place});
    ranges.back().bytes += piece.bytes.size();
  }
  return ranges;
}

// The ranges of all ranks, in the order of the files.
std::vector<Range> ranges_of_all(std::span<const FilePiece> own, const parallel::Group& all) {
  std::string text;
  for (const Range& range : ranges_of(own, all.place()))
    text += fmt::format("{} {} {}\n", range.file, range.offset, range.bytes);
  const std::vector<std::string> texts = all.gather_text(text);
  std::vector<Range> ranges;
  for (int place = 0; place < all.size(); ++place) {
    std::istringstream lines(texts[static_cast<std::size_t>(place)]);
    for (Range range{.place = place}; lines >> range.file >> range.offset >> range.bytes;)
      ranges.push_back(range);
  }
  std::sort(ranges.begin(), ranges.end(), by_place_in_files);
  return ranges;
}

void check_covered(const std::vector<FileLayout>& files, std::span<const Range> ranges) {
  std::vector<std::uint64_t> end_F(files.size());
  for (const Range& range : ranges) {
    SY_CHECK(range.file < files.size() && range.offset == end_F[range.file],
             "rank {} has bytes from {} on of file {}, which is written up to {}", range.place, range.offset,
             range.file, range.file < files.size() ? end_F[range.file] : 0);
    end_F[range.file] += range.bytes;
  }
  for (std::size_t i = 0; i < files.size(); ++i)
    SY_CHECK(end_F[i] == files[i].bytes, "{} has {} bytes, the ranks write {}", files[i].name, files[i].bytes,
             end_F[i]);
}

// The pieces of this rank, asked for portion after portion, ascending.
class OwnBytes {
 public:
  explicit OwnBytes(std::span<const FilePiece> pieces) : pieces_(pieces) {}

  // In host memory until the next call.
  std::span<const std::span<const std::byte>> portion(std::size_t file, std::uint64_t offset,
                                                      std::uint64_t bytes) {
    parts_.clear();
    copies_.clear();
    for (const std::uint64_t end = offset + bytes; offset < end;) {
      while (pieces_.front().file != file || pieces_.front().offset + pieces_.front().bytes.size() <= offset)
        pieces_ = pieces_.subspan(1);
      const FilePiece& piece = pieces_.front();
      const auto first = static_cast<std::size_t>(offset - piece.offset);
      const auto count =
          static_cast<std::size_t>(std::min<std::uint64_t>(end - offset, piece.bytes.size() - first));
      parts_.push_back(piece.on_device.defined() ? copied(piece.on_device, first, count)
                                                 : piece.bytes.subspan(first, count));
      offset += count;
    }
    return parts_;
  }

 private:
  std::span<const std::byte> copied(const Tensor& tensor_N, std::size_t first, std::size_t count) {
    const auto size = static_cast<std::size_t>(size_of(tensor_N.dtype()));
    SY_CHECK(first % size == 0 && count % size == 0, "a portion ends inside a number");
    copies_.emplace_back(
        tensor_N.slice(static_cast<std::int64_t>(first / size), static_cast<std::int64_t>(count / size)));
    return {static_cast<const std::byte*>(copies_.back()->raw()), count};
  }

  std::span<const FilePiece> pieces_;
  std::vector<std::span<const std::byte>> parts_;
  std::vector<HostCopy> copies_;
};

// Writes what this rank has to write, and takes sums. What fails is kept for the others to hear of: until then
// this rank goes on to send and to receive, since they wait for it.
class Writing {
 public:
  Writing(const std::filesystem::path& directory, const std::vector<FileLayout>& files,
          std::span<const FilePiece> own, config::Writers writers, bool verify, const parallel::Group& all)
      : directory_(directory),
        files_(files),
        own_(own),
        writers_(writers),
        verify_(verify),
        all_(all),
        open_(files.size()) {}

  void write(Range& range) {
    for (std::uint64_t begin = 0; begin < range.bytes; begin += kPortion) {
      const std::uint64_t bytes = std::min(kPortion, range.bytes - begin);
      mark("checkpoint file", static_cast<std::int64_t>(range.file));
      if (is_owner(range) || is_writer(range)) attempt([&] { call_hook(WritingStage::write, range); });
      const Sums sums = portion(range, range.offset + begin, bytes);
      if (sums.owned) range.meant = crc32_of_both(range.meant, *sums.owned, bytes);
      if (sums.written && !verify_) range.found = crc32_of_both(range.found, *sums.written, bytes);
    }
  }

  // What has been written goes to the disk; to be verified it leaves the system's cache, and is read from the
  // disk.
  void sync_and_read_back(std::span<Range> ranges) {
    attempt([&] { sync(); });
    if (!verify_) return;
    for (Range& range : ranges) read_back(range);
  }

  bool is_owner(const Range& range) const { return range.place == all_.place(); }
  bool is_writer(const Range& range) const { return writer_of(range) == all_.place(); }
  int writer_of(const Range& range) const { return writers_ == config::Writers::all ? range.place : 0; }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  // CRC-32 of a portion in the owner's memory, and as it was written; none: not by this rank, or it has failed.
  struct Sums {
    std::optional<std::uint32_t> owned, written;
  };

  void sync() {
    for (std::optional<PositionedFile>& file : open_)
      if (file) file->sync();
  }

  void read_back(Range& range) {
    if (!is_writer(range)) return;
    for (std::uint64_t begin = 0; begin < range.bytes; begin += kPortion) {
      const std::uint64_t bytes = std::min(kPortion, range.bytes - begin);
      mark("reading back of checkpoint file", static_cast<std::int64_t>(range.file));
      attempt([&] {
        call_hook(WritingStage::read_back, range);
        const PositionedFile& file = *open_[range.file];
        file.forget(range.offset + begin, bytes);
        range.found = crc32_of_both(range.found, file.crc(range.offset + begin, bytes), bytes);
      });
    }
  }

  Sums portion(const Range& range, std::uint64_t offset, std::uint64_t bytes) {
    Sums sums;
    if (is_owner(range) && is_writer(range)) {
      attempt([&] { sums.owned = file(range.file).write(offset, own_.portion(range.file, offset, bytes)); });
      sums.written = sums.owned;
    } else if (is_owner(range)) {
      buffer_.resize(bytes);
      attempt([&] {
        auto* to = buffer_.data();
        for (const auto& part : own_.portion(range.file, offset, bytes))
          to = std::copy(part.begin(), part.end(), to);
        sums.owned = crc32(buffer_);
      });
      all_.send(writer_of(range), buffer_, parallel::Traffic::checkpoint);
    } else if (is_writer(range)) {
      buffer_.resize(bytes);
      all_.receive(range.place, buffer_, parallel::Traffic::checkpoint);
      const std::span<const std::byte> received(buffer_);
      attempt([&] { sums.written = file(range.file).write(offset, std::span(&received, 1)); });
    }
    return sums;
  }

  void call_hook(WritingStage stage, const Range& range) const {
    if (writing_hook != nullptr) writing_hook(stage, directory_ / files_[range.file].name, all_.place());
  }

  PositionedFile& file(std::size_t index) {
    if (!open_[index]) open_[index].emplace(directory_ / files_[index].name);
    return *open_[index];
  }

  template <class F>
  void attempt(const F& f) {
    if (error_) return;
    try {
      f();
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  const std::filesystem::path& directory_;
  const std::vector<FileLayout>& files_;
  OwnBytes own_;
  config::Writers writers_;
  bool verify_;
  const parallel::Group& all_;
  std::vector<std::optional<PositionedFile>> open_;
  std::vector<std::byte> buffer_;
  std::exception_ptr error_;
};

// Sums of the memory and of the file, of the ranges of each rank, to every rank.
void exchange_sums(std::vector<Range>& ranges, const Writing& writing, const parallel::Group& all) {
  const std::vector<std::string> texts = parallel::gather(all, [&] {
    writing.rethrow();
    std::string text;
    for (const Range& range : ranges) {
      if (writing.is_owner(range)) text += fmt::format("{} ", range.meant);
      if (writing.is_writer(range)) text += fmt::format("{} ", range.found);
    }
    return text;
  });
  std::vector<std::istringstream> numbers;
  for (const std::string& text : texts) numbers.emplace_back(text);
  for (Range& range : ranges) {
    numbers[static_cast<std::size_t>(range.place)] >> range.meant;
    numbers[static_cast<std::size_t>(writing.writer_of(range))] >> range.found;
  }
}

}  // namespace

WritingHook writing_hook = nullptr;

FilePiece piece_of(const TensorPlace& place, std::int64_t first_element, const Tensor& tensor_N) {
  SY_CHECK(tensor_N.contiguous(), "a tensor that is not contiguous is written");
  FilePiece piece{
      .file = place.file,
      .offset = place.offset + static_cast<std::uint64_t>(first_element * size_of(tensor_N.dtype())),
      .bytes = {static_cast<const std::byte*>(tensor_N.raw()), static_cast<std::size_t>(tensor_N.nbytes())}};
  if (tensor_N.device() != Device::cpu) piece.on_device = tensor_N.reshape({tensor_N.numel()});
  return piece;
}

std::vector<FileDigest> write_together(const std::filesystem::path& directory,
                                       const std::vector<FileLayout>& files, std::vector<FilePiece> own,
                                       config::Writers writers, bool verify, const parallel::Group& all) {
  std::sort(own.begin(), own.end(), [](const FilePiece& a, const FilePiece& b) {
    return std::tie(a.file, a.offset) < std::tie(b.file, b.offset);
  });
  std::vector<Range> ranges = ranges_of_all(own, all);
  check_covered(files, ranges);
  parallel::by_first(all, [&] {
    for (const FileLayout& file : files) PositionedFile::create(directory / file.name, file.bytes);
    return "";
  });

  Writing writing(directory, files, own, writers, verify, all);
  for (Range& range : ranges) writing.write(range);
  writing.sync_and_read_back(ranges);
  exchange_sums(ranges, writing, all);

  std::vector<FileDigest> digests(files.size());
  for (const Range& range : ranges) {
    if (range.found != range.meant)
      throw_input("{}: {} bytes from byte {} on, of rank {}, {}", (directory / files[range.file].name).string(),
                  range.bytes, range.offset, all.ranks()[static_cast<std::size_t>(range.place)],
                  verify ? "do not read back as they were written; the disk or the memory is at fault, choose "
                           "another directory"
                         : "changed on their way to the rank that writes; the memory or the network is at "
                           "fault, train elsewhere");
    FileDigest& digest = digests[range.file];
    digest.crc = crc32_of_both(digest.crc, range.found, range.bytes);
    digest.bytes += range.bytes;
  }
  return digests;
}

}  // namespace switchyard::checkpoint
