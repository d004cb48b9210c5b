#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "checkpoint/model_directory.h"
#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/options.h"
#include "core/error.h"
#include "core/file.h"
#include "core/threads.h"
#include "generate/generator.h"
#include "generate/sampling.h"
#include "model/transformer.h"
#include "ops/device.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

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
  std::string dtype;  // empty: on a CUDA device what the run trained in, else float32
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
  app.footer(
      "Examples:\n"
      "  switchyard generate runs/quickstart --prompt 'The court held'\n"
      "  switchyard generate runs/quickstart --prompt-file opening.txt --temperature 0.8 --top-p 0.95 --seed "
      "7");
}

volatile std::sig_atomic_t interrupted = 0;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

json read_json(const fs::path& path) {
  const std::string text = read_text_file(path);
  json value = json::parse(text, nullptr, false);
  if (!value.is_object()) {
    const std::string other = stand_in(std::as_bytes(std::span(text)));
    throw_input("{}: {}", path.string(), other.empty() ? "is not a JSON object" : other);
  }
  return value;
}

struct Loaded {
  fs::path directory;
  std::unique_ptr<model::Transformer> model;
};

Loaded load_model(const std::string& path, const std::string& dtype, Context& ctx) {
  const checkpoint::ModelDirectory directory(path);
  config::Model config = directory.model();
  config.num_nextn_predict_layers = 0;  // which are for training
  const config::ComputeType type = directory.compute_type(dtype, ctx.device);
  ctx.matmul = model::matmul_type_of(type);
  auto model = std::make_unique<model::Transformer>(config, directory.router(),
                                                    model::dtype_of(type, ctx.device), false);
  model->allocate(ctx.device);
  directory.weights().load(config, model->parameters());
  model->round_weights(ctx);
  return {directory.path(), std::move(model)};
}

struct Text {
  std::unique_ptr<tokenizer::Tokenizer> tokenizer;  // null: none is known
  std::optional<std::int32_t> first;                // what every document of a run's data begins with
  std::vector<std::int32_t> end;                    // the tokens that end a text
};

std::int32_t checked_token(const json& value, const fs::path& path, const std::string& key,
                           std::int64_t vocab_size) {
  // A number beyond 64 bits is a floating-point one here, and one beyond 63 bits is negative once it is signed.
  const bool whole = value.is_number_integer() && !(value.is_number_unsigned() && value > vocab_size);
  if (!whole || value.get<std::int64_t>() < 0 || value.get<std::int64_t>() >= vocab_size)
    throw_input("{}: {}: {} is not a token of the model's vocabulary of {}", path.string(), key, value.dump(),
                vocab_size);
  return value.get<std::int32_t>();
}

// The first of generation_config.json, config.json, the run's data and the tokenizer that says anything.
std::vector<std::int32_t> end_tokens(const fs::path& directory, std::int64_t vocab_size,
                                     std::optional<std::int32_t> of_run,
                                     const tokenizer::Tokenizer* tokenizer) {
  for (const char* name : {"generation_config.json", "config.json"}) {
    if (!fs::exists(directory / name)) continue;
    const json value = read_json(directory / name).value("eos_token_id", json());
    if (value.is_null()) continue;
    std::vector<std::int32_t> tokens;
    for (const json& token : value.is_array() ? value : json::array({value}))
      tokens.push_back(checked_token(token, directory / name, "eos_token_id", vocab_size));
    return tokens;
  }
  if (of_run) return {*of_run};
  if (tokenizer && tokenizer->end_of_text()) return {*tokenizer->end_of_text()};
  return {};
}

Text find_text(const Options& options, const fs::path& directory, std::int64_t vocab_size) {
  Text text;
  std::optional<std::int32_t> end_of_run;
  std::string name;
  if (const fs::path path = directory / checkpoint::kTokenizerMeta; fs::exists(path)) {
    const json meta = read_json(path);
    if (const json given = meta.value("tokenizer", json()); given.is_string()) name = given;
    const auto token = [&](const char* key) -> std::optional<std::int32_t> {
      const json value = meta.value(key, json());
      return value.is_null() ? std::nullopt : std::optional(checked_token(value, path, key, vocab_size));
    };
    end_of_run = token("eot_token");
    text.first = token("begin_token");
    if (!text.first) text.first = end_of_run;
  }
  if (options.tokenizer == "bytes" || (options.tokenizer.empty() && name == "bytes")) {
    text.tokenizer = tokenizer::make_byte_tokenizer();
  } else if (!options.tokenizer.empty()) {
    fs::path path = options.tokenizer;
    if (fs::is_directory(path)) path /= checkpoint::kTokenizer;
    text.tokenizer = tokenizer::load_hugging_face(path);
  } else if (fs::exists(directory / checkpoint::kTokenizer)) {
    text.tokenizer = tokenizer::load_hugging_face(directory / checkpoint::kTokenizer);
  }
  if (text.tokenizer && text.tokenizer->vocab_size() > vocab_size)
    throw_input("--tokenizer: it has tokens up to {}, the model's vocabulary is {}; give the model's own",
                text.tokenizer->vocab_size() - 1, vocab_size);
  text.end = end_tokens(directory, vocab_size, end_of_run, text.tokenizer.get());
  return text;
}

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

std::vector<std::int32_t> prompt_tokens(const Options& options, const Text& text, const config::Model& config) {
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
    if (prompt.empty()) throw_input("--prompt: is empty; give a text to go on from");
    tokens = text.tokenizer->encode(prompt, !text.first);
    if (text.first) tokens.insert(tokens.begin(), *text.first);
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

int run(const Options& options) {
  set_threads(static_cast<int>(options.threads));
  Context ctx(ops::choose_device(options.device));
  const Loaded loaded = load_model(options.checkpoint, options.dtype, ctx);
  const config::Model& config = loaded.model->config();
  const Text text = find_text(options, loaded.directory, config.vocab_size);
  const std::vector<std::int32_t> prompt = prompt_tokens(options, text, config);
  const auto n_prompt = static_cast<std::int64_t>(prompt.size());
  const std::int64_t most = std::min(options.max_new_tokens, config.max_position_embeddings - n_prompt + 1);
  const std::string full = most < options.max_new_tokens ? "max_position_embeddings" : "max_new_tokens";

  generate::Generator generator(*loaded.model, n_prompt + most - 1, ctx);
  generate::Sampler sampler({.temperature = options.greedy ? 0 : options.temperature,
                             .top_k = options.top_k,
                             .top_p = options.top_p,
                             .seed = options.seed});
  std::signal(SIGINT, [](int) { interrupted = 1; });

  auto start = Clock::now();
  std::span<const float> logits_V = generator.append(prompt);
  const double prompt_seconds = seconds_since(start);
  start = Clock::now();
  std::vector<std::int32_t> tokens;
  const auto characters = text.tokenizer ? text.tokenizer->text_stream() : nullptr;
  std::string written, stop = full;
  const auto write = [&](const std::string& whole) {
    written += whole;
    if (options.json || whole.empty()) return;
    fmt::print("{}", whole);
    std::fflush(stdout);
  };
  while (static_cast<std::int64_t>(tokens.size()) < most) {
    tokens.push_back(sampler.choose(logits_V, static_cast<std::uint64_t>(generator.size())));
    if (std::find(text.end.begin(), text.end.end(), tokens.back()) != text.end.end()) {
      stop = "end_of_text";
      break;
    }
    if (characters)
      write(characters->push(tokens.back()));
    else
      write(fmt::format("{}{}", tokens.size() > 1 ? "," : "", tokens.back()));
    if (interrupted) {
      stop = "interrupted";
      break;
    }
    if (static_cast<std::int64_t>(tokens.size()) < most) logits_V = generator.append(std::span(tokens).last(1));
  }
  const double seconds = seconds_since(start);
  if (characters) write(characters->finish());
  const double steps = static_cast<double>(generator.size() - n_prompt);
  const double rate = steps > 0 ? steps / seconds : 0,
               prompt_rate = static_cast<double>(n_prompt) / prompt_seconds;
  if (options.json) {
    const nlohmann::ordered_json report = {{"prompt_tokens", prompt},
                                           {"tokens", tokens},
                                           {"text", written},
                                           {"stop", stop},
                                           {"prompt_tokens_per_second", prompt_rate},
                                           {"tokens_per_second", rate}};
    fmt::print("{}\n", report.dump(2));
  } else {
    fmt::print("\n");
    fmt::print(stderr, "{} prompt tokens at {:.0f} tokens/s, {} tokens at {:.0f} tokens/s; stopped by {}\n",
               n_prompt, prompt_rate, tokens.size(), rate, stop);
  }
  if (std::fflush(stdout) != 0) throw_input("standard output cannot be written");
  return interrupted ? 128 + SIGINT : 0;
}

}  // namespace

const Command kGenerate = {"generate", "Go on from a text with a checkpoint's model",
                           with_options<Options, describe, run>};

}  // namespace switchyard::commands
