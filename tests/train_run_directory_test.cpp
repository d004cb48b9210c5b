#include "train/run_directory.h"

#include <gtest/gtest.h>

#include "run_samples.h"

namespace switchyard::train {
namespace {

using namespace test;

namespace fs = std::filesystem;

TEST(RunDirectory, IsCreatedWithItsParentsAndTheConfiguration) {
  const TempDir place;
  const RunDirectory directory(place.path() / "runs" / "x", small_run(), ExistingRun::refuse, 0);
  EXPECT_EQ(slurp(directory.config_path()), small_run().resolved_json);
  EXPECT_EQ(directory.metrics_path(), place.path() / "runs" / "x" / "metrics.jsonl");
}

TEST(RunDirectory, ARunThatFailedBeforeItsFirstStepMayBeReplaced) {
  const TempDir place;
  { const RunDirectory first(place.path(), small_run(), ExistingRun::refuse, 0); }
  const RunDirectory second(place.path(), small_run(), ExistingRun::refuse, 0);
  EXPECT_EQ(slurp(second.config_path()), small_run().resolved_json);
}

TEST(RunDirectory, AnotherRunInsideIsRefusedUnlessResumed) {
  for (const bool by_metrics : {true, false}) {
    const TempDir place;
    if (by_metrics) {
      test::write_bytes(place.path() / "metrics.jsonl", "{\"step\":1}\n");
    } else {
      fs::create_directories(place.path() / "checkpoints" / "step_000001");
    }
    const std::string message =
        message_of<InputError>([&] { RunDirectory(place.path(), small_run(), ExistingRun::refuse, 0); });
    EXPECT_CONTAINS(message, place.path().string());
    EXPECT_CONTAINS(message, "--resume");
    EXPECT_CONTAINS(message, "--out");
    EXPECT_FALSE(fs::exists(place.path() / "config.json"));
    const RunDirectory resumed(place.path(), small_run(), ExistingRun::go_on, 0);
    EXPECT_TRUE(fs::exists(resumed.config_path()));
  }
}

TEST(RunDirectory, WhatAnotherProcessHasSavedMeanwhileIsNotGoneBackFrom) {
  const TempDir place;
  const fs::path checkpoints = place.path() / "checkpoints";
  for (const char* step : {"step_000001", "step_000002"}) fs::create_directories(checkpoints / step);
  fs::create_directory_symlink("step_000002", checkpoints / "latest");
  for (const std::int64_t looked_at : {0, 1}) {
    const std::string message =
        message_of<InputError>([&] { RunDirectory(place.path(), small_run(), ExistingRun::go_on, looked_at); });
    EXPECT_CONTAINS(message, "another process has saved step_000002");
    EXPECT_FALSE(fs::exists(place.path() / "config.json"));
    EXPECT_FALSE(fs::exists(place.path() / "abandoned_1"));
  }
  const RunDirectory newest(place.path(), small_run(), ExistingRun::go_on, 2);
  EXPECT_FALSE(fs::exists(place.path() / "abandoned_1"));
}

TEST(RunDirectory, AForeignConfigJsonIsNotOverwritten) {
  const TempDir place;
  test::write_bytes(place.path() / "config.json", R"({"scripts": {}})");
  const std::string message =
      message_of<InputError>([&] { RunDirectory(place.path(), small_run(), ExistingRun::refuse, 0); });
  EXPECT_CONTAINS(message, "config.json");
  EXPECT_EQ(slurp(place.path() / "config.json"), R"({"scripts": {}})");
}

TEST(RunDirectory, TwoProcessesDoNotShareIt) {
  const TempDir place;
  {
    const RunDirectory first(place.path(), small_run(), ExistingRun::refuse, 0);
    const std::string message =
        message_of<InputError>([&] { RunDirectory(place.path(), small_run(), ExistingRun::go_on, 0); });
    EXPECT_CONTAINS(message, "another process");
  }
  EXPECT_NO_THROW(RunDirectory(place.path(), small_run(), ExistingRun::go_on, 0));
}

TEST(RunDirectory, AFileInItsPlaceIsNamed) {
  const TempDir place;
  test::write_bytes(place.path() / "file", "x");
  for (const fs::path& path : {place.path() / "file", place.path() / "file" / "run"}) {
    const std::string message =
        message_of<InputError>([&] { RunDirectory(path, small_run(), ExistingRun::refuse, 0); });
    EXPECT_CONTAINS(message, path.string());
  }
}

TEST(RunDirectory, APlaceThatIsNotWritableIsNamed) {
  // /proc takes no files from anyone, so this also holds for the superuser.
  if (!fs::exists("/proc/self")) GTEST_SKIP() << "this system has no /proc";
  const std::string message =
      message_of<InputError>([] { RunDirectory("/proc/self", small_run(), ExistingRun::refuse, 0); });
  EXPECT_CONTAINS(message, "/proc/self");
}

}  // namespace
}  // namespace switchyard::train
