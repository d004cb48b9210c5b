#include "commands/eval_tasks.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "checkpoint/tokenizer_record.h"
#include "commands/evaluation.h"
#include "commands/options.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "parallel/devices.h"
#include "tasks/evaluation.h"

namespace switchyard::commands {

void describe_tasks(CLI::App& app, TaskOptions& options) {
  const std::string group = "Tasks";
  CLI::Option& task =
      *app.add_option("--task", options.files,
                      "Questions, one JSON object a line, in the schema of HellaSwag, ARC, PIQA, MMLU, BBH or "
                      "GSM8K, or with context, choices and answer")
           ->type_name("FILE.jsonl")
           ->group(group)
           ->excludes("--data")
           ->excludes("--max-tokens");
  const auto of_tasks = [&](CLI::Option* option) { return option->group(group)->needs(&task); };
  of_tasks(app.add_option("--shots", options.shots, "Examples with their answers before each question")
               ->type_name("N")
               ->transform(whole_number(0, "", config::kMaxSize))
               ->capture_default_str());
  of_tasks(
      app.add_option("--shots-file", options.shots_file,
                     "The examples are its first questions (default: the task's own first ones that differ "
                     "from the question)")
          ->type_name("FILE.jsonl"));
  of_tasks(app.add_option("--limit", options.limit, "The first N questions of each file (default: all)")
               ->type_name("N")
               ->transform(whole_number(0, "0: all")));
  of_tasks(app.add_option_function<std::string>(
                  "--description",
                  [&options](const std::string& text) {
                    options.description = text;
                    options.has_description = true;
                  },
                  "Before everything (default: nothing; of MMLU what lm_eval says of the subject)")
               ->type_name("TEXT"));
  of_tasks(app.add_option("--choices", options.choices,
                          "Of BBH's files, in place of the options that its inputs list")
               ->type_name("TEXT"));
  of_tasks(app.add_option("--max-new-tokens", options.max_new_tokens, "Of an answer that is generated")
               ->type_name("N")
               ->transform(whole_number(1, "", config::kMaxSize))
               ->capture_default_str());
  of_tasks(app.add_option("--tokenizer", options.tokenizer, "Default: the checkpoint's own")
               ->type_name("bytes|tokenizer.json"));
  of_tasks(app.add_option("--samples", options.samples,
                          "Write each question with its prompt and what the model gave, as lines of JSON")
               ->type_name("FILE"));
}

int evaluate_tasks(const TaskOptions& options, const EvalOptions& common,
                   const checkpoint::ModelDirectory& directory, const OpenModel& open_model,
                   parallel::World& world) {
  const parallel::Group all = parallel::all_ranks(world);
  const config::Model& config = directory.model();
  if (common.seq_len > config.max_position_embeddings)
    throw_input("--seq-len {}: the model has max_position_embeddings {}", common.seq_len,
                config.max_position_embeddings);
  const auto text = checkpoint::find_tokenizer(directory.path(), options.tokenizer, config.vocab_size);
  if (!text.tokenizer)
    throw_input(
        "--task: no tokenizer.json lies beside the weights of {}, and the run does not say which tokenizer "
        "made "
        "its data; give --tokenizer bytes or a tokenizer.json",
        directory.path().string());
  tasks::TaskSettings settings{.examples = {.shots = options.shots, .file = {}, .description = {}},
                               .limit = options.limit,
                               .max_new_tokens = options.max_new_tokens,
                               .samples = !options.samples.empty()};
  if (!options.shots_file.empty() && options.shots == 0)
    throw_input("--shots-file: shows nothing with --shots 0; say how many");
  if (!options.shots_file.empty())
    settings.examples.file = tasks::read_task_file(options.shots_file, options.choices);
  if (options.has_description) settings.examples.description = options.description;
  std::vector<tasks::TaskFile> files;
  for (const std::string& path : options.files) {
    files.push_back(tasks::read_task_file(path, options.choices));
    if (world.rank() == 0)
      log_info(fmt::format("{}: {} questions in the schema of {}", path, files.back().questions.size(),
                           tasks::name_of(files.back().schema)));
  }

  const parallel::DeviceChoice devices = parallel::take_device(common.device, world);
  parallel::log_devices(devices, world);
  Context ctx(devices.device);
  const auto model = open_model(ctx);
  const tasks::Passes passes{
      .model = *model,
      .ctx = ctx,
      .all = all,
      .n_seq = common.batch,
      .most_tokens = common.seq_len > 0 ? common.seq_len : config.max_position_embeddings,
      .forward = {}};
  std::vector<tasks::TaskResult> results;
  for (const tasks::TaskFile& file : files) results.push_back(tasks::evaluate(file, settings, text, passes));
  if (world.rank() != 0) return 0;

  for (const std::string& line : tasks::table_of(results)) fmt::print(text_output(common.json), "{}\n", line);
  Json report(Json::Array{});
  std::string samples;
  for (const tasks::TaskResult& result : results) {
    report.push_back(tasks::to_json(result));
    for (const Json& sample : result.samples) {
      Json line(Json::Object{{"task", result.name}});
      for (const JsonMember& member : sample.object()) line[member.key] = member.value;
      samples += to_line(line) + "\n";
    }
  }
  Json whole(Json::Object{{"tasks", std::move(report)}});
  if (const auto& checkpoint = directory.checkpoint()) whole["step"] = checkpoint->state().step;
  write_json(common.json, whole);
  if (!options.samples.empty()) write_text_file(options.samples, samples);
  return 0;
}

}  // namespace switchyard::commands
