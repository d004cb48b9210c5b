#include <gtest/gtest.h>
#include <zlib.h>

#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/rng.h"
#include "temp_dir.h"

namespace switchyard {
namespace {

using test::message_of;
using test::TempDir;

std::vector<std::byte> random_bytes(std::size_t n) {
  const Rng rng(n, RngPurpose::init, 0);
  std::vector<std::byte> bytes(n);
  for (std::size_t i = 0; i < n; i += 8) {
    const std::uint64_t word = rng.bits(i);
    std::memcpy(bytes.data() + i, &word, std::min<std::size_t>(8, n - i));
  }
  return bytes;
}

std::uint32_t zlib_crc(std::span<const std::byte> bytes) {
  return static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

TEST(Crc32, TheCheckValueOfTheStandard) {
  EXPECT_EQ(crc32(std::as_bytes(std::span("123456789", 9))), 0xCBF43926u);
}

// The sizes are around those at which the work is split among threads.
TEST(Crc32, EqualsZlib) {
  constexpr std::size_t kPiece = std::size_t{4} << 20;
  for (const std::size_t n :
       {std::size_t{0}, std::size_t{1}, kPiece - 1, kPiece, kPiece + 1, 3 * kPiece + 12345}) {
    const auto bytes = random_bytes(n);
    EXPECT_EQ(crc32(bytes), zlib_crc(bytes)) << n << " bytes";
  }
}

TEST(OutputFile, WritesWhatItSaysAndSumsIt) {
  const TempDir dir;
  const auto bytes = random_bytes((std::size_t{2} << 20) + 77);
  OutputFile file(dir / "out");
  file.write(std::span(bytes).first(100));
  file.write(std::span(bytes).subspan(100));
  file.close();
  EXPECT_EQ(file.bytes_written(), bytes.size());
  EXPECT_EQ(file.crc(), zlib_crc(bytes));
  const MappedFile back(dir / "out");
  ASSERT_EQ(back.bytes().size(), bytes.size());
  EXPECT_EQ(std::memcmp(back.bytes().data(), bytes.data(), bytes.size()), 0);
}

TEST(OutputFile, AppendKeepsAndCreateReplaces) {
  const TempDir dir;
  write_text_file(dir / "log", "one\n");
  {
    OutputFile file(dir / "log", OutputFile::Mode::append);
    file.write("two\n");
    file.close();
  }
  EXPECT_EQ(read_text_file(dir / "log"), "one\ntwo\n");
  write_text_file(dir / "log", "new");
  EXPECT_EQ(read_text_file(dir / "log"), "new");
}

TEST(OutputFile, AFullDeviceIsAnInputErrorWithPathAndReason) {
  OutputFile file("/dev/full");
  const std::string message = message_of<InputError>([&] { file.write("some text"); });
  EXPECT_CONTAINS(message, "/dev/full");
  EXPECT_CONTAINS(message, "No space left on device");
}

TEST(OutputFile, NoDirectoryIsAnInputErrorWithPathAndReason) {
  const TempDir dir;
  const auto path = dir / "missing/file";
  const std::string message = message_of<InputError>([&] { OutputFile file(path); });
  EXPECT_CONTAINS(message, path.string());
  EXPECT_CONTAINS(message, "No such file or directory");
}

TEST(MappedFile, EmptyMissingAndDirectory) {
  const TempDir dir;
  test::write_bytes(dir / "empty", "");
  EXPECT_TRUE(MappedFile(dir / "empty").bytes().empty());
  EXPECT_CONTAINS(message_of<InputError>([&] { MappedFile file(dir / "none"); }), (dir / "none").string());
  EXPECT_CONTAINS(message_of<InputError>([&] { MappedFile file(dir.path()); }), "not a regular file");
}

TEST(MappedFile, IsFoundByAnAddressInIt) {
  const TempDir dir;
  const std::filesystem::path path = dir / "a file.bin";
  test::write_bytes(path, std::string(3 * 4096, 'x'));
  const MappedFile file(path);
  char name[512];
  for (const std::size_t at : {std::size_t{0}, std::size_t{5000}, file.bytes().size() - 1}) {
    ASSERT_TRUE(find_mapped_file(file.bytes().data() + at, name, sizeof name));
    EXPECT_EQ(std::string(name), path.string());
  }
  ASSERT_TRUE(find_mapped_file(file.bytes().data(), name, 5));
  EXPECT_EQ(std::string(name), path.string().substr(0, 4));  // cut, and ended
  EXPECT_FALSE(find_mapped_file(name, name, sizeof name)) << "a stack is no file";
  EXPECT_FALSE(find_mapped_file(nullptr, name, sizeof name));
}

TEST(MappedFile, MovesItsMapping) {
  const TempDir dir;
  test::write_bytes(dir / "a", "abc");
  test::write_bytes(dir / "b", "defg");
  MappedFile a(dir / "a");
  MappedFile b(std::move(a));
  EXPECT_EQ(b.bytes().size(), 3u);
  b = MappedFile(dir / "b");
  ASSERT_EQ(b.bytes().size(), 4u);
  EXPECT_EQ(b.bytes()[3], std::byte{'g'});
  EXPECT_EQ(b.path(), dir / "b");
}

// Two writers, out of order, of several parts each: more than one piece, and pieces that end inside a part.
TEST(PositionedFile, SeveralWritersMakeOneFile) {
  const TempDir dir;
  const std::vector<std::byte> bytes = random_bytes((std::size_t{5} << 20) + 13);
  const std::span<const std::byte> all(bytes);
  const std::size_t cut = (std::size_t{2} << 20) + 7;
  PositionedFile::create(dir / "file", bytes.size());
  PositionedFile first(dir / "file"), second(dir / "file");
  const std::span<const std::byte> behind[] = {all.subspan(cut, 1000), all.subspan(cut + 1000)};
  const std::span<const std::byte> before[] = {all.first(3), all.subspan(3, 0), all.subspan(3, cut - 3)};
  const std::uint32_t crc_behind = second.write(cut, behind), crc_before = first.write(0, before);
  first.sync();
  first.forget(0, bytes.size());
  EXPECT_EQ(crc_before, crc32(all.first(cut)));
  EXPECT_EQ(crc_behind, crc32(all.subspan(cut)));
  EXPECT_EQ(crc32_of_both(crc_before, crc_behind, bytes.size() - cut), crc32(all));
  EXPECT_EQ(first.crc(0, bytes.size()), crc32(all));
  EXPECT_EQ(second.crc(cut, 1000), crc32(behind[0]));
  EXPECT_EQ(crc32_of_file(dir / "file"), crc32(all));
  EXPECT_EQ(crc32_of_file(dir / "file", cut, 1000), crc32(behind[0]));
  EXPECT_EQ(crc32_of_file(dir / "file", 0, 0), 0u);
}

TEST(PositionedFile, WhatIsNotThereIsAnInputErrorWithPath) {
  const TempDir dir;
  EXPECT_CONTAINS(message_of<InputError>([&] { PositionedFile file(dir / "none"); }), (dir / "none").string());
  PositionedFile::create(dir / "short", 10);
  const PositionedFile file(dir / "short");
  EXPECT_CONTAINS(message_of<InputError>([&] { file.crc(5, 6); }), (dir / "short").string());
  EXPECT_CONTAINS(message_of<InputError>([&] { crc32_of_file(dir / "short", 5, 6); }), "the file was cut");
  PositionedFile full("/dev/full");
  const std::span<const std::byte> part = std::as_bytes(std::span("x", 1));
  const std::string message = message_of<InputError>([&] { full.write(0, std::span(&part, 1)); });
  EXPECT_CONTAINS(message, "/dev/full");
  EXPECT_CONTAINS(message, "No space left on device");
}

TEST(DiskSpace, TooLittleIsReportedWithBothFigures) {
  const TempDir place;
  EXPECT_NO_THROW(require_free_space(place.path(), 1));
  const std::string message =
      message_of<InputError>([&] { require_free_space(place.path(), std::uint64_t{1} << 62); });
  EXPECT_CONTAINS(message, place.path().string());
  EXPECT_CONTAINS(message, "4611686018427387904 bytes are needed");
}

}  // namespace
}  // namespace switchyard
