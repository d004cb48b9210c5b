#include <gtest/gtest.h>

#include <numeric>

#include "core/error.h"
#include "data/shard_paths.h"
#include "shards.h"

namespace switchyard::data {
namespace {

using test::message_of;
using test::TempDir;
using test::write_shard;
using Paths = std::vector<std::filesystem::path>;

std::vector<std::uint32_t> counting(std::uint32_t first, std::size_t n) {
  std::vector<std::uint32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

void verify_all(const TokenStream& stream) {
  for (std::size_t i = 0; i < stream.shards().size(); ++i) stream.verify(i);
}

TEST(ExpandShards, FileDirectoryAndPattern) {
  const TempDir dir;
  for (const char* name : {"b_1.bin", "a_2.bin", "a_1.bin", "meta.json"}) test::write_bytes(dir / name, "x");
  std::filesystem::create_directory(dir / "c.bin");  // not a shard, whatever its name
  EXPECT_EQ(expand_shards(dir / "meta.json"), (Paths{dir / "meta.json"}));
  EXPECT_EQ(expand_shards(dir.path()), (Paths{dir / "a_1.bin", dir / "a_2.bin", dir / "b_1.bin"}));
  EXPECT_EQ(expand_shards(dir / "a_*.bin"), (Paths{dir / "a_1.bin", dir / "a_2.bin"}));
  EXPECT_EQ(expand_shards(dir / "*.bin"), (Paths{dir / "a_1.bin", dir / "a_2.bin", dir / "b_1.bin"}));
  EXPECT_EQ(expand_shards(dir / "?_[1].bin"), (Paths{dir / "a_1.bin", dir / "b_1.bin"}));
}

TEST(ExpandShards, AFileWhoseNameIsAPatternIsThatFile) {
  const TempDir dir;
  test::write_bytes(dir / "a[1].bin", "x");
  EXPECT_EQ(expand_shards(dir / "a[1].bin"), (Paths{dir / "a[1].bin"}));
}

TEST(ExpandShards, NothingFoundNamesWhatWasLookedFor) {
  const TempDir dir;
  for (const auto& path : {dir / "none.bin", dir / "train_*.bin", dir.path()})
    EXPECT_CONTAINS(message_of<InputError>([&] { expand_shards(path); }), path.string());
}

TEST(ExpandShards, ADirectoryOfTwoSplitsIsNotTakenWhole) {
  const TempDir dir;
  test::write_bytes(dir / "train_000000.bin", "x");
  EXPECT_EQ(expand_shards(dir.path()).size(), 1u);
  test::write_bytes(dir / "val_000000.bin", "x");
  EXPECT_CONTAINS(message_of<InputError>([&] { expand_shards(dir.path()); }), "train_*.bin");
  EXPECT_CONTAINS(message_of<InputError>([&] { expand_shards(dir / "*.bin"); }),
                  "*.bin: holds shards of two splits, train and val; say which, as in '" +
                      (dir / "train_").string() + "*.bin'");
  EXPECT_EQ(expand_shards(dir / "val_*.bin").size(), 1u);
  // Other names: a split is a word of its own, the last one counts, and the advice has what is before it.
  const TempDir other;
  for (const char* name : {"latest_train_000.bin", "latest_train_001.bin"})
    test::write_bytes(other / name, "x");
  EXPECT_EQ(expand_shards(other / "*.bin").size(), 2u);
  test::write_bytes(other / "latest_val_000.bin", "x");
  EXPECT_CONTAINS(message_of<InputError>([&] { expand_shards(other / "latest_*.bin"); }),
                  "train and val; say which, as in '" + (other / "latest_train_").string() + "*.bin'");
  // As in llm.c's small data: the word ends the name.
  const TempDir small;
  for (const char* name : {"TinyStories_train.bin", "validated_text.bin"}) test::write_bytes(small / name, "x");
  EXPECT_EQ(expand_shards(small.path()).size(), 2u);
  test::write_bytes(small / "TinyStories_val.bin", "x");
  for (const auto& given : {small.path().string(), (small / "*.bin").string()})
    EXPECT_CONTAINS(message_of<InputError>([&] { expand_shards(given); }),
                    "train and val; say which, as in '" + (small / "TinyStories_train").string() + "*.bin'");
}

TEST(EotToken, IsWhatMetaJsonStates) {
  const TempDir dir;
  const Paths shards = {dir / "train_000000.bin", dir / "train_000001.bin"};
  EXPECT_EQ(special_tokens_beside(shards).eot, std::nullopt);
  EXPECT_EQ(special_tokens_beside({}).eot, std::nullopt);
  test::write_bytes(dir / "meta.json", R"({"vocab_size": 257, "eot_token": 256})");
  EXPECT_EQ(special_tokens_beside(shards).eot, 256);
  test::write_bytes(dir / "meta.json", R"({"vocab_size": 257})");
  EXPECT_EQ(special_tokens_beside(shards).eot, std::nullopt);
}

TEST(EotToken, MalformedOrContradictingMetaJsonIsAnError) {
  const TempDir dir;
  for (const char* text :
       {"{", "[1]", R"({"eot_token": "x"})", R"({"eot_token": -1})", R"({"eot_token": 1.5})"}) {
    test::write_bytes(dir / "meta.json", text);
    EXPECT_CONTAINS(message_of<InputError>([&] { special_tokens_beside({dir / "a.bin"}); }),
                    (dir / "meta.json").string())
        << text;
  }
  for (const char* name : {"one", "two"}) std::filesystem::create_directory(dir / name);
  test::write_bytes(dir / "one/meta.json", R"({"eot_token": 256})");
  test::write_bytes(dir / "two/meta.json", R"({"eot_token": 0})");
  const std::string message = message_of<InputError>([&] {
    special_tokens_beside({dir / "one/a.bin", dir / "two/a.bin"});
  });
  EXPECT_CONTAINS(message, "256");
  EXPECT_CONTAINS(message, "two");
}

class TextSizeBeside : public testing::Test {
 protected:
  std::optional<TextSize> size_of(std::initializer_list<const char*> names) const {
    std::vector<Shard> shards;
    for (const char* name : names) shards.emplace_back(dir_ / name);
    return text_size_beside(shards);
  }
  void expect(std::initializer_list<const char*> names, double bytes, bool is_estimate) const {
    const auto text = size_of(names);
    ASSERT_TRUE(text);
    EXPECT_DOUBLE_EQ(text->bytes, bytes);
    EXPECT_EQ(text->is_estimate, is_estimate);
  }
  TempDir dir_;
};

TEST_F(TextSizeBeside, IsExactForWholeSplitsAndByBytesPerTokenForParts) {
  write_shard(dir_ / "held_out_000000.bin", counting(0, 6));
  write_shard(dir_ / "held_out_000001.bin", counting(0, 4));
  write_shard(dir_ / "train_000000.bin", counting(0, 2));
  EXPECT_FALSE(size_of({"train_000000.bin"})) << "no meta.json";
  test::write_bytes(dir_ / "meta.json", R"({"splits": {"held_out": {"tokens": 10, "bytes": 27},
                                                       "train": {"tokens": 4, "bytes": 6}}})");
  expect({"held_out_000000.bin", "held_out_000001.bin"}, 27, false);
  expect({"held_out_000000.bin"}, 16.2, true);                                           // 6 x 27 / 10
  expect({"held_out_000000.bin", "held_out_000001.bin", "train_000000.bin"}, 30, true);  // + 2 x 6 / 4
}

TEST_F(TextSizeBeside, IsNotKnownForAShardOfNoStatedSplit) {
  for (const char* name : {"val_000000.bin", "train_000000.bin", "val.bin", "val000000.bin", "val_x.bin"})
    write_shard(dir_ / name, counting(0, 3));
  test::write_bytes(dir_ / "meta.json", R"({"splits": {"val": {"tokens": 3, "bytes": 5}}})");
  expect({"val_000000.bin"}, 5, false);
  EXPECT_FALSE(size_of({"val_000000.bin", "train_000000.bin"}));
  for (const char* name : {"val.bin", "val000000.bin", "val_x.bin"}) EXPECT_FALSE(size_of({name})) << name;
  for (const char* text :
       {"{}", R"({"splits": {"val": {"tokens": 3}}})", R"({"splits": {"val": {"bytes": 3}}})",
        R"({"splits": {"val": {"tokens": 0, "bytes": 0}}})"}) {
    test::write_bytes(dir_ / "meta.json", text);
    EXPECT_FALSE(size_of({"val_000000.bin"})) << text;
  }
}

TEST_F(TextSizeBeside, MalformedCountsAreNamed) {
  write_shard(dir_ / "val_000000.bin", counting(0, 3));
  const auto message = [&](const char* text) {
    test::write_bytes(dir_ / "meta.json", text);
    return message_of<InputError>([&] { size_of({"val_000000.bin"}); });
  };
  EXPECT_CONTAINS(message(R"({"splits": 3})"), "splits is 3");
  EXPECT_CONTAINS(message(R"({"splits": {"val": []}})"), "splits.val is []");
  EXPECT_CONTAINS(message(R"({"splits": {"val": {"tokens": 3, "bytes": -1}}})"), "splits.val.bytes is -1");
}

TEST(TokenStream, ReadsAcrossShards) {
  const TempDir dir;
  const TokenStream stream(
      {write_shard(dir / "a.bin", counting(0, 5)), write_shard(dir / "b.bin", counting(5, 1)),
       write_shard(dir / "c.bin", counting(6, 4), 4)},
      10);
  ASSERT_EQ(stream.size(), 10);
  EXPECT_EQ(stream.shards().size(), 3u);
  for (std::int64_t first = 0; first <= 10; ++first)
    for (std::int64_t count = 0; first + count <= 10; ++count) {
      std::vector<std::int32_t> read(static_cast<std::size_t>(count), -1), expected(read);
      std::iota(expected.begin(), expected.end(), static_cast<std::int32_t>(first));
      stream.read(first, read);
      EXPECT_EQ(read, expected) << first << " + " << count;
    }
  std::vector<std::int32_t> beyond(3);
  EXPECT_THROW(stream.read(8, beyond), std::logic_error);
  verify_all(stream);
}

TEST(TokenStream, ATokenBeyondTheVocabularyIsNamedWithFileOffsetAndValue) {
  const TempDir dir;
  auto bad = counting(0, 6);
  bad[4] = 777;
  const Paths paths = {write_shard(dir / "a.bin", counting(0, 5)), write_shard(dir / "b.bin", bad)};
  const TokenStream stream(paths, 100);
  std::vector<std::int32_t> before(9), over(3);
  stream.read(0, before);  // up to the token before it
  const std::string from_read = message_of<InputError>([&] { stream.read(8, over); });
  const std::string from_verify = message_of<InputError>([&] { verify_all(stream); });
  EXPECT_EQ(from_read, from_verify);
  for (const char* part : {"b.bin", "token 777", "byte 1032", "vocabulary of 100"})
    EXPECT_CONTAINS(from_read, part);
}

TEST(TokenStream, TheLastTokenOfTheVocabularyIsInIt) {
  const TempDir dir;
  const Paths paths = {write_shard(dir / "a.bin", {0, 256})};
  verify_all(TokenStream(paths, 257));
  EXPECT_CONTAINS(message_of<InputError>([&] { verify_all(TokenStream(paths, 256)); }),
                  "token 256 at byte 1026");
}

TEST(TokenStream, AWideTokenAboveInt32IsNoNegativeToken) {
  const TempDir dir;
  const TokenStream stream({write_shard(dir / "a.bin", {5, 0xffffffff}, 4)}, 100000);
  EXPECT_CONTAINS(message_of<InputError>([&] { verify_all(stream); }), "token 4294967295 at byte 1028");
}

// Long enough that several threads have pieces of it; two bad tokens, in different pieces, and the first is
// named.
TEST(TokenStream, VerifyNamesTheFirstOfSeveral) {
  const TempDir dir;
  for (const int width : {2, 4}) {
    std::vector<std::uint32_t> tokens(100001, 7);
    tokens[100000] = 300;
    tokens[45000] = 258;
    tokens[54321] = 299;
    tokens[99999] = 299;
    const TokenStream stream({write_shard(dir / "good.bin", std::vector<std::uint32_t>(50000, 1), width),
                              write_shard(dir / "bad.bin", tokens, width)},
                             257);
    const std::string message = message_of<InputError>([&] { verify_all(stream); });
    EXPECT_CONTAINS(message, "bad.bin: token 258 at byte " + std::to_string(1024 + 45000 * width));
  }
}

TEST(TokenStream, ABrokenShardIsRefusedWhenOpened) {
  const TempDir dir;
  const auto good = write_shard(dir / "a.bin", {1, 2, 3});
  test::write_bytes(dir / "b.bin", test::shard_bytes({1, 2, 3}).substr(0, 1028));
  EXPECT_CONTAINS(message_of<InputError>([&] {
                    TokenStream stream({good, dir / "b.bin"}, 10);
                  }),
                  "b.bin: truncated");
}

}  // namespace
}  // namespace switchyard::data
