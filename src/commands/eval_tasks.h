// `switchyard eval --task`: its options and what it does with a model that is open.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/model_directory.h"
#include "model/transformer.h"
#include "parallel/launch.h"

namespace switchyard::commands {

struct TaskOptions {
  std::vector<std::string> files;  // empty: no tasks
  std::int64_t shots = 0;
  std::string shots_file;  // empty: the task's own questions
  std::int64_t limit = 0;  // 0: all
  std::string description;
  bool has_description = false;
  std::vector<std::string> choices;
  std::int64_t max_new_tokens = 256;
  std::string tokenizer;  // empty: the checkpoint's
  std::string samples;    // empty: none
};

void describe_tasks(CLI::App& app, TaskOptions& options);

// What `eval` has for tasks and for data.
struct EvalOptions {
  std::int64_t seq_len;  // 0: max_position_embeddings
  std::int64_t batch;
  std::string json;  // empty: none; "-": standard output
  std::string device;
};
// The model of the directory, its activations not planned yet.
using OpenModel = std::function<std::unique_ptr<model::Transformer>(Context& ctx)>;
// By all ranks of `world`. Opens the model when files and options have been found good. Returns the exit code.
int evaluate_tasks(const TaskOptions& options, const EvalOptions& common,
                   const checkpoint::ModelDirectory& directory, const OpenModel& open_model,
                   parallel::World& world);

}  // namespace switchyard::commands
