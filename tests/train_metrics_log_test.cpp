#include "train/metrics_log.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "json_values.h"
#include "run_samples.h"

namespace switchyard::train {
namespace {

using namespace test;

TEST(MetricsRecord, WritesEachKindInOrder) {
  MetricsRecord layer;
  layer.add("gini", 0.5).add("counts", std::vector<std::int64_t>{3, 0});
  MetricsRecord record;
  record.add("step", 7)
      .add("samples", std::uint64_t{18446744073709551615u})
      .add("loss", 2.0)
      .add("lr", 1e-3)
      .add("done", true)
      .add("name", "a \"quoted\"\nline")
      .add("layer_gini", std::vector<double>{0.25, 1.0})
      .add("layers", std::vector<MetricsRecord>{layer, layer})
      .add("balance", layer);
  EXPECT_EQ(record.json(), R"({"step":7,"samples":18446744073709551615,"loss":2.0,"lr":0.001,"done":true,)"
                           R"("name":"a \"quoted\"\nline","layer_gini":[0.25,1.0],)"
                           R"("layers":[{"gini":0.5,"counts":[3,0]},{"gini":0.5,"counts":[3,0]}],)"
                           R"("balance":{"gini":0.5,"counts":[3,0]}})");
}

TEST(MetricsRecord, NumbersReadBackAsTheSameBits) {
  const std::vector<double> doubles = {0.1,  1.0 / 3.0,   1e-308, 5e-324, 1.7976931348623157e308,
                                       -0.0, 123456789.0, 1e22};
  for (const double value : doubles) {
    const Json back = parsed(MetricsRecord().add("x", value).json());
    EXPECT_EQ(std::bit_cast<std::uint64_t>(back["x"].number()), std::bit_cast<std::uint64_t>(value)) << value;
  }
  for (const float value : {0.1f, 1.0f / 3.0f, 1e-45f, 3.4028235e38f, 2.3456789f}) {
    const Json back = parsed(MetricsRecord().add("x", value).json());
    EXPECT_EQ(static_cast<float>(back["x"].number()), value);
  }
}

TEST(MetricsRecord, NumbersThatAreNotFiniteBecomeNull) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(MetricsRecord().add("a", nan).add("b", std::vector<double>{1.0, -inf}).json(),
            R"({"a":null,"b":[1.0,null]})");
}

TEST(MetricsRecord, ANameStandsOnce) {
  MetricsRecord record;
  record.add("loss", 1.0);
  EXPECT_THROW(record.add("loss", 2.0), std::logic_error);
}

TEST(MetricsLog, AppendsLinesAcrossOpenings) {
  const TempDir place;
  const auto path = place.path() / "metrics.jsonl";
  for (int step = 1; step <= 2; ++step) {
    MetricsLog log(path);
    log.append(MetricsRecord().add("step", step));
    log.close();
  }
  EXPECT_EQ(slurp(path), "{\"step\":1}\n{\"step\":2}\n");
}

TEST(MetricsLog, TruncationKeepsWholeLinesUpToTheStep) {
  const TempDir place;
  const auto path = place.path() / "metrics.jsonl";
  const std::string first = "{\"step\":1,\"loss\":3.5}\n{\"step\":2,\"loss\":3.25}\n";
  test::write_bytes(path, first + "{\"step\":3,\"loss\":3.0}\n{\"step\":4,\"lo");
  MetricsLog::truncate_after(path, 2);
  EXPECT_EQ(slurp(path), first);
  MetricsLog::truncate_after(path, 2);
  EXPECT_EQ(slurp(path), first);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(place.path()), {}), 1);
}

TEST(MetricsLog, TruncationDropsACutLastLineEvenOfAnEarlierStep) {
  const TempDir place;
  const auto path = place.path() / "metrics.jsonl";
  test::write_bytes(path, "{\"step\":1}\n{\"step\":2}");  // its end is missing, so more may be
  MetricsLog::truncate_after(path, 9);
  EXPECT_EQ(slurp(path), "{\"step\":1}\n");
}

TEST(MetricsLog, TruncationToZeroEmptiesAndAnAbsentFileStaysAbsent) {
  const TempDir place;
  const auto path = place.path() / "metrics.jsonl";
  MetricsLog::truncate_after(path, 3);
  EXPECT_FALSE(std::filesystem::exists(path));
  test::write_bytes(path, "{\"step\":1}\n");
  MetricsLog::truncate_after(path, 0);
  EXPECT_EQ(slurp(path), "");
}

TEST(MetricsLog, ALineThatIsNoRecordIsNamedAndTheFileStays) {
  const TempDir place;
  const auto path = place.path() / "metrics.jsonl";
  for (const std::string bad : {"nonsense", "[1]", "{\"loss\":1}", "{\"step\":1.5}", ""}) {
    const std::string text = "{\"step\":1}\n" + bad + "\n{\"step\":3}\n";
    test::write_bytes(path, text);
    const std::string message = message_of<InputError>([&] { MetricsLog::truncate_after(path, 2); });
    EXPECT_CONTAINS(message, path.string());
    EXPECT_CONTAINS(message, "line 2");
    EXPECT_EQ(slurp(path), text);
  }
}

TEST(MetricsLog, APlaceThatCannotBeWrittenIsNamed) {
  const std::string message = message_of<InputError>([] { MetricsLog log("/nonexistent/metrics.jsonl"); });
  EXPECT_CONTAINS(message, "/nonexistent/metrics.jsonl");
}

TEST(MetricsLog, AFullDiskIsReported) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  MetricsLog log("/dev/full");
  const std::string message = message_of<InputError>([&] { log.append(MetricsRecord().add("step", 1)); });
  EXPECT_CONTAINS(message, "No space left");
}

}  // namespace
}  // namespace switchyard::train
