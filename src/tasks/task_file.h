// Files of questions, one JSON object a line, in the schemas in which public tasks are published, and the
// prompts that lm_eval 0.4.13 makes of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::tasks {

// Which task's format a file has, by its keys.
enum class Schema {
  hellaswag,  // activity_label, ctx_a, ctx_b, endings, label
  arc,   // question, choices {text, label}, answerKey; or question {stem, choices [{text, label}]}, answerKey
  piqa,  // goal, sol1, sol2, label
  mmlu,  // question, choices, answer, subject or none
  bbh,   // input, target; the choices are what "Options:" lists in the input
  choices,  // context, choices, answer: ours
  gsm8k,    // question, answer that ends in "#### N": generated, not chosen
};
std::string_view name_of(Schema schema);

struct Question {
  std::string place;  // "FILE:LINE", for messages
  std::int64_t line;  // in the file, from 1; of a file that is one list: its place there
  std::string prompt;
  std::vector<std::string> choices;   // none: the answer is generated
  std::optional<std::size_t> answer;  // of the choices; none: of none of them, so that no choice is right
  std::string target;                 // the answer as an example shows it
  std::string subject;                // MMLU's: examples are of the same one
  std::string source;                 // the line as it stands in the file
};

struct TaskFile {
  std::filesystem::path path;
  Schema schema;
  std::vector<Question> questions;  // one at least
};

// `choices`: of every question of a bbh file, in place of those that its inputs list. Throws InputError naming
// file and line: no JSON, keys of no schema or of another one than the first line's, a value of the wrong type,
// an empty choice, an answer that is none of the choices; and where the file is empty or is no such file.
TaskFile read_task_file(const std::filesystem::path& path, const std::vector<std::string>& choices = {});
// The same of a text; `path` names it in messages.
TaskFile parse_task_file(const std::string& text, const std::filesystem::path& path,
                         const std::vector<std::string>& choices = {});

// What stands before a question.
struct Examples {
  std::int64_t shots = 0;
  std::optional<TaskFile>
      file;  // its first ones; none: the first of the task's own that differ from the question
  std::optional<std::string> description;  // before everything; none: of MMLU what lm_eval says of a subject
};
// The prompt of a question as lm_eval's first_n sampler makes it. Throws InputError where there are fewer
// examples than shots.
std::string full_prompt(const TaskFile& task, const Question& question, const Examples& examples);

}  // namespace switchyard::tasks
