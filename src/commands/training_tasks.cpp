#include "commands/training_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "checkpoint/tokenizer_record.h"
#include "core/error.h"
#include "core/log.h"
#include "data/shard_paths.h"
#include "tasks/evaluation.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::commands {

namespace {

struct Tasks {
  std::vector<tasks::TaskFile> files;
  tasks::TaskSettings settings;
  checkpoint::ModelTokenizer text;
};

// As a checkpoint of the run will have it.
checkpoint::ModelTokenizer tokenizer_of(const config::Data& data) {
  const checkpoint::NamedTexts files = checkpoint::tokenizer_files(data);
  const auto record = checkpoint::record_of(files);
  if (!record) {
    for (const config::DataEntry& entry : data.train)
      data::expand_shards(entry.path);  // says which are not there
    throw_input(
        "eval.tasks: no meta.json beside the shards of data.train says which tokenizer made them, or not the "
        "same of all; make them with tools/prepare_data.py, or leave the tasks out");
  }
  checkpoint::ModelTokenizer text{
      nullptr, static_cast<std::int32_t>(record->begin_token), {static_cast<std::int32_t>(record->eot_token)}};
  if (record->tokenizer == "bytes") {
    text.tokenizer = tokenizer::make_byte_tokenizer();
    return text;
  }
  for (const auto& [name, content] : files)
    if (name == checkpoint::kTokenizer) text.tokenizer = tokenizer::parse_hugging_face(content, name);
  if (!text.tokenizer)
    throw_input("eval.tasks: there is no tokenizer.json beside the shards of data.train; put it there");
  return text;
}

}  // namespace

train::AskTasks tasks_of_training(const config::Run& run, bool says) {
  if (run.eval.tasks.empty()) return {};
  const auto own = std::make_shared<Tasks>();
  own->text = tokenizer_of(run.data);
  if (own->text.tokenizer->vocab_size() > run.model.vocab_size)
    throw_input("eval.tasks: the data's tokenizer has tokens up to {}, and model.vocab_size is {}",
                own->text.tokenizer->vocab_size() - 1, run.model.vocab_size);
  own->settings.examples.shots = run.eval.shots;
  own->settings.limit = run.eval.limit;
  for (const std::string& path : run.eval.tasks) {
    const tasks::TaskFile& file = own->files.emplace_back(tasks::read_task_file(path));
    if (file.schema == tasks::Schema::gsm8k)
      throw_input("eval.tasks: the answers of {} are generated, which is for 'switchyard eval --task' alone",
                  path);
    const auto same_name = [&](const tasks::TaskFile& other) { return other.path.stem() == file.path.stem(); };
    if (std::count_if(own->files.begin(), own->files.end(), same_name) > 1)
      throw_input("eval.tasks: two files are called {}; rename one", file.path.stem().string());
    tasks::check_prompts(file, own->settings, own->text, run.train.seq_len);
    if (says)
      log_info(fmt::format("{}: {} questions in the schema of {}", path, file.questions.size(),
                           tasks::name_of(file.schema)));
  }
  return
      [own, n_seq = run.train.micro_batch_size, seq_len = run.train.seq_len](
          model::Transformer& model, Context& ctx, const parallel::Group& all, const train::Forward& forward) {
        const tasks::Passes passes{.model = model,
                                   .ctx = ctx,
                                   .all = all,
                                   .n_seq = n_seq,
                                   .most_tokens = seq_len,
                                   .may_plan = false,
                                   .forward = forward};
        std::vector<train::TaskScore> scores;
        for (const tasks::TaskFile& file : own->files) {
          const tasks::TaskResult result = tasks::evaluate(file, own->settings, own->text, passes);
          train::TaskScore& score = scores.emplace_back();
          score.name = result.name;
          for (const tasks::Metric& metric : result.metrics) {
            score.figures.emplace_back(metric.name, metric.value);
            if (metric.std_error) score.figures.emplace_back(metric.name + "_stderr", *metric.std_error);
          }
        }
        return scores;
      };
}

}  // namespace switchyard::commands
