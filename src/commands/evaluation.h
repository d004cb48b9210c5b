// What eval, generate and compare-routing share: a model with another routing than its directory's, calibrated,
// and its evaluation on data.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/model_directory.h"
#include "commands/options.h"
#include "config/load.h"
#include "core/context.h"
#include "core/json.h"
#include "model/transformer.h"
#include "parallel/group.h"
#include "parallel/world.h"
#include "train/calibration.h"
#include "train/evaluator.h"

namespace switchyard::commands {

// What a directory says without any override.
config::RoutedModel routed_model(const checkpoint::ModelDirectory& directory);
// That with the overrides of --set.
config::RoutedModel routed_model(const checkpoint::ModelDirectory& directory,
                                 const std::vector<std::string>& overrides);

// `asked`, or of 0 what the directory's run trained with, or else 2048 or as many positions as the model has.
// Throws InputError where that is too long.
std::int64_t window_length(const checkpoint::ModelDirectory& directory, std::int64_t asked);

// Calibrates models of one directory. By all ranks.
class Calibration {
 public:
  // Opens the data, if the options ask for any. seq_len: as window_length() takes it. `directory` outlives
  // this.
  Calibration(const checkpoint::ModelDirectory& directory, const CalibrationOptions& options,
              std::int64_t seq_len, std::int64_t batch, const parallel::Group& all);

  // The model of the directory with this routing, calibrated if the options ask for it and the router keeps
  // anything that could be. Its activations are not planned.
  std::unique_ptr<model::Transformer> open(const config::RoutedModel& routed, const std::string& dtype,
                                           Context& ctx) const;

 private:
  const checkpoint::ModelDirectory& directory_;
  train::CalibrationSettings settings_;
  std::vector<train::Domain> domains_;  // none: nothing is calibrated
};

struct EvaluationOptions {
  std::string checkpoint;
  std::vector<std::string> data;  // empty: what the run validates on
  std::int64_t seq_len = 0;  // 0: what the checkpoint was trained with; of a model directory 2048 or its most
  std::int64_t batch = 8;
  std::int64_t max_tokens = 0;  // 0: all
  CalibrationOptions calibration;
  std::int64_t threads = 0;  // 0: one a core
  std::string json;          // empty: none; "-": standard output
  std::string device = "auto";
  std::int64_t nproc = 0;  // ranks to start; 0: those that mpirun has started, or one
  std::string dtype;       // empty: on a CUDA device what the run trains in, else float32; float32, bfloat16
};
void describe_evaluation(CLI::App& app, EvaluationOptions& options);

// Evaluations of one directory's models on the same data. By all ranks.
class Evaluation {
 public:
  Evaluation(const EvaluationOptions& options, parallel::World& world);

  const checkpoint::ModelDirectory& directory() const { return directory_; }
  struct Evaluated {
    std::unique_ptr<model::Transformer> model;
    train::EvalResult result;
  };
  struct Way {
    bool calibrates = true;  // as the options ask for it
    bool warms_up = false;   // a first batch that is not timed
  };
  Evaluated evaluate(const config::RoutedModel& routed, const Way& way);

 private:
  parallel::Group all_;
  checkpoint::ModelDirectory directory_;
  std::string dtype_;
  train::EvalSettings settings_;
  std::vector<train::Domain> domains_;
  Calibration calibration_, no_calibration_;
  Context ctx_;
};

// Slots that experts took, of each layer with a router.
std::vector<double> slots_by_layer(const train::EvalResult& result);
// Of the forward pass, a token (model/cost.h): in all, as the static model's with this router, and by layer.
Json flops_json(const train::EvalResult& result, const model::Transformer& model);
void add_figures(Json& json, const router::BalanceFigures& figures);

// Writes JSON where --json says, and returns where everything else goes: standard output if that is free.
std::FILE* text_output(const std::string& json);
void write_json(const std::string& json, const Json& report);
// Before the work, by all ranks: throws InputError where the first could not write one of these; "" and "-" are
// no files. What is there stays as it is.
void check_writable(const std::vector<std::string>& paths, const parallel::Group& all);

}  // namespace switchyard::commands
