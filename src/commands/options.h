// Options that several commands have, and what their values may be.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "config/ranges.h"

namespace switchyard::commands {

constexpr std::uint64_t kAnyCount = std::numeric_limits<std::int64_t>::max();

// Command::describe of a command whose options are an Options: `describe` declares them, `run` is given them.
template <class Options, void (*describe)(CLI::App&, Options&), int (*run)(const Options&)>
std::function<int()> with_options(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  describe(app, *options);
  return [options] { return run(*options); };
}

// A whole number in [low, high], also written 1e3; `meaning` says what a special one stands for. For
// transform(): it is rewritten in digits, as the option reads it.
CLI::Validator whole_number(std::uint64_t low, const std::string& meaning = "", std::uint64_t high = kAnyCount);

// A number in `range`; `expected` says so to a person.
CLI::Validator number_in(const config::Interval& range, const std::string& expected);

// One of `types`, also written short (bf16). For transform() too.
CLI::Validator type_name(std::vector<std::string> types);

// --set of a model that is there: config::override_routing() takes them.
void describe_routing(CLI::App& app, std::vector<std::string>& overrides);
// Before the model is used (train/calibration.h).
struct CalibrationOptions {
  std::int64_t tokens = 0;        // 0: none
  std::vector<std::string> data;  // empty: what the run trained on
};
void describe_calibration(CLI::App& app, CalibrationOptions& options);

void describe_threads(CLI::App& app, std::int64_t& threads);  // 0: one a core
void describe_nproc(CLI::App& app, std::int64_t& nproc);      // 0: not given
void describe_device(CLI::App& app, std::string& device);     // auto, cpu, cuda
// float32, bfloat16; empty: on a CUDA device what the run trains in, else float32.
void describe_dtype(CLI::App& app, std::string& dtype);

}  // namespace switchyard::commands
