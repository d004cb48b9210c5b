#include "train/token_data.h"

#include <gtest/gtest.h>

#include <vector>

#include "parallel/world.h"
#include "run_samples.h"
#include "shards.h"
#include "tensors.h"

namespace switchyard::train {
namespace {

using namespace test;

using test::values;
using Numbers = std::vector<double>;

TEST(BatchBuffers, IsAllPaddingAtFirst) {
  const BatchBuffers buffers(2, 3, std::nullopt, 0);
  EXPECT_EQ(buffers.on_host().n_seq, 2);
  EXPECT_EQ(buffers.on_host().seq_len, 3);
  EXPECT_EQ(values(buffers.on_host().token_T), Numbers(6, -1));
  EXPECT_EQ(values(buffers.on_host().target_T), Numbers(6, -1));
  EXPECT_EQ(values(buffers.on_host().kv_begin_T), Numbers(6, 0));
  EXPECT_EQ(values(buffers.on_host().tokens_B), Numbers(2, 0));
}

TEST(BatchBuffers, EachTokenPredictsTheNextAndTheRestIsPadding) {
  BatchBuffers buffers(3, 4, std::nullopt, 0);
  buffers.set_sequence(0, std::vector<std::int32_t>{5, 6, 7, 8, 9});
  buffers.set_sequence(1, std::vector<std::int32_t>{1, 2, 3});
  buffers.set_sequence(2, {});
  EXPECT_EQ(values(buffers.on_host().token_T), (Numbers{5, 6, 7, 8, 1, 2, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(values(buffers.on_host().target_T), (Numbers{6, 7, 8, 9, 2, 3, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(values(buffers.on_host().kv_begin_T), Numbers(12, 0));
  EXPECT_EQ(values(buffers.on_host().tokens_B), (Numbers{4, 2, 0}));
}

TEST(BatchBuffers, NothingOfTheSequenceBeforeRemains) {
  BatchBuffers buffers(1, 4, 0, 0);
  buffers.set_sequence(0, std::vector<std::int32_t>{5, 6, 0, 8, 9});
  buffers.set_sequence(0, std::vector<std::int32_t>{3, 4});
  EXPECT_EQ(values(buffers.on_host().token_T), (Numbers{3, -1, -1, -1}));
  EXPECT_EQ(values(buffers.on_host().target_T), (Numbers{4, -1, -1, -1}));
  EXPECT_EQ(values(buffers.on_host().kv_begin_T), (Numbers{0, 0, 0, 0}));
  EXPECT_EQ(values(buffers.on_host().tokens_B), Numbers{1});
}

TEST(BatchBuffers, AnEndOfTextTokenBeginsADocument) {
  BatchBuffers buffers(2, 6, 9, 0);
  buffers.set_sequence(0, std::vector<std::int32_t>{1, 2, 9, 3, 9, 4, 5});
  buffers.set_sequence(1, std::vector<std::int32_t>{9, 1, 2, 9});  // the last 9 is a target only
  EXPECT_EQ(values(buffers.on_host().kv_begin_T), (Numbers{0, 0, 2, 2, 4, 4, 0, 0, 0, 0, 0, 0}));
}

TEST(BatchBuffers, ASlidingWindowEndsAtTheTokenItself) {
  BatchBuffers buffers(1, 6, std::nullopt, 3);
  buffers.set_sequence(0, std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(values(buffers.on_host().kv_begin_T), (Numbers{0, 0, 0, 1, 2, 3}));
  BatchBuffers one(1, 3, std::nullopt, 1);
  one.set_sequence(0, std::vector<std::int32_t>{1, 2, 3, 4});
  EXPECT_EQ(values(one.on_host().kv_begin_T), (Numbers{0, 1, 2}));
}

TEST(BatchBuffers, WindowAndDocumentTheNearerBorderHolds) {
  BatchBuffers buffers(1, 6, 9, 3);
  buffers.set_sequence(0, std::vector<std::int32_t>{1, 2, 3, 9, 5, 6, 7});
  EXPECT_EQ(values(buffers.on_host().kv_begin_T), (Numbers{0, 0, 0, 3, 3, 3}));
}

TEST(BatchBuffers, HoldsTheMicroBatchesOfAStep) {
  BatchBuffers buffers(1, 2, std::nullopt, 0, Device::cpu, 3);
  Context ctx;
  for (std::int32_t micro = 0; micro < 3; ++micro)
    buffers.set_sequence(0, std::vector<std::int32_t>{10 * micro, 10 * micro + 1, 10 * micro + 2}, micro);
  EXPECT_EQ(values(buffers.load(ctx, 1).rng_offset_2), (Numbers{0, 0}));
  for (int micro = 0; micro < 3; ++micro) buffers.set_rng_offset(70 + micro, 5 * micro, micro);
  for (int micro = 0; micro < 3; ++micro) {
    const model::Batch batch = buffers.load(ctx, micro);
    EXPECT_EQ(values(batch.token_T), (Numbers{10.0 * micro, 10.0 * micro + 1}));
    EXPECT_EQ(values(batch.target_T), (Numbers{10.0 * micro + 1, 10.0 * micro + 2}));
    EXPECT_EQ(values(batch.tokens_B), Numbers{2});
    EXPECT_EQ(values(batch.rng_offset_2), (Numbers{70.0 + micro, 5.0 * micro}));
  }
}

TEST(BatchBuffers, RefusesAWindowThatIsTooLong) {
  BatchBuffers buffers(1, 2, std::nullopt, 0);
  EXPECT_THROW(buffers.set_sequence(0, std::vector<std::int32_t>{1, 2, 3, 4}), std::logic_error);
  EXPECT_THROW(buffers.set_sequence(1, std::vector<std::int32_t>{1, 2}), std::logic_error);
}

TEST(OpenDomains, EntriesOfOneDomainAreOneStreamInTheirOrder) {
  const TempDir dir;
  test::write_shard(dir / "a.bin", {1, 2});
  test::write_shard(dir / "b.bin", {3, 4, 5});
  test::write_shard(dir / "c.bin", {6});
  const auto domains = open_domains({{(dir / "b.bin").string(), "law", std::nullopt},
                                     {(dir / "c.bin").string(), "code", std::nullopt},
                                     {(dir / "a.bin").string(), "law", std::nullopt}},
                                    10, parallel::lone_mesh().all);
  ASSERT_EQ(domains.size(), 2u);
  EXPECT_EQ(domains[0].name, "law");
  EXPECT_EQ(domains[1].name, "code");
  std::vector<std::int32_t> tokens(5);
  ASSERT_EQ(domains[0].stream.size(), 5);
  domains[0].stream.read(0, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{3, 4, 5, 1, 2}));
}

TEST(OpenDomains, ATokenBeyondTheVocabularyIsNamedWithItsFile) {
  const TempDir dir;
  test::write_shard(dir / "a.bin", {1, 2, 10});
  const std::string message = message_of<InputError>([&] {
    open_domains({{(dir / "a.bin").string(), "law", std::nullopt}}, 10, parallel::lone_mesh().all);
  });
  EXPECT_CONTAINS(message, "a.bin");
  EXPECT_CONTAINS(message, "10");
}

// By what training's samples have of a domain, whatever the validation shards hold of it.
TEST(TrainingShares, AreThoseOfTheSamplesOverTheDomainsThatAreEvaluated) {
  const TempDir dir;
  for (const char* name : {"a", "b", "c", "val"})
    test::write_shard(dir / (std::string(name) + ".bin"), std::vector<std::uint32_t>(9, 1));
  config::Run run = test::small_run();
  const auto entry = [&](const char* file, const char* domain, std::optional<double> weight) {
    return config::DataEntry{(dir / file).string(), domain, weight};
  };
  run.train.seq_len = 4;
  run.train.eval_tokens = 8;
  run.train.eval_mix = config::EvalMix::training;
  run.data.train = {entry("a.bin", "law", 1.0), entry("b.bin", "code", 2.0), entry("c.bin", "prose", 1.0)};
  run.data.validation = {entry("val.bin", "code", std::nullopt), entry("a.bin", "law", std::nullopt)};
  const std::vector<double> shares = TrainingData(run, parallel::lone_mesh().all).training_shares();
  ASSERT_EQ(shares.size(), 2u);
  EXPECT_NEAR(shares[0], 2.0 / 3, 1e-3);  // a block of 4,096 samples has whole ones
  EXPECT_NEAR(shares[1], 1.0 / 3, 1e-3);
  run.data.validation.push_back(entry("val.bin", "poems", std::nullopt));
  EXPECT_CONTAINS(message_of<InputError>([&] { TrainingData(run, parallel::lone_mesh().all); }),
                  "data.validation: domain \"poems\" is not one of data.train");
}

class EotToken : public ::testing::Test {
 protected:
  EotToken() {
    for (const char* name : {"one", "two"}) {
      std::filesystem::create_directory(dir_ / name);
      test::write_shard(dir_ / name / "a.bin", {1, 2});
    }
  }
  void write_meta(const std::string& name, const std::string& text) {
    test::write_bytes(dir_ / name / "meta.json", text);
  }
  config::Data data(std::optional<std::int64_t> eot) const {
    config::Data result;
    result.train = {{(dir_ / "one" / "a.bin").string(), "law", std::nullopt}};
    result.validation = {{(dir_ / "two" / "a.bin").string(), "law", std::nullopt}};
    result.document_mask = true;
    result.eot_token = eot;
    return result;
  }
  TempDir dir_;
};

TEST_F(EotToken, IsWhatTheConfigurationSays) {
  write_meta("one", R"({"eot_token": 4})");
  EXPECT_EQ(find_begin_token(data(3), 10), 3);
}

TEST_F(EotToken, IsElseWhatStandsBesideTheShards) {
  write_meta("two", R"({"eot_token": 4})");
  EXPECT_EQ(find_begin_token(data(std::nullopt), 10), 4);
}

TEST_F(EotToken, IsRefusedWhereItIsUnknownAmbiguousOrNoToken) {
  EXPECT_CONTAINS(message_of<InputError>([&] { find_begin_token(data(std::nullopt), 10); }), "data.eot_token");
  EXPECT_CONTAINS(message_of<InputError>([&] { find_begin_token(data(10), 10); }), "data.begin_token: 10");
  write_meta("one", R"({"eot_token": 4})");
  write_meta("two", R"({"eot_token": 5})");
  EXPECT_CONTAINS(message_of<InputError>([&] { find_begin_token(data(std::nullopt), 10); }),
                  "token 4 and with token 5");
}

}  // namespace
}  // namespace switchyard::train
