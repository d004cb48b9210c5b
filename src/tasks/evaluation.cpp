#include "tasks/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <span>

#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "generate/generator.h"
#include "tasks/exact_match.h"
#include "tasks/python_text.h"

namespace switchyard::tasks {

namespace {

std::span<const Question> asked_questions(const TaskFile& task, const TaskSettings& settings) {
  const auto all = std::span(task.questions);
  return settings.limit == 0 ? all : all.first(std::min(all.size(), static_cast<std::size_t>(settings.limit)));
}

std::size_t largest(std::span<const double> values) {
  return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

std::vector<double> over(std::span<const double> values, const std::vector<std::string>& choices,
                         const std::function<double(const std::string&)>& length) {
  std::vector<double> result;
  for (std::size_t c = 0; c < choices.size(); ++c) result.push_back(values[c] / length(choices[c]));
  return result;
}

// The choices of all questions behind their prompts.
struct Pairs {
  std::vector<Continuation> of_choices;
  std::vector<std::string> prompts;
  std::int64_t truncated = 0;
};

Pairs pairs_of(const TaskFile& task, const TaskSettings& settings, const checkpoint::ModelTokenizer& text,
               std::int64_t most_tokens) {
  Pairs pairs;
  for (const Question& q : asked_questions(task, settings)) {
    const std::string& prompt = pairs.prompts.emplace_back(full_prompt(task, q, settings.examples));
    for (std::size_t c = 0; c < q.choices.size(); ++c) {
      const Continuation& pair = pairs.of_choices.emplace_back(
          encode_pair(text, prompt, " " + q.choices[c], fmt::format("{}: choice {}", q.place, c)));
      const auto context = std::ssize(pair.context), tokens = std::ssize(pair.tokens);
      if (tokens > most_tokens)
        throw_input("{}: choice {} alone has {} tokens, and the model sees {}; leave the question out", q.place,
                    c, tokens, most_tokens);
      pairs.truncated += context + tokens > most_tokens + 1 ? 1 : 0;
    }
  }
  return pairs;
}

void warn_of_truncated(const TaskFile& task, std::int64_t truncated, std::int64_t most_tokens) {
  if (truncated > 0)
    log_warning(
        fmt::format("{}: {} prompts are longer than the {} tokens that the model sees, and lose their "
                    "beginning",
                    task.path.string(), truncated, most_tokens));
}

void evaluate_choices(TaskResult& result, const TaskFile& task, const TaskSettings& settings,
                      const checkpoint::ModelTokenizer& text, const Passes& passes) {
  const auto questions = asked_questions(task, settings);
  const Pairs pairs = pairs_of(task, settings, text, passes.most_tokens);
  result.truncated = pairs.truncated;
  const std::vector<double> sums = log_probabilities(pairs.of_choices, passes);
  std::int64_t right = 0, right_norm = 0, right_bytes = 0;
  auto of_question = std::span(sums);
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const Question& q = questions[i];
    const auto of_choice = of_question.first(q.choices.size());
    of_question = of_question.subspan(q.choices.size());
    const std::size_t best = largest(of_choice),
                      best_norm = largest(over(
                          of_choice, q.choices,
                          [](const std::string&choice) { return static_cast<double>(n_characters(choice)); })),
                      best_bytes = largest(over(of_choice, q.choices, [](const std::string&choice) {
                        return static_cast<double>(choice.size());
                      }));
    right += best == q.answer ? 1 : 0;
    right_norm += best_norm == q.answer ? 1 : 0;
    right_bytes += best_bytes == q.answer ? 1 : 0;
    if (!settings.samples) continue;
    Json answer;
    if (q.answer) answer = Json(*q.answer);
    result.samples.emplace_back(Json::Object{{"line", q.line},
                                             {"prompt", pairs.prompts[i]},
                                             {"choices", Json::list(q.choices)},
                                             {"answer", std::move(answer)},
                                             {"log_probabilities", Json::list(of_choice)},
                                             {"acc", best == q.answer},
                                             {"acc_norm", best_norm == q.answer},
                                             {"acc_bytes", best_bytes == q.answer}});
  }
  result.metrics = {metric_of("acc", right, result.questions),
                    metric_of("acc_norm", right_norm, result.questions),
                    metric_of("acc_bytes", right_bytes, result.questions)};
}

// Greedily, up to a stop string, a token that ends a text, or max_new_tokens; each as it is alone.
std::vector<std::string> generated(std::span<const std::vector<std::int32_t>> prompt_B,
                                   const TaskSettings& settings, const checkpoint::ModelTokenizer& text,
                                   const Passes& passes) {
  std::int64_t longest = 0;
  std::vector<std::unique_ptr<tokenizer::TextStream>> stream_B;
  for (const auto& prompt : prompt_B) {
    longest = std::max<std::int64_t>(longest, std::ssize(prompt));
    stream_B.push_back(text.tokenizer->text_stream());
  }
  std::vector<std::string> written_B(prompt_B.size());
  generate::Generator generator(passes.model, longest + settings.max_new_tokens - 1, passes.ctx,
                                std::ssize(prompt_B));
  generate::Sampler sampler({.temperature = 0});
  generate::continue_prompts(generator, sampler, prompt_B, settings.max_new_tokens, text.end_tokens,
                             [&](std::size_t b, std::int32_t token) {
                               written_B[b] += stream_B[b]->push(token);
                               return before_stop(written_B[b]).size() == written_B[b].size();
                             });
  for (std::size_t b = 0; b < written_B.size(); ++b) {
    written_B[b] += stream_B[b]->finish();
    written_B[b].resize(before_stop(written_B[b]).size());
  }
  return written_B;
}

// A question that this rank asks.
struct Asked {
  const Question* question;
  std::string prompt;
  std::vector<std::int32_t> tokens;
  std::string answer{};
};

// In batches of prompts that are about as long.
void answer(std::vector<Asked>& asked, const TaskSettings& settings, const checkpoint::ModelTokenizer& text,
            const Passes& passes) {
  std::vector<std::size_t> order(asked.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return asked[a].tokens.size() > asked[b].tokens.size();
  });
  const auto most = static_cast<std::size_t>(passes.n_seq);
  for (std::size_t first = 0; first < order.size(); first += most) {
    mark("answer", static_cast<std::int64_t>(first));
    const auto of_batch = std::span(order).subspan(first, std::min(most, order.size() - first));
    std::vector<std::vector<std::int32_t>> prompt_B;
    for (const std::size_t i : of_batch) prompt_B.push_back(asked[i].tokens);
    std::vector<std::string> answer_B = generated(prompt_B, settings, text, passes);
    for (std::size_t b = 0; b < of_batch.size(); ++b) asked[of_batch[b]].answer = std::move(answer_B[b]);
  }
}

void evaluate_answers(TaskResult& result, const TaskFile& task, const TaskSettings& settings,
                      const checkpoint::ModelTokenizer& text, const Passes& passes) {
  if (!passes.may_plan)
    throw_input("{}: its answers are generated, which is for 'switchyard eval --task' alone",
                task.path.string());
  const std::int64_t most = passes.most_tokens - settings.max_new_tokens;
  if (most < 1)
    throw_input("--max-new-tokens {}: the model sees {} tokens, the prompt's among them; give fewer",
                settings.max_new_tokens, passes.most_tokens);
  const auto questions = asked_questions(task, settings);
  const auto ranks = static_cast<std::size_t>(passes.all.size()),
             place = static_cast<std::size_t>(passes.all.place());
  std::vector<double> counts(3);  // strict, flexible, truncated
  std::vector<Asked> asked;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const Question& q = questions[i];
    std::string prompt = full_prompt(task, q, settings.examples);
    std::vector<std::int32_t> tokens = encode_prompt(text, prompt);
    if (tokens.empty()) throw_input("{}: the prompt has no tokens", q.place);
    if (i % ranks != place) continue;
    if (std::ssize(tokens) > most) {
      tokens.erase(tokens.begin(), tokens.end() - most);
      counts[2] += 1;
    }
    asked.push_back({&q, std::move(prompt), std::move(tokens)});
  }
  answer(asked, settings, text, passes);
  Json mine(Json::Array{});
  for (const auto& [question, prompt, tokens, answer] : asked) {
    const std::string strict = strict_match(answer), flexible = flexible_extract(answer);
    const bool strict_is_right = is_exact_match(strict, question->target),
               flexible_is_right = is_exact_match(flexible, question->target);
    counts[0] += strict_is_right ? 1 : 0;
    counts[1] += flexible_is_right ? 1 : 0;
    if (settings.samples)
      mine.push_back(Json::Object{{"line", question->line},
                                  {"prompt", prompt},
                                  {"target", question->target},
                                  {"text", answer},
                                  {"strict_answer", strict},
                                  {"flexible_answer", flexible},
                                  {"strict_match", strict_is_right},
                                  {"flexible_extract", flexible_is_right}});
  }
  passes.all.sum_numbers(counts);
  result.truncated = static_cast<std::int64_t>(counts[2]);
  result.metrics = {metric_of("strict_match", static_cast<std::int64_t>(counts[0]), result.questions),
                    metric_of("flexible_extract", static_cast<std::int64_t>(counts[1]), result.questions)};
  if (!settings.samples) return;
  std::vector<Json> of_rank;
  for (const std::string& samples : passes.all.gather_text(to_line(mine)))
    of_rank.push_back(parse_stored_json(samples, "samples of a rank"));
  for (std::size_t i = 0; i < questions.size(); ++i) result.samples.push_back(of_rank[i % ranks][i / ranks]);
}

}  // namespace

Metric metric_of(std::string name, std::int64_t right, std::int64_t questions) {
  const auto n = static_cast<double>(questions), share = static_cast<double>(right) / n;
  Metric metric{std::move(name), share, std::nullopt};
  if (questions > 1) metric.std_error = std::sqrt(share * (1 - share) / (n - 1));
  return metric;
}

void check_prompts(const TaskFile& task, const TaskSettings& settings, const checkpoint::ModelTokenizer& text,
                   std::int64_t most_tokens) {
  warn_of_truncated(task, pairs_of(task, settings, text, most_tokens).truncated, most_tokens);
}

TaskResult evaluate(const TaskFile& task, const TaskSettings& settings, const checkpoint::ModelTokenizer& text,
                    const Passes& passes) {
  const auto start = std::chrono::steady_clock::now();
  SY_CHECK(text.tokenizer != nullptr);
  const auto& examples = settings.examples.file;
  if (examples && examples->schema != task.schema)
    throw_input("--shots-file {}: its schema is {}, that of {} is {}", examples->path.string(),
                name_of(examples->schema), task.path.string(), name_of(task.schema));
  TaskResult result{.name = task.path.stem().string(),
                    .schema = task.schema,
                    .questions = std::ssize(asked_questions(task, settings)),
                    .shots = settings.examples.shots,
                    .metrics = {},
                    .samples = {}};
  if (task.schema == Schema::gsm8k) {
    evaluate_answers(result, task, settings, text, passes);
  } else {
    evaluate_choices(result, task, settings, text, passes);
  }
  if (passes.may_plan && passes.all.place() == 0) warn_of_truncated(task, result.truncated, passes.most_tokens);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

Json to_json(const TaskResult& result) {
  Json json(Json::Object{{"task", result.name},
                         {"schema", name_of(result.schema)},
                         {"questions", result.questions},
                         {"shots", result.shots}});
  for (const Metric& metric : result.metrics) {
    json[metric.name] = metric.value;
    Json& std_error = json[metric.name + "_stderr"];
    if (metric.std_error) std_error = *metric.std_error;
  }
  json["truncated"] = result.truncated;
  json["seconds"] = result.seconds;
  return json;
}

std::vector<std::string> table_of(const std::vector<TaskResult>& results) {
  std::size_t width = 4;
  for (const TaskResult& result : results) width = std::max(width, result.name.size());
  std::vector<std::string> lines = {fmt::format("{:<{}}  {:<9}  {:>9}  {:>5}  {:<16}  {:>6}  {:>6}", "task",
                                                width, "schema", "questions", "shots", "metric", "value",
                                                "stderr")};
  for (const TaskResult& result : results)
    for (const Metric& metric : result.metrics)
      lines.push_back(fmt::format("{:<{}}  {:<9}  {:>9}  {:>5}  {:<16}  {:6.4f}  {:>6}", result.name, width,
                                  name_of(result.schema), result.questions, result.shots, metric.name,
                                  metric.value,
                                  metric.std_error ? fmt::format("{:.4f}", *metric.std_error) : "-"));
  return lines;
}

}  // namespace switchyard::tasks
