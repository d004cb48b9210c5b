#include "commands/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <utility>

#include "config/names.h"

namespace switchyard::commands {

namespace {

// All of `text` as strtod reads it.
std::optional<double> number_of(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || end != text.c_str() + text.size()) return std::nullopt;
  return value;
}

bool holds(const config::Interval& range, double value) {
  return (range.low_open ? value > range.low : value >= range.low) &&
         (range.high_open ? value < range.high : value <= range.high);
}

}  // namespace

CLI::Validator whole_number(std::uint64_t low, const std::string& meaning, std::uint64_t high) {
  return CLI::Validator(
      [=](std::string& text) {
        constexpr double kEveryInteger = 9007199254740992.0;  // 2^53: beyond it a double is not exact
        std::uint64_t value = 0;
        const char* const end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, value);
        bool good = error == std::errc() && stop == end;
        if (const auto real = number_of(text);
            !good && real && *real >= 0 && *real <= kEveryInteger && std::trunc(*real) == *real) {
          value = static_cast<std::uint64_t>(*real);
          good = true;
        }
        if (good && value >= low && value <= high) return text = std::to_string(value), std::string();
        return "is " + text + ", expected a whole number " +
               (high >= kAnyCount ? "of " + std::to_string(low) + " or more"
                                  : "from " + std::to_string(low) + " to " + std::to_string(high)) +
               (meaning.empty() ? "" : " (" + meaning + ")");
      },
      "");
}

CLI::Validator number_in(const config::Interval& range, const std::string& expected) {
  return CLI::Validator(
      [=](std::string& text) {
        const auto value = number_of(text);
        return value && holds(range, *value) ? std::string() : "is " + text + ", expected " + expected;
      },
      "");
}

CLI::Validator type_name(std::vector<std::string> types) {
  return CLI::Validator(
      [types = std::move(types)](std::string& text) {
        const std::string found = text;
        text = config::full_type_name(text);
        if (std::find(types.begin(), types.end(), text) != types.end()) return std::string();
        return "is " + found + ", expected one of: " + CLI::detail::join(types, ", ");
      },
      "");
}

void describe_routing(CLI::App& app, std::vector<std::string>& overrides) {
  app.add_option(
         "--set", overrides,
         "Another router, or other options of it, on the same weights: router.KEY=value or "
         "model.num_experts_per_tok=N; may be repeated. What the weights lack begins anew, and is listed")
      ->type_name("a.b=value")
      ->take_all()
      ->expected(1);
}

void describe_calibration(CLI::App& app, CalibrationOptions& options) {
  app.add_option(
         "--calibrate", options.tokens,
         "First fit what the router keeps beside its trained weights (running means, thresholds, biases) "
         "to so many tokens; no trained weight changes")
      ->type_name("TOKENS")
      ->transform(whole_number(1));
  app.add_option(
         "--calibrate-data", options.data,
         "Token shards to calibrate on: files, directories or quoted globs (default: the run's data.train)")
      ->type_name("PATH_OR_GLOB");
}

void describe_threads(CLI::App& app, std::int64_t& threads) {
  constexpr std::uint64_t kMaxThreads = 4096;
  app.add_option("--threads", threads, "Threads to use (default: one a core)")
      ->type_name("N")
      ->transform(whole_number(0, "0: one a core", kMaxThreads));
}

void describe_nproc(CLI::App& app, std::int64_t& nproc) {
  constexpr std::uint64_t kMostRanks = 1024;
  app.add_option(
         "--nproc", nproc,
         "Run as so many processes of this machine, the ranks (default: as many as mpirun has started, or "
         "one)")
      ->type_name("N")
      ->transform(whole_number(1, "", kMostRanks));
}

void describe_device(CLI::App& app, std::string& device) {
  app.add_option("--device", device, "Where to compute; auto: on a CUDA device if one can be used")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
}

void describe_dtype(CLI::App& app, std::string& dtype) {
  app.add_option("--dtype", dtype,
                 "What to compute in (default: on a CUDA device the run's train.dtype, else float32)")
      ->type_name("DTYPE")
      ->transform(type_name({"float32", "bfloat16"}));
}

}  // namespace switchyard::commands
