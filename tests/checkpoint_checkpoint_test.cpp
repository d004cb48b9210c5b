#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>

#include "config/load.h"
#include "json_values.h"
#include "run_samples.h"

namespace switchyard::checkpoint {
namespace {

using namespace test;

namespace fs = std::filesystem;

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// Of the one rank that these tests save and load with; more are in checkpoint_ranks_test.cpp.
const parallel::Group& alone() {
  static const auto transport = parallel::make_lone_transport();
  static const parallel::Group group(*transport, {0});
  return group;
}

// A training store with its extra state, and the run around them.
struct Trained {
  explicit Trained(float salt, std::int64_t wide = 31)
      : store(small_store(true, wide)), ema{salt, 0.5f, 0.25f} {
    fill_moments(store, salt);
    store.value(0).as<float>()[3] = salt;
  }
  std::vector<NamedTensor> extra() {
    return {{"balance.load_ema", Tensor(ema.data(), {1, 3}, DType::f32)},
            {"router.counts", Tensor(counts.data(), {2}, DType::i32)}};
  }
  fs::path save(const fs::path& run_directory, std::int64_t step) {
    return save(run_directory, {step, step * 1000, static_cast<std::uint64_t>(step) * 4, 5});
  }
  fs::path save(const fs::path& run_directory, const RunState& state) {
    return save_checkpoint(run_directory, store, state, run, extra(), "", alone());
  }

  ParameterStore store;
  std::array<float, 3> ema;
  std::array<std::int32_t, 2> counts = {7, -1};
  config::Run run = small_run();
};

void expect_equal(const ParameterStore& a, const ParameterStore& b) {
  EXPECT_EQ(bytes_of(a.values()), bytes_of(b.values()));
  EXPECT_EQ(bytes_of(a.moments1()), bytes_of(b.moments1()));
  EXPECT_EQ(bytes_of(a.moments2()), bytes_of(b.moments2()));
}

// What a resumed run does with a checkpoint.
RunState load_checkpoint(const fs::path& path, const config::Run& run, ParameterStore& store,
                         std::span<const NamedTensor> extra_state) {
  const Checkpoint checkpoint(path);
  checkpoint.check_resumable(run);
  checkpoint.load_weights(store);
  checkpoint.load_state(store, extra_state);
  return checkpoint.state();
}

// True where the checkpoint of `step` loads and is what `expected` saved.
void expect_loads(const fs::path& path, Trained& expected, std::int64_t step) {
  Trained loaded(99.0f);
  const RunState state = load_checkpoint(path, loaded.run, loaded.store, loaded.extra());
  EXPECT_EQ(state.step, step);
  expect_equal(loaded.store, expected.store);
  EXPECT_EQ(loaded.ema, expected.ema);
}

std::string load_error(const fs::path& path) {
  Trained loaded(99.0f);
  const std::string message =
      message_of<InputError>([&] { load_checkpoint(path, loaded.run, loaded.store, loaded.extra()); });
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  return message;
}

// Writes the manifest anew for what lies in the directory: damage that sizes and sums cannot show.
void vouch_again(const fs::path& checkpoint) {
  Json manifest(Json::Object{{"format_version", 1}});
  for (const std::string& name : names_in(checkpoint)) {
    if (name == "manifest.json") continue;
    const std::string bytes = slurp(checkpoint / name);
    manifest["files"][name] = Json::Object{
        {"bytes", bytes.size()}, {"crc32", fmt::format("{:08x}", crc32(std::as_bytes(std::span(bytes))))}};
  }
  test::write_bytes(checkpoint / "manifest.json", to_line(manifest));
}

TEST(Checkpoint, RoundTripIsBitForBit) {
  const TempDir place;
  Trained saved(1.5f);
  saved.run.train.seed = 18446744073709551615u;
  const fs::path path =
      save_checkpoint(place.path(), saved.store, {4000, 1 << 30, std::uint64_t{1} << 40, saved.run.train.seed},
                      saved.run, saved.extra(), "", alone());
  EXPECT_EQ(path, place.path() / "checkpoints" / "step_004000");
  EXPECT_EQ(names_in(path), (std::vector<std::string>{"config.json", "manifest.json", "model.safetensors",
                                                      "run.json", "state.safetensors"}));
  EXPECT_EQ(names_in(path.parent_path()), (std::vector<std::string>{"latest", "step_004000"}));
  EXPECT_EQ(fs::read_symlink(path.parent_path() / "latest"), "step_004000");

  Trained loaded(2.5f);
  loaded.counts = {0, 0};
  const RunState state = load_checkpoint(path, saved.run, loaded.store, loaded.extra());
  expect_equal(loaded.store, saved.store);
  EXPECT_EQ(loaded.ema, saved.ema);
  EXPECT_EQ(loaded.counts, saved.counts);
  EXPECT_EQ(state.step, 4000);
  EXPECT_EQ(state.tokens, 1 << 30);
  EXPECT_EQ(state.samples, std::uint64_t{1} << 40);
  EXPECT_EQ(state.seed, 18446744073709551615u);
}

TEST(Checkpoint, TheSameStateGivesTheSameBytes) {
  const TempDir a, b;
  Trained trained(1.5f);
  const fs::path first = trained.save(a.path(), 1), second = trained.save(b.path(), 1);
  for (const std::string& name : names_in(first)) EXPECT_EQ(slurp(first / name), slurp(second / name)) << name;
}

TEST(Checkpoint, WeightsAloneLoadIntoAStoreForInference) {
  const TempDir place;
  Trained saved(1.5f);
  saved.save(place.path(), 1);
  const Checkpoint checkpoint(place.path());
  ParameterStore store = small_store(/*training=*/false);
  std::memset(store.value(0).raw(), 0, static_cast<std::size_t>(store.value(0).nbytes()));
  checkpoint.load_weights(store);
  EXPECT_EQ(bytes_of(store.values()), bytes_of(saved.store.values()));
  EXPECT_EQ(config::model_to_hf_json(checkpoint.model()), config::model_to_hf_json(saved.run.model));
  EXPECT_EQ(parsed(checkpoint.run_config_json()), parsed(saved.run.resolved_json));
}

// A router's bias is a weight of the model without moments.
TEST(Checkpoint, WhatIsNotTrainedHasAValueAndNoMoments) {
  const TempDir place;
  const auto make = [] {
    ParameterStore store;
    store.add({.name = "gate.weight", .shape = {4, 3}, .init_std = 0.1});
    store.begin_group();
    store.add({.name = "gate.e_score_correction_bias", .shape = {4}, .init = Init::zeros, .trained = false});
    store.allocate(DType::f32, true);
    store.initialise(5);
    return store;
  };
  ParameterStore saved = make();
  for (std::int64_t i = 0; i < 4; ++i) saved.value(1).as<float>()[i] = 0.25f * static_cast<float>(i);
  const fs::path path = save_checkpoint(place.path(), saved, {1, 10, 4, 5}, small_run(), {}, "", alone());
  std::vector<std::string> names;
  const Checkpoint checkpoint(path);
  for (const SafetensorsFile* file : {&checkpoint.weights().files().front(), &checkpoint.state_file()})
    for (const StoredTensor& tensor : file->tensors())
      names.push_back(file->path().filename().string() + " " + tensor.name);
  EXPECT_EQ(names, (std::vector<std::string>{
                       "model.safetensors gate.weight", "model.safetensors gate.e_score_correction_bias",
                       "state.safetensors gate.weight.exp_avg", "state.safetensors gate.weight.exp_avg_sq"}));
  ParameterStore loaded = make();
  load_checkpoint(path, small_run(), loaded, {});
  expect_equal(loaded, saved);
}

TEST(Checkpoint, SaysWhatItHolds) {
  const TempDir place;
  Trained saved(1.5f);
  const fs::path path = saved.save(place.path(), 12);
  const Checkpoint checkpoint(place.path());
  EXPECT_EQ(checkpoint.state().step, 12);
  EXPECT_EQ(checkpoint.state().tokens, 12000);
  EXPECT_EQ(checkpoint.model().num_experts, 4);
  const std::vector<StoredTensor>& weights = checkpoint.weights().files().front().tensors();
  const std::vector<StoredTensor>& state = checkpoint.state_file().tensors();
  ASSERT_EQ(weights.size(), 3u);
  ASSERT_EQ(state.size(), 6u + 2u);
  EXPECT_EQ(weights[1].name, "model.layers.0.mlp.experts.0.gate_proj.weight");
  EXPECT_EQ(weights[1].type, StoredType::f32);
  EXPECT_EQ(weights[1].shape, (std::vector<std::int64_t>{7, 9}));
  EXPECT_EQ(state[0].name, "model.embed_tokens.weight.exp_avg");
  EXPECT_EQ(state[7].type, StoredType::i32);
  std::uint64_t bytes = 0;
  for (const std::string& name : names_in(path)) bytes += fs::file_size(path / name);
  EXPECT_EQ(checkpoint.total_bytes(), bytes);
}

TEST(Checkpoint, APathMayBeTheStepTheRunItsCheckpointsOrLatest) {
  const TempDir place;
  Trained first(1.0f), second(2.0f);
  const fs::path path = first.save(place.path(), 1);
  second.save(place.path(), 2);
  expect_loads(path, first, 1);
  expect_loads(path / "", first, 1);
  expect_loads(place.path(), second, 2);
  expect_loads(place.path() / "checkpoints", second, 2);
  expect_loads(place.path() / "checkpoints" / "latest", second, 2);
  expect_loads(place.path() / "checkpoints" / "latest" / "", second, 2);
}

TEST(Checkpoint, APathWithoutACheckpointIsNamed) {
  const TempDir place;
  for (const fs::path& path : {place.path(), place.path() / "absent"}) {
    const std::string message = message_of<InputError>([&] { Checkpoint checkpoint(path); });
    EXPECT_CONTAINS(message, path.string());
  }
}

TEST(Checkpoint, LatestIsFoundByItsLinkOrElseByItsNumber) {
  const TempDir place;
  EXPECT_EQ(find_latest(place.path()), std::nullopt);
  EXPECT_EQ(find_latest(place.path() / "absent"), std::nullopt);
  Trained trained(1.0f);
  for (const int step : {9, 1000000, 10}) trained.save(place.path(), step);
  const fs::path checkpoints = place.path() / "checkpoints";
  EXPECT_EQ(find_latest(place.path()), checkpoints / "step_000010");  // saved last
  fs::remove(checkpoints / "latest");
  EXPECT_EQ(find_latest(place.path()), checkpoints / "step_1000000");
  fs::remove(checkpoints / "step_1000000" / "manifest.json");
  EXPECT_EQ(find_latest(place.path()), checkpoints / "step_000010");
  fs::create_directory_symlink("step_000777", checkpoints / "latest");  // points nowhere
  EXPECT_EQ(find_latest(place.path()), checkpoints / "step_000010");
}

TEST(Checkpoint, SavingTheSameStepReplacesIt) {
  const TempDir place;
  Trained first(1.0f), second(2.0f);
  first.save(place.path(), 3);
  const fs::path path = second.save(place.path(), 3);
  expect_loads(path, second, 3);
  EXPECT_EQ(names_in(path.parent_path()), (std::vector<std::string>{"latest", "step_000003"}));
}

TEST(Checkpoint, PruneKeepsTheNewestAndTheLatest) {
  const TempDir place;
  Trained trained(1.0f);
  const fs::path checkpoints = place.path() / "checkpoints";
  for (const int step : {2, 3, 4, 1}) trained.save(place.path(), step);  // latest: step 1
  prune_checkpoints(place.path(), {.keep = 0});
  EXPECT_EQ(names_in(checkpoints).size(), 5u);
  prune_checkpoints(place.path(), {.keep = 2});
  EXPECT_EQ(names_in(checkpoints),
            (std::vector<std::string>{"latest", "step_000001", "step_000003", "step_000004"}));
  trained.save(place.path(), 5);
  prune_checkpoints(place.path(), {.keep = 1});
  EXPECT_EQ(names_in(checkpoints), (std::vector<std::string>{"latest", "step_000005"}));
  prune_checkpoints(place.path(), {.keep = 1});
  expect_loads(place.path(), trained, 5);
}

// Saved one after another; `loss`: the run's, `val_loss`: NaN where the step was not evaluated.
void save_with(Trained& trained, const fs::path& place, std::int64_t step, double loss, double val_loss) {
  RunState state{step, step * 1000, static_cast<std::uint64_t>(step) * 4, 5};
  state.spikes.losses = {loss};
  if (!std::isnan(val_loss)) state.val_loss = val_loss;
  trained.save(place, state);
}

TEST(Checkpoint, PruneKeepsTheBestAndEveryNth) {
  const TempDir place;
  Trained trained(1.0f);
  const fs::path checkpoints = place.path() / "checkpoints";
  const config::Checkpoint options{.keep = 1, .keep_every = 4};
  const double losses[] = {3, 2.9, 2.8, 2.7, 2.6, 2.5}, nan = std::nan("");
  const double val_losses[] = {3.1, 2.7, nan, 2.9, nan, 3.0};
  for (int i = 0; i < 6; ++i) {
    save_with(trained, place.path(), i + 1, losses[i], val_losses[i]);
    prune_checkpoints(place.path(), options);
  }
  EXPECT_EQ(names_in(checkpoints),
            (std::vector<std::string>{"best", "latest", "step_000002", "step_000004", "step_000006"}));
  expect_loads(checkpoints / "best", trained, 2);
  EXPECT_EQ(find_latest(place.path()), checkpoints / "step_000006");
}

TEST(Checkpoint, PruneKeepsWhatARunAmidSpikesMayGoBackTo) {
  const TempDir place;
  Trained trained(1.0f);
  for (int step = 1; step <= 4; ++step) {
    RunState state{step, step * 1000, static_cast<std::uint64_t>(step) * 4, 5};
    state.spikes.skipped_in_row = std::max(0, step - 1);
    trained.save(place.path(), state);
    prune_checkpoints(place.path(), {.keep = 1});
  }
  EXPECT_EQ(names_in(place.path() / "checkpoints"),
            (std::vector<std::string>{"latest", "step_000001", "step_000004"}));
}

TEST(Checkpoint, ARunThatDivergesDoesNotTakeThePlaceOfWhatItHadReached) {
  const TempDir place;
  Trained trained(1.0f);
  const double losses[] = {3, 2, 2.3, 1e3, 1e6, 1e9};
  for (int i = 0; i < 6; ++i) {
    save_with(trained, place.path(), i + 1, losses[i], std::nan(""));
    prune_checkpoints(place.path(), {.keep = 2, .keep_best = false});
  }
  EXPECT_EQ(names_in(place.path() / "checkpoints"),
            (std::vector<std::string>{"latest", "step_000002", "step_000005", "step_000006"}));
  save_with(trained, place.path(), 7, 2.3, std::nan(""));  // it came back: within 1.2 of the best
  prune_checkpoints(place.path(), {.keep = 2, .keep_best = false});
  EXPECT_EQ(names_in(place.path() / "checkpoints"),
            (std::vector<std::string>{"latest", "step_000006", "step_000007"}));
}

TEST(Checkpoint, WhatAKilledSaveLeftIsRemovedByTheNext) {
  const TempDir place;
  Trained trained(1.0f);
  const fs::path checkpoints = place.path() / "checkpoints";
  fs::create_directories(checkpoints / ".tmp_step_000001");
  test::write_bytes(checkpoints / ".tmp_step_000001" / "model.safetensors", "half");
  fs::create_directories(checkpoints / ".old_step_000002");
  fs::create_directory_symlink("step_000001", checkpoints / ".tmp_latest");
  EXPECT_EQ(find_latest(place.path()), std::nullopt);
  trained.save(place.path(), 3);
  EXPECT_EQ(names_in(checkpoints), (std::vector<std::string>{"latest", "step_000003"}));
}

// ---- damage
// ---------------------------------------------------------------------------------------------------

constexpr std::array kFiles = {"config.json", "manifest.json", "model.safetensors", "run.json",
                               "state.safetensors"};

TEST(CheckpointDamage, AMissingFileIsNamed) {
  for (const char* name : kFiles) {
    const TempDir place;
    const fs::path path = Trained(1.0f).save(place.path(), 1);
    fs::remove(path / name);
    const std::string message = load_error(path);
    EXPECT_CONTAINS(message, (path / name).string());
    EXPECT_CONTAINS(message, "missing");
  }
}

TEST(CheckpointDamage, ATruncatedFileIsNamed) {
  for (const char* name : kFiles) {
    const TempDir place;
    const fs::path path = Trained(1.0f).save(place.path(), 1);
    for (const std::uintmax_t cut : {std::uintmax_t{2}, fs::file_size(path / name)}) {
      fs::resize_file(path / name, fs::file_size(path / name) - std::min(cut, fs::file_size(path / name)));
      const std::string message = load_error(path);
      EXPECT_CONTAINS(message, (path / name).string());
    }
  }
}

TEST(CheckpointDamage, ABitFlipInAFileIsFound) {
  const TempDir place;
  const fs::path path = Trained(1.0f).save(place.path(), 1);
  for (const std::string name : kFiles) {
    const std::string whole = slurp(path / name);
    // Odd strides, so that every position in a byte has its turn; a short one through the manifest, which no
    // other file vouches for.
    const std::size_t stride = name == "manifest.json" ? 7 : 1013;
    for (std::size_t bit = 0; bit < whole.size() * 8; bit += stride) {
      std::string damaged = whole;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
      test::write_bytes(path / name, damaged);
      try {
        const Checkpoint checkpoint(path);
        ADD_FAILURE() << name << ": bit " << bit << " was not missed";
      } catch (const InputError& error) {
        EXPECT_CONTAINS(error.what(), path.string());
        EXPECT_CONTAINS(error.what(), name == "manifest.json" ? "" : name);
      }
    }
    test::write_bytes(path / name, whole);
  }
  EXPECT_NO_THROW(Checkpoint{path});
}

TEST(CheckpointDamage, AFileThatTheManifestDoesNotNameIsRefused) {
  const TempDir place;
  const fs::path path = Trained(1.0f).save(place.path(), 1);
  test::write_bytes(path / "model-00002.safetensors", "x");
  const std::string message = load_error(path);
  EXPECT_CONTAINS(message, "model-00002.safetensors");
  EXPECT_CONTAINS(message, "manifest.json");
}

TEST(CheckpointDamage, AManifestThatPointsElsewhereIsRefused) {
  for (const std::string name : {"../secret", "/etc/passwd", "..", "", "manifest.json"}) {
    const TempDir place;
    const fs::path path = Trained(1.0f).save(place.path(), 1);
    Json manifest = parsed_file(path / "manifest.json");
    manifest["files"][name] = Json::Object{{"bytes", 0}, {"crc32", "00000000"}};
    test::write_bytes(path / "manifest.json", to_line(manifest));
    const std::string message = load_error(path);
    EXPECT_CONTAINS(message, "is not the name of a file");
  }
}

// Replaces one file of a checkpoint by tensors made from those it held, and vouches for it.
std::string error_with_tensors(const char* file, const std::function<void(std::vector<NamedTensor>&)>& change) {
  const TempDir place;
  Trained saved(1.0f);
  const fs::path path = saved.save(place.path(), 1);
  std::vector<std::vector<std::byte>> memory;
  std::vector<NamedTensor> tensors;
  {
    const SafetensorsFile stored(path / file);
    for (const StoredTensor& tensor : stored.tensors()) {
      memory.emplace_back(tensor.bytes.begin(), tensor.bytes.end());
      const Shape shape =
          tensor.shape.size() == 1 ? Shape{tensor.shape[0]} : Shape{tensor.shape[0], tensor.shape[1]};
      tensors.push_back({tensor.name, Tensor(memory.back().data(), shape,
                                             tensor.type == StoredType::i32 ? DType::i32 : DType::f32)});
    }
  }
  change(tensors);
  write_safetensors(path / file, tensors);
  vouch_again(path);
  const std::string message = load_error(path);
  EXPECT_CONTAINS(message, file);
  return message;
}

TEST(CheckpointDamage, TensorsThatAreNotTheModelsAreListed) {
  for (const char* file : {"model.safetensors", "state.safetensors"}) {
    std::string name;
    std::string message = error_with_tensors(file, [&](auto& tensors) {
      name = tensors[1].name;
      tensors.erase(tensors.begin() + 1);
    });
    EXPECT_CONTAINS(message, "1 missing: " + name);

    message = error_with_tensors(file, [&](auto& tensors) {
      tensors.push_back(tensors[1]);
      tensors.back().name = "surplus";
    });
    EXPECT_CONTAINS(message, "1 not known: surplus");

    message = error_with_tensors(file, [&](auto& tensors) { tensors[1].name = "renamed"; });
    EXPECT_CONTAINS(message, "1 missing: ");
    EXPECT_CONTAINS(message, "1 not known: renamed");

    message = error_with_tensors(file, [&](auto& tensors) {
      auto& tensor = tensors[1].tensor;
      tensor = tensor.reshape(Shape{tensor.numel()});
      tensors[1].tensor = tensor.reshape(Shape{1, tensor.numel()});
      name = tensors[1].name;
    });
    EXPECT_CONTAINS(message, name);
    EXPECT_CONTAINS(message, "[1, ");
  }
}

TEST(CheckpointDamage, AnotherTypeIsRefused) {
  const std::string message = error_with_tensors("model.safetensors", [](auto& tensors) {
    auto& tensor = tensors[1].tensor;
    tensor = Tensor(tensor.raw(), tensor.shape(), DType::i32);
  });
  EXPECT_CONTAINS(message, "I32");
}

TEST(Checkpoint, WeightsMayBeSplitOverFilesButEachTensorStandsOnce) {
  const TempDir place;
  Trained saved(1.0f);
  const fs::path path = saved.save(place.path(), 1);
  std::vector<NamedTensor> tensors;
  for (std::size_t i = 0; i < 3; ++i) tensors.push_back({saved.store.rows()[i].name, saved.store.value(i)});
  fs::remove(path / "model.safetensors");
  write_safetensors(path / "model-00001-of-00002.safetensors", std::span(tensors).first(2));
  write_safetensors(path / "model-00002-of-00002.safetensors", std::span(tensors).last(1));
  vouch_again(path);
  expect_loads(path, saved, 1);

  write_safetensors(path / "model-00002-of-00002.safetensors", std::span(tensors).last(2));
  vouch_again(path);
  const std::string message = load_error(path);
  EXPECT_CONTAINS(message, tensors[1].name);
  EXPECT_CONTAINS(message, "1 there twice: ");
  EXPECT_CONTAINS(message, "model-00001-of-00002.safetensors and model-00002-of-00002.safetensors");
}

TEST(Checkpoint, AnotherModelOrSeedIsRefusedWithTheKeysThatDiffer) {
  const TempDir place;
  Trained saved(1.0f);
  saved.save(place.path(), 1);
  Trained other(1.0f);
  other.run.model.num_experts_per_tok = 3;
  other.run.model.rope.theta = 5e5;
  other.run.train.seed = 6;
  const std::string message =
      message_of<InputError>([&] { load_checkpoint(place.path(), other.run, other.store, other.extra()); });
  EXPECT_CONTAINS(message, "model.num_experts_per_tok is 3, in the checkpoint 2");
  EXPECT_CONTAINS(message, "model.rope_theta is ");
  EXPECT_CONTAINS(message, "train.seed is 6, in the checkpoint 5");
  EXPECT_EQ(message.find("hidden_size"), std::string::npos) << message;
}

// ---- interrupted saves
// ----------------------------------------------------------------------------------------

// While it lives, no file of this process grows beyond `bytes`.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

// Sizes at which a save with wide = 500 stops: in config.json, in model.safetensors (header, data), in
// state.safetensors.
constexpr std::array<rlim_t, 4> kStops = {50, 300, 9000, 25000};

TEST(CheckpointFault, AFailedWriteLeavesThePreviousCheckpointAndNothingElse) {
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);  // the write fails instead of the process
  const TempDir place;
  Trained first(1.0f), second(2.0f, 500);
  first.save(place.path(), 1);
  for (const rlim_t stop : kStops) {
    std::string message;
    {
      const FileSizeLimit limit(stop);
      message = message_of<InputError>([&] { second.save(place.path(), 2); });
    }
    EXPECT_CONTAINS(message, ".tmp_step_000002");
    EXPECT_EQ(names_in(place.path() / "checkpoints"), (std::vector<std::string>{"latest", "step_000001"}));
    expect_loads(place.path(), first, 1);
  }
  std::signal(SIGXFSZ, handler);
  EXPECT_NO_THROW(second.save(place.path(), 2));
}

TEST(CheckpointFault, AFailedWriteOfTheSameStepLeavesTheOldOne) {
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const TempDir place;
  Trained first(1.0f), second(2.0f, 500);
  first.save(place.path(), 1);
  {
    const FileSizeLimit limit(kStops.back());
    message_of<InputError>([&] { second.save(place.path(), 1); });
  }
  std::signal(SIGXFSZ, handler);
  expect_loads(place.path(), first, 1);
}

TEST(CheckpointFault, AKilledSaveLeavesThePreviousCheckpoint) {
  const TempDir place;
  Trained first(1.0f), second(2.0f, 500), third(3.0f);
  first.save(place.path(), 1);
  const fs::path checkpoints = place.path() / "checkpoints";
  for (const rlim_t stop : kStops) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::signal(SIGXFSZ, SIG_DFL);  // the kernel kills the process in the middle of a write
      const rlimit no_core{0, 0};
      ::setrlimit(RLIMIT_CORE, &no_core);
      const FileSizeLimit limit(stop);
      second.save(place.path(), 2);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ) << status;
    EXPECT_EQ(names_in(checkpoints), (std::vector<std::string>{".tmp_step_000002", "latest", "step_000001"}));
    EXPECT_EQ(find_latest(place.path()), checkpoints / "step_000001");
    expect_loads(place.path(), first, 1);
  }
  third.save(place.path(), 2);
  EXPECT_EQ(names_in(checkpoints), (std::vector<std::string>{"latest", "step_000001", "step_000002"}));
  expect_loads(place.path(), third, 2);
}

TEST(CheckpointFault, APlaceThatIsNotWritableIsNamed) {
  const TempDir place;
  test::write_bytes(place.path() / "checkpoints", "a file");
  Trained trained(1.0f);
  const std::string message = message_of<InputError>([&] { trained.save(place.path(), 1); });
  EXPECT_CONTAINS(message, (place.path() / "checkpoints").string());
}

}  // namespace
}  // namespace switchyard::checkpoint
