// What a model scores in a task, with the names and numbers of lm_eval.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "tasks/scoring.h"
#include "tasks/task_file.h"

namespace switchyard::tasks {

struct Metric {
  // acc: the likeliest choice is right; acc_norm, acc_bytes: the one likeliest for a character, for a byte, of
  // it. strict_match, flexible_extract: the answer that was generated is right (exact_match.h).
  std::string name;
  double value;                     // the share of questions
  std::optional<double> std_error;  // sqrt(value (1 - value) / (n - 1)); none of one question
};

struct TaskResult {
  std::string name;  // of the file, without its ending
  Schema schema;
  std::int64_t questions = 0, shots = 0;
  std::int64_t truncated = 0;  // prompts of which the beginning was left out, of all choices
  std::vector<Metric> metrics;
  double seconds = 0;
  std::vector<Json> samples;  // one a question, on the first rank, where they are asked for
};

struct TaskSettings {
  Examples examples;
  std::int64_t limit = 0;             // so many questions, from the first on; 0: all
  std::int64_t max_new_tokens = 256;  // of an answer that is generated
  bool samples = false;
};

Metric metric_of(std::string name, std::int64_t right, std::int64_t questions);

// What evaluate() would refuse of a file with choices, before there is a model; the prompts that would lose
// their beginning are counted in a warning, which evaluate() leaves out where passes.may_plan is false.
void check_prompts(const TaskFile& task, const TaskSettings& settings, const checkpoint::ModelTokenizer& text,
                   std::int64_t most_tokens);

// Throws InputError: a choice that alone is longer than passes.most_tokens; no room for max_new_tokens; too few
// examples; a file whose answers are generated where the passes may not plan the model.
TaskResult evaluate(const TaskFile& task, const TaskSettings& settings, const checkpoint::ModelTokenizer& text,
                    const Passes& passes);

Json to_json(const TaskResult& result);  // without samples
// A table of all, a line a metric.
std::vector<std::string> table_of(const std::vector<TaskResult>& results);

}  // namespace switchyard::tasks
