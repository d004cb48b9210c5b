#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <iostream>
#include <iterator>
#include <memory>
#include <span>

#include "checkpoint/model_directory.h"
#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/evaluation.h"
#include "commands/options.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/threads.h"
#include "generate/generator.h"
#include "model/transformer.h"
#include "ops/device.h"
#include "parallel/group.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::commands {

namespace {

struct Options {
  std::string checkpoint;                          // of a run, or a Hugging Face model directory
  std::string prompt, prompt_file, prompt_tokens;  // one of them; prompt "-": standard input
  std::string tokenizer;                           // empty: the checkpoint's; "bytes"; or a tokenizer.json
  std::int64_t max_new_tokens = 128;
  bool greedy = false;
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  std::uint64_t seed = 1;
  std::int64_t threads = 0;  // 0: one a core
  bool json = false;
  std::string device = "auto";
  std::string dtype;                   // as checkpoint::ModelOptions has it
  std::vector<std::string> overrides;  // of the routing
  CalibrationOptions calibration;
};

void describe(CLI::App& app, Options& options) {
  app.add_option(
         "CHECKPOINT", options.checkpoint,
         "A checkpoint directory, a run directory (its newest checkpoint), or a Hugging Face model directory")
      ->required();
  auto& prompt = *app.add_option_group("prompt");
  prompt.add_option("--prompt", options.prompt, "The text to go on from; -: standard input")
      ->type_name("TEXT|-");
  prompt.add_option("--prompt-file", options.prompt_file, "The same from a file")->type_name("FILE");
  prompt.add_option("--prompt-tokens", options.prompt_tokens, "Tokens, exactly as they are")
      ->type_name("1,2,3");
  prompt.require_option(1);
  app.add_option("--tokenizer", options.tokenizer, "Default: the checkpoint's own")
      ->type_name("bytes|tokenizer.json");
  app.add_option("--max-new-tokens", options.max_new_tokens, "Stop after so many")
      ->type_name("N")
      ->transform(whole_number(1))
      ->capture_default_str();
  app.add_flag("--greedy", options.greedy, "Always the likeliest token; the same as --temperature 0");
  app.add_option("--temperature", options.temperature, "Divides the logits")
      ->check(number_in({0, 1e6, false, true}, "0 (greedy) or more, below 1000000"))
      ->capture_default_str();
  app.add_option("--top-k", options.top_k, "Only the k likeliest tokens; 0: all")
      ->type_name("N")
      ->transform(whole_number(0, "0: all"))
      ->capture_default_str();
  app.add_option("--top-p", options.top_p, "Only the likeliest tokens that together have this probability")
      ->check(number_in({0, 1, true}, "above 0 and up to 1"))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "The same seed gives the same text")
      ->type_name("N")
      ->transform(whole_number(0, "", std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str();
  describe_threads(app, options.threads);
  app.add_flag("--json", options.json, "Print tokens, text, speed and why it stopped as JSON, at the end");
  describe_device(app, options.device);
  describe_dtype(app, options.dtype);
  describe_routing(app, options.overrides);
  describe_calibration(app, options.calibration);
  app.footer(
      "Examples:\n"
      "  switchyard generate runs/quickstart --prompt 'The court held'\n"
      "  switchyard generate runs/quickstart --prompt-file opening.txt --temperature 0.8 --top-p 0.95 --seed "
      "7");
}

volatile std::sig_atomic_t interrupted = 0;

std::vector<std::int32_t> parse_tokens(const std::string& list) {
  std::vector<std::int32_t> tokens;
  const char* at = list.data();
  const char* const end = at + list.size();
  while (at < end) {
    std::int32_t token = 0;
    const auto [stop, error] = std::from_chars(at, end, token);
    if (error != std::errc() || (stop < end && *stop != ',') || stop + 1 == end)
      throw_input("--prompt-tokens: \"{}\" is no list of tokens; write them as 1,2,3", list);
    tokens.push_back(token);
    at = stop + 1;
  }
  return tokens;
}

std::vector<std::int32_t> prompt_tokens(const Options& options, const checkpoint::ModelTokenizer& text,
                                        const config::Model& config) {
  std::vector<std::int32_t> tokens;
  if (!options.prompt_tokens.empty()) {
    tokens = parse_tokens(options.prompt_tokens);
  } else {
    std::string prompt = options.prompt;
    if (!options.prompt_file.empty()) prompt = read_text_file(options.prompt_file);
    if (options.prompt == "-") prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (!text.tokenizer)
      throw_input(
          "--prompt: no tokenizer.json lies beside the weights, and the run does not say which tokenizer made "
          "its "
          "data; give --tokenizer bytes or a tokenizer.json, or --prompt-tokens");
    if (prompt.empty())
      throw_input("{}: is empty; give a text to go on from",
                  options.prompt_file.empty() ? "--prompt" : "--prompt-file " + options.prompt_file);
    tokens = text.tokenizer->encode(prompt, !text.begin_token);
    if (text.begin_token) tokens.insert(tokens.begin(), *text.begin_token);
  }
  if (tokens.empty()) throw_input("--prompt: has no tokens; give a text to go on from");
  for (const std::int32_t token : tokens)
    if (token < 0 || token >= config.vocab_size)
      throw_input("--prompt-tokens: {} is not a token of a vocabulary of {}", token, config.vocab_size);
  if (const auto size = static_cast<std::int64_t>(tokens.size()); size > config.max_position_embeddings)
    throw_input("--prompt: has {} tokens, and the model has max_position_embeddings {}; shorten it", size,
                config.max_position_embeddings);
  return tokens;
}

// What is written of the tokens, whole characters at a time; of a model without a tokenizer their numbers.
class Output {
 public:
  Output(const tokenizer::Tokenizer* tokenizer, bool print)
      : stream_(tokenizer ? tokenizer->text_stream() : nullptr), print_(print) {}

  void add(std::int32_t token) {
    write(stream_ ? stream_->push(token) : fmt::format("{}{}", written_.empty() ? "" : ",", token));
  }
  void finish() {
    if (stream_) write(stream_->finish());
  }
  const std::string& written() const { return written_; }

 private:
  void write(const std::string& whole) {
    written_ += whole;
    if (!print_ || whole.empty()) return;
    fmt::print("{}", whole);
    std::fflush(stdout);
  }

  std::unique_ptr<tokenizer::TextStream> stream_;
  bool print_;
  std::string written_;
};

void report(const Options& options, std::span<const std::int32_t> prompt, const generate::Continuation& result,
            std::int64_t n_appended, const std::string& written, const std::string& stop) {
  const double steps = static_cast<double>(n_appended);
  const double rate = steps > 0 ? steps / result.seconds : 0,
               prompt_rate = static_cast<double>(prompt.size()) / result.prompt_seconds;
  if (options.json) {
    const Json json(Json::Object{{"prompt_tokens", Json::list(prompt)},
                                 {"tokens", Json::list(result.tokens)},
                                 {"text", written},
                                 {"stop", stop},
                                 {"prompt_tokens_per_second", prompt_rate},
                                 {"tokens_per_second", rate}});
    fmt::print("{}", to_text(json));
  } else {
    fmt::print("\n");
    fmt::print(stderr, "{} prompt tokens at {:.0f} tokens/s, {} tokens at {:.0f} tokens/s; stopped by {}\n",
               prompt.size(), prompt_rate, result.tokens.size(), rate, stop);
  }
}

int run(const Options& options) {
  set_threads(static_cast<int>(options.threads));
  Context ctx(ops::choose_device(options.device));
  const checkpoint::ModelDirectory directory(options.checkpoint);
  const auto lone = parallel::make_lone_transport();
  constexpr std::int64_t kBatch = 8;  // as eval has it by default
  const Calibration calibration(directory, options.calibration, 0, kBatch, parallel::Group(*lone, {0}));
  const auto model = calibration.open(routed_model(directory, options.overrides), options.dtype, ctx);
  const config::Model& config = model->config();
  const auto text = checkpoint::find_tokenizer(directory.path(), options.tokenizer, config.vocab_size);
  const std::vector<std::int32_t> prompt = prompt_tokens(options, text, config);
  const auto n_prompt = static_cast<std::int64_t>(prompt.size());
  const std::int64_t max_tokens =
      std::min(options.max_new_tokens, config.max_position_embeddings - n_prompt + 1);

  generate::Generator generator(*model, n_prompt + max_tokens - 1, ctx);
  generate::Sampler sampler({.temperature = options.greedy ? 0 : options.temperature,
                             .top_k = options.top_k,
                             .top_p = options.top_p,
                             .seed = options.seed});
  std::signal(SIGINT, [](int) { interrupted = 1; });

  Output output(text.tokenizer.get(), !options.json);
  const generate::Continuation result = generate::continue_prompt(generator, sampler, prompt, max_tokens,
                                                                  text.end_tokens, [&](std::int32_t token) {
                                                                    output.add(token);
                                                                    return interrupted == 0;
                                                                  });
  output.finish();
  const char* const full = max_tokens < options.max_new_tokens ? "max_position_embeddings" : "max_new_tokens";
  report(options, prompt, result, generator.size() - n_prompt, output.written(),
         result.stop == generate::Stop::end_of_text   ? "end_of_text"
         : result.stop == generate::Stop::interrupted ? "interrupted"
                                                      : full);
  if (std::fflush(stdout) != 0) throw_input("standard output cannot be written");
  return interrupted ? 128 + SIGINT : 0;
}

}  // namespace

const Command kGenerate = {"generate", "Go on from a text with a checkpoint's model",
                           with_options<Options, describe, run>};

}  // namespace switchyard::commands
