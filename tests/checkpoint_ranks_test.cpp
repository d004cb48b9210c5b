// Checkpoints that several ranks write and read. Ranks are threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/shared_directory.h"
#include "checkpoint/shared_writing.h"
#include "core/rng.h"
#include "run_samples.h"
#include "world_threads.h"

namespace switchyard::checkpoint {
namespace {

using namespace test;

namespace fs = std::filesystem;

struct Layout {
  int ranks = 1, expert = 1, zero = 0;
  std::string name() const { return fmt::format("{} ranks, expert {}, zero {}", ranks, expert, zero); }
};

void place_store(ParameterStore& store, const parallel::Mesh& mesh, int zero) {
  store.place({.place = mesh.all.place(),
               .size = mesh.all.size(),
               .expert_place = mesh.expert.place(),
               .expert_size = mesh.expert.size(),
               .replica_place = mesh.replicas.place(),
               .replica_size = mesh.replicas.size(),
               .shard_moments = zero > 0});
}

// One layer of four experts. Some rows are several blocks of the store, which ranks divide, others are smaller
// than one; a bias is not trained and has no moments.
constexpr int kExperts = 4;
ParameterStore store_of(const parallel::Mesh& mesh, int zero) {
  ParameterStore store;
  store.begin_group();
  store.add({.name = "model.embed_tokens.weight", .shape = {1001, 131}});
  for (const char* projection : {"q_proj", "k_proj"})
    store.add({.name = fmt::format("model.layers.0.self_attn.{}.weight", projection), .shape = {9, 13}});
  store.begin_group();
  store.add({.name = "model.layers.0.mlp.gate.weight", .shape = {kExperts, 31}});
  store.add({.name = "model.layers.0.mlp.gate.bias", .shape = {kExperts}, .trained = false});
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    store.begin_group();
    for (int e = 0; e < kExperts; ++e)
      store.add({.name = fmt::format("model.layers.0.mlp.experts.{}.{}.weight", e, projection),
                 .shape = {projection[0] == 'u' ? 67 : 1, 1003},
                 .sharding = Sharding::by_expert,
                 .expert = e,
                 .n_experts = kExperts});
  }
  store.begin_group();
  store.add({.name = "model.norm.weight", .shape = {13}});
  place_store(store, mesh, zero);
  store.allocate(DType::f32, true);
  return store;
}

constexpr RowArray kArrays[] = {RowArray::value, RowArray::moment1, RowArray::moment2};

// What the elements of a row are, whoever holds them: no two of the model's are alike but by chance.
class Numbers {
 public:
  Numbers(const ParameterStore& store, RowArray array, std::size_t row)
      : seed_(hash_name(store.rows()[row].name) + static_cast<std::uint64_t>(array)) {}
  float operator()(std::int64_t i) const {
    return static_cast<float>(((seed_ + static_cast<std::uint64_t>(i)) * 0x9E3779B97F4A7C15u) >> 40);
  }

 private:
  std::uint64_t seed_;
};

void fill_store(ParameterStore& store) {
  for (const RowArray array : kArrays)
    for (const RowPiece& piece : store.held(array)) {
      const Numbers number(store, array, piece.row);
      float* const data = piece.tensor_N.as<float>();
      for (std::int64_t i = 0; i < piece.tensor_N.numel(); ++i) data[i] = number(piece.first + i);
    }
}

void poison(ParameterStore& store) {
  for (const RowArray array : kArrays)
    for (const RowPiece& piece : store.held(array))
      std::fill_n(piece.tensor_N.as<float>(), piece.tensor_N.numel(), std::nanf(""));
}

std::int64_t wrong_numbers(const ParameterStore& store) {
  std::int64_t wrong = 0;
  for (const RowArray array : kArrays)
    for (const RowPiece& piece : store.held(array)) {
      const Numbers number(store, array, piece.row);
      const float* const data = piece.tensor_N.as<float>();
      for (std::int64_t i = 0; i < piece.tensor_N.numel(); ++i) wrong += data[i] != number(piece.first + i);
    }
  return wrong;
}

// What one rank carries from step to step beside the moments.
struct Extra {
  std::vector<float> load = {0.25f, 0.5f, 0.125f, 0.125f};
  std::vector<NamedTensor> tensors() {
    return {{"balance.load_average", Tensor(load.data(), {1, kExperts}, DType::f32)}};
  }
};

config::Run run_of(config::Writers writers, std::int64_t max_shard_size) {
  config::Run run = small_run();
  run.checkpoint.writers = writers;
  run.checkpoint.max_shard_size = max_shard_size;
  return run;
}

constexpr std::int64_t kOneFile = 0, kManyFiles = 90'000;

void save_rank(parallel::World& world, const Layout& layout, const fs::path& place, const config::Run& run,
               std::int64_t step = 1) {
  const parallel::Mesh mesh = parallel::make_mesh(world, layout.expert);
  ParameterStore store = store_of(mesh, layout.zero);
  fill_store(store);
  Extra extra;
  if (world.rank() > 0) extra.load.assign(kExperts, -1);  // the first rank's count
  save_checkpoint(place, store, {step, 1000, 4, 5}, run, extra.tensors(), "", mesh.all);
}

void save(const Layout& layout, const fs::path& place, const config::Run& run) {
  on_world_threads(layout.ranks, [&](parallel::World& world) { save_rank(world, layout, place, run); });
}

std::map<std::string, std::string> content(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory))
    files[entry.path().filename().string()] = slurp(entry.path());
  return files;
}

void expect_equal_files(const fs::path& a, const fs::path& b) {
  const auto one = content(a), other = content(b);
  for (const auto& [name, bytes] : one) EXPECT_TRUE(other.contains(name) && other.at(name) == bytes) << name;
  EXPECT_EQ(one.size(), other.size());
}

std::vector<Layout> all_layouts() {
  std::vector<Layout> layouts;
  for (const int ranks : {1, 2, 3, 4})
    for (const int expert : {1, 2, 4})
      for (const int zero : {0, 1})
        if (ranks % expert == 0) layouts.push_back({ranks, expert, zero});
  return layouts;
}

TEST(CheckpointOfRanks, HasTheBytesOfOneRanksWhoeverWrites) {
  for (const std::int64_t max_shard_size : {kOneFile, kManyFiles}) {
    const TempDir alone;
    save({}, alone.path(), run_of(config::Writers::all, max_shard_size));
    ASSERT_EQ(content(checkpoint_path(alone.path(), 1)).size(), max_shard_size == kOneFile ? 5u : 12u);
    for (const Layout& layout : all_layouts()) {
      if (max_shard_size == kOneFile && layout.ranks != 4) continue;  // a save takes syncs, which take time
      for (const config::Writers writers : {config::Writers::all, config::Writers::first}) {
        SCOPED_TRACE(layout.name() + (writers == config::Writers::all ? ", all write" : ", the first writes"));
        const TempDir place;
        save(layout, place.path(), run_of(writers, max_shard_size));
        expect_equal_files(checkpoint_path(alone.path(), 1), checkpoint_path(place.path(), 1));
        EXPECT_EQ(find_latest(place.path()), checkpoint_path(place.path(), 1));
      }
    }
  }
}

// How many numbers of its store, of all ranks together, are not those that were saved.
std::int64_t wrong_after_loading(const Layout& layout, const fs::path& place) {
  std::atomic<std::int64_t> wrong = 0;
  on_world_threads(layout.ranks, [&](parallel::World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, layout.expert);
    ParameterStore store = store_of(mesh, layout.zero);
    poison(store);
    Extra extra;
    extra.load.assign(kExperts, -1);
    const Checkpoint checkpoint(place, mesh.all);
    checkpoint.load_weights(store);
    checkpoint.load_state(store, extra.tensors());
    wrong += wrong_numbers(store) + (extra.load != Extra().load);
  });
  return wrong;
}

TEST(CheckpointOfRanks, LoadsOnAnyOtherLayout) {
  const std::pair<Layout, Layout> pairs[] = {
      {{1, 1, 0}, {4, 4, 1}}, {{4, 4, 1}, {1, 1, 0}}, {{2, 1, 1}, {3, 1, 1}}, {{3, 1, 1}, {2, 2, 0}},
      {{2, 2, 0}, {2, 1, 1}}, {{4, 2, 1}, {4, 1, 0}}, {{4, 1, 0}, {4, 2, 1}}, {{4, 1, 1}, {3, 1, 0}},
      {{3, 1, 0}, {4, 4, 0}}, {{4, 4, 0}, {2, 2, 1}}, {{2, 2, 1}, {4, 2, 0}}, {{4, 2, 0}, {1, 1, 0}}};
  for (const auto& [from, to] : pairs) {
    SCOPED_TRACE(from.name() + " to " + to.name());
    const TempDir place;
    save(from, place.path(), run_of(config::Writers::all, kManyFiles));
    EXPECT_EQ(wrong_after_loading(to, place.path()), 0);
  }
}

// --init-from: experts stacked in one bfloat16 tensor, of which each rank reads those that it holds.
TEST(CheckpointOfRanks, StackedExpertsInBfloat16BeginARunOnRanks) {
  constexpr std::int64_t kWide = 3, kHidden = 7;
  const auto stacked = [](std::int64_t e, std::int64_t row, std::int64_t column) {
    return static_cast<float>(e * 64 + row * 8 + column);  // whole numbers below 256: bfloat16 holds them
  };
  const TempDir place;
  std::vector<float> gate_up;
  for (std::int64_t e = 0; e < kExperts; ++e)
    for (std::int64_t row = 0; row < 2 * kWide; ++row)
      for (std::int64_t column = 0; column < kHidden; ++column) gate_up.push_back(stacked(e, row, column));
  std::vector<WrittenTensor> tensors = as_written(
      std::vector<NamedTensor>{{"model.layers.0.mlp.experts.gate_up_proj",
                                Tensor(gate_up.data(), {kExperts, 2 * kWide, kHidden}, DType::f32)}});
  tensors[0].type = StoredType::bf16;
  write_weights(place.path(), tensors, kOneFile);

  on_world_threads(4, [&](parallel::World& world) {
    ParameterStore store;
    store.begin_group();
    for (std::int64_t e = 0; e < kExperts; ++e)
      for (const char* projection : {"gate_proj", "up_proj"})
        store.add({.name = fmt::format("model.layers.0.mlp.experts.{}.{}.weight", e, projection),
                   .shape = {kWide, kHidden},
                   .sharding = Sharding::by_expert,
                   .expert = e,
                   .n_experts = kExperts});
    place_store(store, parallel::make_mesh(world, 2), /*zero=*/1);
    store.allocate(DType::f32, false);
    ModelWeights(place.path(), {kWeightsFile}, false).load(small_run().model, store);
    for (std::size_t i = 0; i < store.rows().size(); ++i) {
      const std::int64_t expert = store.rows()[i].expert, first_row = i % 2 == 0 ? 0 : kWide;
      ASSERT_EQ(store.is_here(i), expert / 2 == world.rank() % 2);
      if (!store.is_here(i)) continue;
      for (std::int64_t row = 0; row < kWide; ++row)
        for (std::int64_t column = 0; column < kHidden; ++column)
          EXPECT_EQ(store.value(i).row<float>(row)[column], stacked(expert, first_row + row, column));
    }
  });
}

// ---- failures

// While it lives, `hook` is called on the rank that writes.
class WhileWriting {
 public:
  explicit WhileWriting(WritingHook hook) { writing_hook = hook; }
  ~WhileWriting() { writing_hook = nullptr; }
  WhileWriting(const WhileWriting&) = delete;
  WhileWriting& operator=(const WhileWriting&) = delete;
};

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// What each rank is told by f.
std::vector<std::string> messages(int ranks, const std::function<void(parallel::World&)>& f) {
  std::vector<std::string> message_R(static_cast<std::size_t>(ranks));
  on_world_threads(ranks, [&](parallel::World& world) {
    message_R[static_cast<std::size_t>(world.rank())] = message_of<InputError>([&] { f(world); });
  });
  return message_R;
}

// Step 1 is there, saving step 2 fails with one text for all ranks, which is returned; step 1 is as it was.
std::string message_of_failed_save(const Layout& layout, config::Writers writers, WritingHook hook) {
  const TempDir place;
  const config::Run run = run_of(writers, kOneFile);
  save(layout, place.path(), run);
  std::vector<std::string> message_R;
  {
    const WhileWriting hooked(hook);
    message_R = messages(
        layout.ranks, [&](parallel::World& world) { save_rank(world, layout, place.path(), run, /*step=*/2); });
  }
  for (const std::string& message : message_R) EXPECT_EQ(message, message_R[0]);
  EXPECT_EQ(names_in(place.path() / "checkpoints"), (std::vector<std::string>{"latest", "step_000001"}));
  EXPECT_EQ(wrong_after_loading(layout, place.path()), 0);
  // Nothing hinders the next one.
  on_world_threads(layout.ranks,
                   [&](parallel::World& world) { save_rank(world, layout, place.path(), run, /*step=*/2); });
  EXPECT_EQ(wrong_after_loading({}, place.path()), 0);
  return message_R[0];
}

TEST(CheckpointOfRanks, ADiskThatIsFullForOneRankIsToldByAll) {
  const std::string message = message_of_failed_save(
      {4, 2, 1}, config::Writers::all, [](WritingStage stage, const fs::path& file, int place) {
        if (place == 2 && stage == WritingStage::write && file.filename() == "state.safetensors")
          throw_input("{}: write failed: no space left on device", file.filename().string());
      });
  EXPECT_EQ(message, "rank 2: state.safetensors: write failed: no space left on device");
}

TEST(CheckpointOfRanks, AnOwnerThatFailsDoesNotLeaveTheWriterWaiting) {
  const std::string message = message_of_failed_save({3, 1, 1}, config::Writers::first,
                                                     [](WritingStage stage, const fs::path&, int place) {
                                                       if (place == 1 && stage == WritingStage::write)
                                                         throw_input("a device fault");
                                                     });
  EXPECT_EQ(message, "rank 1: a device fault");
}

TEST(CheckpointOfRanks, AWriterThatFailsDoesNotLeaveOwnersWaiting) {
  const std::string message = message_of_failed_save({3, 1, 1}, config::Writers::first,
                                                     [](WritingStage stage, const fs::path&, int place) {
                                                       if (place == 0 && stage == WritingStage::write)
                                                         throw_input("no space left on device");
                                                     });
  EXPECT_EQ(message, "rank 0: no space left on device");
}

// Turns the lowest bit of the last byte, as a disk might, by another handle than the writer's.
void spoil_last_byte(const fs::path& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-1, std::ios::end);
  const int byte = file.get();
  file.seekp(-1, std::ios::end);
  file.put(static_cast<char>(byte ^ 1));
}

// The last row is the last rank's, which has written it when it begins to read back; where the first rank
// writes for all, everything is written then.
TEST(CheckpointOfRanks, AFlippedBitIsFoundByReadingBack) {
  static std::atomic<int> spoiler;
  static std::atomic<bool> spoilt;
  for (const Layout& layout : {Layout{1, 1, 0}, Layout{2, 1, 1}}) {
    for (const config::Writers writers : {config::Writers::all, config::Writers::first}) {
      SCOPED_TRACE(layout.name());
      const TempDir place;
      const int last = layout.ranks - 1;
      spoiler = writers == config::Writers::all ? last : 0;
      spoilt = false;
      const WhileWriting hooked([](WritingStage stage, const fs::path& file, int at) {
        if (at == spoiler && stage == WritingStage::read_back && file.filename() == "model.safetensors" &&
            !spoilt.exchange(true))
          spoil_last_byte(file);
      });
      const std::vector<std::string> message_R = messages(layout.ranks, [&](parallel::World& world) {
        const ParameterStore store = store_of(parallel::make_mesh(world, 1), layout.zero);
        EXPECT_EQ(store.owned(RowArray::value).back().row == store.rows().size() - 1, world.rank() == last);
        save_rank(world, layout, place.path(), run_of(writers, kOneFile));
      });
      EXPECT_TRUE(spoilt);
      EXPECT_EQ(message_R[0], message_R.back());
      EXPECT_CONTAINS(message_R[0], "model.safetensors");
      EXPECT_CONTAINS(message_R[0], fmt::format("of rank {}, do not read back as they were written", last));
      EXPECT_EQ(names_in(place.path() / "checkpoints"), std::vector<std::string>());
    }
  }
}

TEST(CheckpointOfRanks, WithoutVerifyingNothingIsReadBackAndSumsAreThoseOfWhatWasWritten) {
  static std::atomic<int> read_back;
  for (const Layout& layout : {Layout{1, 1, 0}, Layout{3, 1, 1}}) {
    for (const config::Writers writers : {config::Writers::all, config::Writers::first}) {
      SCOPED_TRACE(layout.name());
      const TempDir place;
      config::Run run = run_of(writers, kManyFiles);
      run.checkpoint.verify = false;
      read_back = 0;
      {
        const WhileWriting hooked([](WritingStage stage, const fs::path&, int) {
          if (stage == WritingStage::read_back) ++read_back;
        });
        save(layout, place.path(), run);
      }
      EXPECT_EQ(read_back, 0);
      EXPECT_EQ(wrong_after_loading({}, place.path()), 0);  // compares the files with the manifest
    }
  }
}

// Of more than 64 MiB a file has parts that different ranks sum; here each file is one rank's.
TEST(CheckpointOfRanks, ADamagedFileIsNamedByAllRanks) {
  const TempDir place;
  const fs::path path = checkpoint_path(place.path(), 1);
  const auto open = [&](parallel::World& world) {
    const Checkpoint checkpoint(place.path(), parallel::all_ranks(world));
  };
  for (const std::string name : {"state.safetensors", "config.json", "model-00003-of-00007.safetensors"}) {
    save({}, place.path(), run_of(config::Writers::all, kManyFiles));
    spoil_last_byte(path / name);
    const std::vector<std::string> message_R = messages(3, open);
    for (const std::string& message : message_R) {
      EXPECT_EQ(message, message_R[0]);
      EXPECT_TRUE(message.starts_with((path / name).string() + ": has CRC-32 ")) << message;
    }
  }
  save({}, place.path(), run_of(config::Writers::all, kManyFiles));
  fs::remove(path / "state.safetensors");
  const std::vector<std::string> message_R = messages(3, open);
  for (const std::string& message : message_R) {
    EXPECT_EQ(message, message_R[0]);
    EXPECT_TRUE(message.starts_with((path / "state.safetensors").string() + ": is missing")) << message;
  }
}

TEST(CheckpointOfRanks, AFileLargerThanAPortionIsSummedByAllRanks) {
  const TempDir place;
  const fs::path path = place.path() / "large";
  std::string bytes(std::size_t{130} << 20, '\0');
  for (std::size_t i = 0; i < bytes.size(); i += 4097) bytes[i] = static_cast<char>(i % 251);
  std::ofstream(path, std::ios::binary) << bytes;
  const std::string sum = crc_text(crc32(std::as_bytes(std::span(bytes))));
  std::ofstream(place.path() / kManifest) << "{}";
  for (const int ranks : {1, 2, 4})
    on_world_threads(ranks, [&](parallel::World& world) {
      verify_files(place.path(), {{"large", bytes.size(), sum}}, parallel::all_ranks(world));
    });
  // In the second portion, which rank 1 of 3 sums.
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(100 << 20);
  file.put('x');
  file.close();
  const std::vector<std::string> message_R = messages(3, [&](parallel::World& world) {
    verify_files(place.path(), {{"large", bytes.size(), sum}}, parallel::all_ranks(world));
  });
  for (const std::string& message : message_R) EXPECT_CONTAINS(message, path.string() + ": has CRC-32 ");
}

TEST(CheckpointOfRanks, TheFirstRankDecidesWhichCheckpointIsRead) {
  const TempDir place, other;
  save({}, place.path(), run_of(config::Writers::all, kOneFile));
  on_world_threads(2, [&](parallel::World& world) {
    const Checkpoint checkpoint(world.rank() == 0 ? place.path() : other.path(), parallel::all_ranks(world));
    EXPECT_EQ(checkpoint.path(), checkpoint_path(place.path(), 1));
  });
}

TEST(SharedDirectory, IsOneForAllRanks) {
  const TempDir place, other;
  on_world_threads(
      3, [&](parallel::World& world) { check_shared_directory(place.path(), parallel::all_ranks(world)); });
  EXPECT_EQ(names_in(place.path()), std::vector<std::string>());
  const std::vector<std::string> message_R = messages(3, [&](parallel::World& world) {
    check_shared_directory(world.rank() == 2 ? other.path() : place.path(), parallel::all_ranks(world),
                           std::chrono::milliseconds(100));
  });
  for (const std::string& message : message_R) {
    EXPECT_EQ(message, message_R[0]);
    EXPECT_TRUE(message.starts_with("rank 2 on ")) << message;
    EXPECT_CONTAINS(message, " does not see " + other.path().string());
  }
  EXPECT_EQ(names_in(place.path()), std::vector<std::string>());
}

}  // namespace
}  // namespace switchyard::checkpoint
