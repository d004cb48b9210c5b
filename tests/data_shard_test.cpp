#include <gtest/gtest.h>

#include <ostream>

#include "core/error.h"
#include "data/shard.h"
#include "shards.h"

namespace switchyard::data {
namespace {

using test::message_of;
using test::shard_bytes;
using test::TempDir;
using test::with_header;
using test::write_shard;

TEST(Shard, ReadsBothWidths) {
  const TempDir dir;
  const std::vector<std::uint32_t> tokens = {0, 1, 256, 40000, 65535};
  for (const int width : {2, 4}) {
    const Shard shard(write_shard(dir / "a.bin", tokens, width));
    EXPECT_EQ(shard.size(), 5);
    EXPECT_EQ(shard.token_bytes(), width);
    EXPECT_EQ(shard.byte_offset(3), 1024 + 3 * width);
    std::vector<std::int32_t> read(5, -1);
    shard.read(0, read);
    EXPECT_EQ(read, (std::vector<std::int32_t>{0, 1, 256, 40000, 65535}));
    std::vector<std::int32_t> middle(2, -1);
    shard.read(2, middle);
    EXPECT_EQ(middle, (std::vector<std::int32_t>{256, 40000}));
  }
}

TEST(Shard, ReadsWideTokens) {
  const TempDir dir;
  const Shard shard(write_shard(dir / "a.bin", {65536, 128255, 0xffffffff}, 4));
  std::vector<std::int32_t> read(3);
  shard.read(0, read);
  EXPECT_EQ(read, (std::vector<std::int32_t>{65536, 128255, -1}));
}

TEST(Shard, ReadingPastTheEndIsABrokenInvariant) {
  const TempDir dir;
  const Shard shard(write_shard(dir / "a.bin", {1, 2, 3}));
  std::vector<std::int32_t> read(2);
  EXPECT_THROW(shard.read(2, read), std::logic_error);
  EXPECT_THROW(shard.read(-1, read), std::logic_error);
  shard.read(3, std::span<std::int32_t>());
}

struct Broken {
  const char* what;
  std::string bytes;
  std::vector<std::string> message_parts;
  friend void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.what; }
};

class BrokenShard : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenShard, IsRefusedWithFileAndReason) {
  const TempDir dir;
  const auto path = dir / "broken.bin";
  test::write_bytes(path, GetParam().bytes);
  const std::string message = message_of<InputError>([&] { Shard shard(path); });
  EXPECT_CONTAINS(message, path.string());
  for (const auto& part : GetParam().message_parts) EXPECT_CONTAINS(message, part);
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

const std::string kGood = shard_bytes({1, 2, 3, 4});
const std::string kPadding(2000, '\0');

INSTANTIATE_TEST_SUITE_P(
    All, BrokenShard,
    ::testing::Values(
        Broken{"Empty", "", {"empty"}}, Broken{"TooSmall", kGood.substr(0, 1023), {"1023 bytes", "1024"}},
        Broken{"SmallText", "once upon a time\n", {"17 bytes", "text"}},
        Broken{
            "LfsPointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n", {"Git LFS pointer"}},
        Broken{"WrongMagic", with_header(kGood, 0, 20240326), {"20240326", "20240520", "20240801"}},
        Broken{"Gzip", "\x1f\x8b" + kPadding, {"gzip", "prepare_data.py"}},
        Broken{"Parquet", "PAR1" + kPadding, {"Parquet"}},
        Broken{"Safetensors", std::string("\x40\0\0\0\0\0\0\0{", 9) + kPadding, {"safetensors"}},
        Broken{"Text", std::string(3000, 'x'), {"text"}},
        Broken{"NarrowVersion", with_header(kGood, 1, 7), {"version 7", "version 1"}},
        Broken{"WideVersion", with_header(shard_bytes({1, 2}, 4), 1, 1), {"version 1", "version 7"}},
        Broken{"NoTokens", shard_bytes({}), {"token count 0"}},
        Broken{"NegativeCount", with_header(kGood, 2, -1), {"token count -1"}},
        Broken{"Truncated",
               kGood.substr(0, kGood.size() - 1),
               {"truncated", "4 tokens", "1032 bytes", "has 1031"}},
        Broken{"TooLong", kGood + "!", {"too long", "1032 bytes", "has 1033"}},
        Broken{"WideTruncated",
               with_header(shard_bytes({1, 2}, 4), 2, 3),
               {"truncated", "1036 bytes", "has 1032"}}),
    [](const auto& broken) { return std::string(broken.param.what); });

TEST(Shard, MissingFileAndDirectory) {
  const TempDir dir;
  EXPECT_CONTAINS(message_of<InputError>([&] { Shard shard(dir / "none.bin"); }), "none.bin");
  EXPECT_CONTAINS(message_of<InputError>([&] { Shard shard(dir.path()); }), "not a regular file");
}

}  // namespace
}  // namespace switchyard::data
