#include "tasks/task_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/utf8.h"
#include "tasks/python_text.h"

namespace switchyard::tasks {

namespace {

// One object of a file; its values by their paths, or an error that names the place.
class Record {
 public:
  Record(const Json& json, std::string place) : json_(json), place_(std::move(place)) {}

  const std::string& place() const { return place_; }
  bool has(std::string_view key) const { return json_.contains(key); }
  bool has_all(std::initializer_list<std::string_view> keys) const {
    return std::all_of(keys.begin(), keys.end(), [&](std::string_view key) { return has(key); });
  }
  const Json& operator[](std::string_view key) const { return json_[key]; }

  const std::string& text(std::string_view key) const { return text_of(json_[key], key); }
  const std::string& text_of(const Json& value, std::string_view key) const {
    if (!value.is_string()) throw_input("{}: {} must be a string, is {}", place_, key, describe(value));
    return value.text();
  }
  const Json::Array& list(const Json& value, std::string_view key) const {
    if (!value.is_array()) throw_input("{}: {} must be a list, is {}", place_, key, describe(value));
    return value.array();
  }
  std::vector<std::string> texts(const Json& value, std::string_view key) const {
    std::vector<std::string> result;
    for (const Json& element : list(value, key)) result.push_back(text_of(element, key));
    return result;
  }
  // A place in a list of n, as a number or as its digits.
  std::size_t place_in(std::string_view key, std::size_t n) const {
    const Json& value = json_[key];
    if (value.is_string() && value.text().empty())
      throw_input("{}: {} is empty; take a split with published answers", place_, key);
    std::optional<std::uint64_t> index = value.whole();
    if (value.is_string() && value.text().size() < 4 &&
        std::all_of(value.text().begin(), value.text().end(), [](char c) { return c >= '0' && c <= '9'; }))
      index = std::stoul(value.text());
    if (!index || *index >= n)
      throw_input("{}: {} is {}, and there are {} choices, counted from 0", place_, key, describe(value), n);
    return static_cast<std::size_t>(*index);
  }

 private:
  const Json& json_;
  std::string place_;
};

// --- the schemas ---------------------------------------------------------------------------------------------

// What lm_eval does to all texts of HellaSwag: what is in brackets are remains of WikiHow's markup.
std::string without_markup(std::string_view text) {
  const std::string titles = replaced(stripped(text), " [title]", ". ");
  std::string result;
  for (std::size_t at = 0; at < titles.size();) {
    const std::size_t end = titles[at] == '[' ? titles.find_first_of("]\n", at) : std::string::npos;
    if (end != std::string::npos && titles[end] == ']') {
      at = end + 1;
    } else {
      result += titles[at++];
    }
  }
  return replaced(result, "  ", " ");
}

void read_hellaswag(const Record& record, Question& q) {
  q.prompt = without_markup(record.text("activity_label") + ": " + record.text("ctx_a") + " " +
                            capitalised(record.text("ctx_b")));
  for (const std::string& ending : record.texts(record["endings"], "endings"))
    q.choices.push_back(without_markup(ending));
  q.answer = record.place_in("label", q.choices.size());
}

std::string asked(std::string_view question) { return fmt::format("Question: {}\nAnswer:", question); }

void read_arc(const Record& record, Question& q) {
  std::vector<std::string> labels;
  const Json& question = record["question"];
  if (question.is_object()) {  // as its authors publish it
    q.prompt = asked(record.text_of(question["stem"], "question.stem"));
    for (const Json& choice : record.list(question["choices"], "question.choices")) {
      q.choices.push_back(record.text_of(choice["text"], "question.choices.text"));
      labels.push_back(record.text_of(choice["label"], "question.choices.label"));
    }
  } else {
    q.prompt = asked(record.text("question"));
    q.choices = record.texts(record["choices"]["text"], "choices.text");
    labels = record.texts(record["choices"]["label"], "choices.label");
  }
  if (labels.size() != q.choices.size())
    throw_input("{}: choices has {} texts and {} labels", record.place(), q.choices.size(), labels.size());
  const std::string& key = record.text("answerKey");
  const auto found = std::find(labels.begin(), labels.end(), key);
  if (found == labels.end())
    throw_input("{}: answerKey is {}, and the labels are {}", record.place(), in_quotes(key),
                fmt::join(labels, ", "));
  q.answer = static_cast<std::size_t>(found - labels.begin());
}

void read_piqa(const Record& record, Question& q) {
  if (!record.has("label"))
    throw_input(
        "{}: has no label; piqa's answers lie in a file of their own, and tools/get_data.py joins the two",
        record.place());
  q.prompt = asked(record.text("goal"));
  q.choices = {record.text("sol1"), record.text("sol2")};
  q.answer = record.place_in("label", 2);
}

void read_mmlu(const Record& record, Question& q) {
  constexpr std::string_view kLetters = "ABCD";
  const auto texts = record.texts(record["choices"], "choices");
  if (texts.size() != kLetters.size())
    throw_input("{}: choices must be a list of {}, has {}", record.place(), kLetters.size(), texts.size());
  q.prompt = stripped(record.text("question"));
  for (std::size_t i = 0; i < texts.size(); ++i) {
    q.prompt += fmt::format("\n{}. {}", kLetters[i], texts[i]);
    q.choices.emplace_back(1, kLetters[i]);
  }
  q.prompt += "\nAnswer:";
  q.answer = record.place_in("answer", q.choices.size());
  if (record.has("subject")) q.subject = record.text("subject");
}

// "(A) ...", "- Yes" behind a line "Options:".
std::vector<std::string> listed_options(std::string_view input) {
  std::vector<std::string> options;
  constexpr std::string_view kHead = "Options:\n";
  std::size_t at = input.rfind(kHead);
  if (at == std::string_view::npos) return options;
  for (at += kHead.size(); at < input.size();) {
    const std::size_t end = std::min(input.find('\n', at), input.size());
    const std::string_view line = input.substr(at, end - at);
    if (line.size() > 3 && line[0] == '(' && line[2] == ')') {
      options.emplace_back(line.substr(0, 3));
    } else if (line.starts_with("- ")) {
      options.emplace_back(stripped(line.substr(2)));
    } else {
      break;
    }
    at = end + 1;
  }
  return options;
}

void read_bbh(const Record& record, Question& q) {
  const std::string& input = record.text("input");
  q.prompt = fmt::format("Q: {}\nA:", input);
  q.choices = listed_options(input);
  q.target = record.text("target");
}

void read_choices(const Record& record, Question& q) {
  q.prompt = record.text("context");
  q.choices = record.texts(record["choices"], "choices");
  q.answer = record.place_in("answer", q.choices.size());
}

void read_gsm8k(const Record& record, Question& q) {
  q.prompt = asked(record.text("question"));
  q.target = record.text("answer");
  if (q.target.find("#### ") == std::string::npos)
    throw_input("{}: answer must end in \"#### \" and the result", record.place());
}

struct Format {
  Schema schema;
  std::string_view name;
  std::string_view keys;  // in words
  bool (*fits)(const Record& record);
  void (*read)(const Record& record, Question& question);
};
// The first that fits holds.
constexpr std::array<Format, 7> kFormats = {{
    {Schema::hellaswag, "hellaswag", "activity_label, ctx_a, ctx_b, endings, label",
     [](const Record& r) {
       return r.has_all({"activity_label", "ctx_a", "ctx_b", "endings", "label"});
     },
     read_hellaswag},
    {Schema::arc, "arc", "question, choices {text, label}, answerKey",
     [](const Record& r) {
       return r.has_all({"question", "answerKey"}) && (r["question"].is_object() || r["choices"].is_object());
     },
     read_arc},
    {Schema::piqa, "piqa", "goal, sol1, sol2, label",
     [](const Record& r) {
       return r.has_all({"goal", "sol1", "sol2"});
     },
     read_piqa},
    {Schema::mmlu, "mmlu", "question, choices, answer",
     [](const Record& r) {
       return r.has_all({"question", "choices", "answer"});
     },
     read_mmlu},
    {Schema::bbh, "bbh", "input, target",
     [](const Record& r) {
       return r.has_all({"input", "target"});
     },
     read_bbh},
    {Schema::choices, "choices", "context, choices, answer",
     [](const Record& r) {
       return r.has_all({"context", "choices", "answer"});
     },
     read_choices},
    {Schema::gsm8k, "gsm8k", "question, answer",
     [](const Record& r) {
       return r.has_all({"question", "answer"});
     },
     read_gsm8k},
}};

const Format& format_of(const Json& json, const Record& record) {
  if (!json.is_object()) throw_input("{}: must be an object, is {}", record.place(), describe(json));
  for (const Format& format : kFormats)
    if (format.fits(record)) return format;
  std::vector<std::string> known, keys;
  for (const Format& format : kFormats) known.push_back(fmt::format("{} ({})", format.name, format.keys));
  for (const JsonMember& member : json.object()) keys.push_back(member.key);
  throw_input("{}: its keys are {}, which fit no schema; known are {}", record.place(),
              printable(fmt::format("{}", fmt::join(keys, ", "))), fmt::join(known, "; "));
}

// --- the file -----------------------------------------------------------------------------------------------

void check_choices(const Question& q) {
  if (q.choices.size() < 2)
    throw_input("{}: has {} choices; two are needed at least", q.place, q.choices.size());
  for (std::size_t i = 0; i < q.choices.size(); ++i)
    if (q.choices[i].empty()) throw_input("{}: choice {} is empty", q.place, i);
}

// lm_eval asks every question of a task of BBH for the same choices, so that a question that lists fewer than
// others has theirs too. An answer that is none of them is wrong whatever the model chooses, as it is there.
void share_choices(std::vector<Question>& questions, const std::vector<std::string>& given) {
  std::vector<std::string> shared = given;
  if (given.empty())
    for (const Question& q : questions) {
      if (q.choices.empty())
        throw_input("{}: its input ends in no list of \"Options:\"; give --choices", q.place);
      for (const std::string& choice : q.choices)
        if (std::find(shared.begin(), shared.end(), choice) == shared.end()) shared.push_back(choice);
    }
  for (Question& q : questions) {
    q.choices = shared;
    const auto found = std::find(shared.begin(), shared.end(), q.target);
    if (found != shared.end()) {
      q.answer = static_cast<std::size_t>(found - shared.begin());
    } else {
      log_warning(fmt::format("{}: target is {}, none of the choices {}: counted as wrong", q.place,
                              in_quotes(q.target), fmt::join(shared, ", ")));
    }
  }
}

void add(TaskFile& task, const Json& json, std::int64_t line, std::string_view source) {
  const Record record(json, fmt::format("{}:{}", task.path.string(), line));
  const Format& format = format_of(json, record);
  if (task.questions.empty()) task.schema = format.schema;
  if (task.schema != format.schema)
    throw_input("{}: its keys are those of {}, and the first question's those of {}; give each its own file",
                record.place(), format.name, name_of(task.schema));
  Question q{.place = record.place(),
             .line = line,
             .prompt = {},
             .choices = {},
             .answer = {},
             .target = {},
             .subject = {},
             .source = std::string(source)};
  format.read(record, q);
  if (q.answer) q.target = q.choices[*q.answer];
  task.questions.push_back(std::move(q));
}

}  // namespace

std::string_view name_of(Schema schema) {
  return std::find_if(kFormats.begin(), kFormats.end(), [&](const Format& f) { return f.schema == schema; })
      ->name;
}

TaskFile read_task_file(const std::filesystem::path& path, const std::vector<std::string>& choices) {
  return parse_task_file(read_text_file(path), path, choices);
}

TaskFile parse_task_file(const std::string& text, const std::filesystem::path& path,
                         const std::vector<std::string>& choices) {
  if (text.starts_with("PAR1"))
    throw_input("{}: is a Parquet file; 'tools/parquet_to_jsonl.py' makes lines of JSON of it", path.string());
  if (const auto byte = first_invalid_byte(text))
    throw_input("{}: byte {} is not UTF-8; a task file is lines of JSON", path.string(), *byte);
  TaskFile task{path, Schema::choices, {}};
  // BBH's authors publish one object with a list of examples.
  if (const auto whole = try_parse_json(text); whole && (*whole)["examples"].is_array()) {
    std::int64_t place = 0;
    for (const Json& example : (*whole)["examples"].array()) add(task, example, ++place, to_line(example));
  } else {
    std::int64_t line = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      const std::string_view source = stripped(std::string_view(text).substr(at, end - at));
      at = end + 1;
      ++line;
      if (!source.empty())
        add(task, parse_json(source, fmt::format("{}:{}", path.string(), line)), line, source);
    }
  }
  if (task.questions.empty()) throw_input("{}: holds no question", path.string());
  if (!choices.empty() && task.schema != Schema::bbh)
    throw_input("--choices: is for files with input and target; {} has choices of its own", path.string());
  if (task.schema == Schema::bbh) share_choices(task.questions, choices);
  if (task.schema != Schema::gsm8k) std::for_each(task.questions.begin(), task.questions.end(), check_choices);
  return task;
}

std::string full_prompt(const TaskFile& task, const Question& question, const Examples& examples) {
  std::string prompt;
  if (examples.description) {
    prompt = *examples.description;
  } else if (task.schema == Schema::mmlu && !question.subject.empty()) {
    prompt = fmt::format("The following are multiple choice questions (with answers) about {}.\n\n",
                         replaced(question.subject, "_", " "));
  }
  const TaskFile& from = examples.file ? *examples.file : task;
  std::int64_t shown = 0;
  for (const Question& example : from.questions) {
    if (shown == examples.shots) break;
    if (example.subject != question.subject || (!examples.file && example.source == question.source)) continue;
    prompt += fmt::format("{} {}\n\n", example.prompt, example.target);
    ++shown;
  }
  if (shown < examples.shots)
    throw_input("--shots {}: {} has {} examples for {}{}; give --shots-file or fewer shots", examples.shots,
                from.path.string(), shown, question.place,
                question.subject.empty() ? "" : fmt::format(" (subject {})", in_quotes(question.subject)));
  return prompt + question.prompt;
}

}  // namespace switchyard::tasks
