// `switchyard eval --task`: its options and what it does with a model that is open.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/model_directory.h"
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
// By all ranks of `world`. Returns the exit code.
int evaluate_tasks(const TaskOptions& options, const EvalOptions& common,
                   const checkpoint::ModelDirectory& directory, const checkpoint::ModelOptions& model_options,
                   parallel::World& world);

}  // namespace switchyard::commands
