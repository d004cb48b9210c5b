#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "commands.h"
#include "config/names.h"
#include "config/spelling.h"
#include "core/error.h"
#include "core/log.h"
#include "core/threads.h"

namespace {

constexpr int kExitRun = 1;    // the run itself failed
constexpr int kExitInput = 2;  // usage, configuration, data

constexpr std::uint64_t kAnyCount = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kMaxSize = std::numeric_limits<std::int32_t>::max();

// A whole number in [low, high], also written 1e3; `meaning` says what a special one stands for. For
// transform(): it is rewritten in digits, as the option reads it.
CLI::Validator whole_number(std::uint64_t low, const std::string& meaning = "",
                            std::uint64_t high = kAnyCount) {
  return CLI::Validator(
      [=](std::string& text) {
        constexpr double kEveryInteger = 9007199254740992.0;  // 2^53: beyond it a double is not exact
        std::uint64_t value = 0;
        double real = 0;
        const char* const end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, value);
        bool good = error == std::errc() && stop == end;
        if (!good && CLI::detail::lexical_cast(text, real) && real >= 0 && real <= kEveryInteger &&
            std::trunc(real) == real) {
          value = static_cast<std::uint64_t>(real);
          good = true;
        }
        if (good && value >= low && value <= high) return text = std::to_string(value), std::string();
        return "is " + text + ", expected a whole number " +
               (high >= kAnyCount ? "of " + std::to_string(low) + " or more"
                                  : "from " + std::to_string(low) + " to " + std::to_string(high)) +
               (meaning.empty() ? "" : " (" + meaning + ")");
      },
      "");
}

// One of `types`, also written short (bf16). For transform() too.
CLI::Validator type_name(std::vector<std::string> types) {
  return CLI::Validator(
      [types = std::move(types)](std::string& text) {
        const std::string found = text;
        text = switchyard::config::full_type_name(text);
        if (std::find(types.begin(), types.end(), text) != types.end()) return std::string();
        return "is " + found + ", expected one of: " + CLI::detail::join(types, ", ");
      },
      "");
}

void describe_threads(CLI::App& app, std::int64_t& threads) {
  constexpr std::uint64_t kMaxThreads = 4096;
  app.add_option("--threads", threads, "Threads to use (default: one a core)")
      ->type_name("N")
      ->transform(whole_number(0, "0: one a core", kMaxThreads));
}

void describe_device(CLI::App& app, std::string& device) {
  app.add_option("--device", device, "Where to compute; auto: on a CUDA device if one can be used")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
}

void describe_train(CLI::App& app, switchyard::TrainOptions& options) {
  app.add_option("CONFIG", options.config,
                 "The run: a JSON file (configs/ has ready ones, docs/configuration.md the keys)")
      ->required();
  app.add_option("--set", options.overrides, "Override one key of the configuration; may be repeated")
      ->type_name("a.b=value")
      ->take_all()
      ->expected(1);
  app.add_option("--out", options.out,
                 "Run directory for config.json, metrics.jsonl and checkpoints/ "
                 "(default: runs/<name of CONFIG>)")
      ->type_name("DIR");
  app.add_option("--resume", options.resume,
                 "'auto': go on from the newest checkpoint in the run directory, or start if there is none; "
                 "or a checkpoint or run directory to go on from")
      ->type_name("auto|DIR");
  app.add_flag("--allow-new-data", options.allow_new_data,
               "Resume although the shards are not those that the checkpoint was trained on");
  app.add_option(
         "--init-from", options.init_from,
         "Begin with the weights of a Hugging Face model directory, a checkpoint or a run; a CONFIG without "
         "'model' takes theirs. With --resume auto it holds only while there is no checkpoint yet")
      ->type_name("DIR");
  describe_device(app, options.device);
  app.footer(
      "Examples:\n"
      "  switchyard train configs/qwen3_moe_cpu_small.json\n"
      "  switchyard train configs/qwen3_moe_cpu_small.json --set train.seed=7 --set train.lr=1e-3 --out "
      "runs/seed7\n"
      "  switchyard train configs/qwen3_moe_cpu_small.json --resume auto\n"
      "Ctrl-C finishes the step, saves a checkpoint and exits with code 130; --resume auto goes on from "
      "there.");
}

void describe_dtype(CLI::App& app, std::string& dtype) {
  app.add_option("--dtype", dtype,
                 "What to compute in (default: on a CUDA device the run's train.dtype, else float32)")
      ->type_name("DTYPE")
      ->transform(type_name({"float32", "bfloat16"}));
}

void describe_eval(CLI::App& app, switchyard::EvalOptions& options) {
  app.add_option(
         "CHECKPOINT", options.checkpoint,
         "A checkpoint directory, a run directory (its newest checkpoint), or a Hugging Face model directory")
      ->required();
  app.add_option(
         "--data", options.data,
         "Token shards: files, directories or quoted globs (default: the run's data.validation, by domain)")
      ->type_name("PATH_OR_GLOB");
  app.add_option("--seq-len", options.seq_len,
                 "Inputs of one window (default: the length trained with; of a Hugging Face directory 2048, or "
                 "max_position_embeddings where that is less)")
      ->type_name("N")
      ->transform(whole_number(1, "", kMaxSize));
  app.add_option("--batch", options.batch, "Windows at once")
      ->type_name("N")
      ->transform(whole_number(1, "", kMaxSize))
      ->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens,
                 "Predict at most so many tokens of each domain (default: all)")
      ->type_name("N")
      ->transform(whole_number(0, "0: all"));
  describe_threads(app, options.threads);
  app.add_option("--json", options.json, "Write the result as JSON to a file, or to standard output with -")
      ->type_name("FILE|-");
  describe_device(app, options.device);
  describe_dtype(app, options.dtype);
  app.footer(
      "Windows follow one another; every token but the first is predicted exactly once. The loss over all "
      "domains is the mean over their tokens.\n"
      "Examples:\n"
      "  switchyard eval runs/quickstart\n"
      "  switchyard eval runs/quickstart/checkpoints/step_000400 --data data/quickstart/legal --json -");
}

void describe_generate(CLI::App& app, switchyard::GenerateOptions& options) {
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
      ->check([](const std::string& text) {
        double value = 0;
        const bool good = CLI::detail::lexical_cast(text, value) && value >= 0 && value < 1e6;
        return good ? std::string() : "is " + text + ", expected 0 (greedy) or more, below 1000000";
      })
      ->capture_default_str();
  app.add_option("--top-k", options.top_k, "Only the k likeliest tokens; 0: all")
      ->type_name("N")
      ->transform(whole_number(0, "0: all"))
      ->capture_default_str();
  app.add_option("--top-p", options.top_p, "Only the likeliest tokens that together have this probability")
      ->check([](const std::string& text) {
        double value = 0;
        const bool good = CLI::detail::lexical_cast(text, value) && value > 0 && value <= 1;
        return good ? std::string() : "is " + text + ", expected above 0 and up to 1";
      })
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

void describe_inspect(CLI::App& app, switchyard::InspectOptions& options) {
  app.add_option(
         "PATH", options.path,
         "A token shard (.bin), a checkpoint, run or Hugging Face model directory, a configuration or a "
         "tokenizer.json")
      ->required();
  app.add_flag("--json", options.json, "Print JSON");
  app.add_flag("--tensors{weights}", options.tensors,
               "List the tensors of the weights too; --tensors=all: of the optimizer's state as well")
      ->check(CLI::IsMember({"weights", switchyard::kAllTensors}));
  app.footer(
      "Examples:\n"
      "  switchyard inspect configs/bench_cpu_86m.json\n"
      "  switchyard inspect data/quickstart/legal/train_000000.bin\n"
      "  switchyard inspect runs/quickstart\n"
      "  switchyard inspect runs/quickstart --tensors --json");
}

void describe_tokenize(CLI::App& app, switchyard::TokenizeOptions& options) {
  app.add_option("TOKENIZER", options.tokenizer, "A tokenizer.json, its directory, or 'bytes'")->required();
  app.add_flag("--special-as-text", options.special_as_text,
               "Names of special tokens in a document are text like any other");
  app.footer(
      "Standard input: documents, each a uint32 (little-endian) with its number of bytes, then its UTF-8 "
      "bytes.\n"
      "Standard output, for each document: a uint32 with its number of tokens, then the tokens as uint32. The\n"
      "text's tokens alone: nothing that begins or ends a text.");
}

void describe_export(CLI::App& app, switchyard::ExportOptions& options) {
  app.add_option("SOURCE", options.source, "A checkpoint, a run directory or a Hugging Face model directory")
      ->required();
  app.add_option("--out", options.out, "The directory to make; it must not be there yet")
      ->type_name("DIR")
      ->required();
  app.add_option("--dtype", options.dtype, "float32, bfloat16 or float16 (default: as the source has it)")
      ->type_name("DTYPE")
      ->transform(type_name({"float32", "bfloat16", "float16"}));
  app.add_option("--max-shard-size", options.max_shard_size,
                 "Bytes of weights in one file: 5GB, 512MiB, 1000000")
      ->type_name("SIZE")
      ->capture_default_str();
  app.add_flag("--as-layout", options.as_layout,
               "Write the layout's config.json though the router is not the layout's own; transformers then "
               "computes another model");
  app.footer(
      "Writes config.json and *.safetensors for transformers' from_pretrained, and the tokenizer's files. A "
      "model "
      "whose router transformers does not compute gets a model_type that from_pretrained refuses.\n"
      "Examples:\n"
      "  switchyard export runs/quickstart --out exported --dtype bfloat16");
}

void describe_dump(CLI::App& app, switchyard::DumpOptions& options) {
  app.add_option("DIR", options.directory, "A Hugging Face model directory: config.json and model*.safetensors")
      ->required();
  app.add_option("--tokens", options.tokens, "safetensors with 'tokens', I32 [sequences, length]")
      ->type_name("FILE")
      ->required();
  app.add_option("--out", options.out, "Where to write the tensors, as safetensors")
      ->type_name("FILE")
      ->required();
  app.footer(
      "Writes logits, cross_entropy, loss (with the balance loss), experts.LAYER, weights.LAYER and grad.NAME "
      "of one\n"
      "batch in which every token predicts the next: what tools/compare_hf.py compares with transformers.");
}

int show_help(const CLI::App& app) {
  std::fputs(app.help().c_str(), stdout);
  return std::fflush(stdout) == 0 ? 0 : kExitInput;
}

std::string no_command(const CLI::App& app, const std::string& word) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  const std::vector<std::string_view> views(names.begin(), names.end());
  const std::string_view near = switchyard::config::nearest(word, views);
  return "'" + word + "' is no command" + (near.empty() ? "" : "; did you mean '" + std::string(near) + "'?") +
         (near.empty() ? "; the commands are " : " The commands are ") + CLI::detail::join(names, ", ") +
         ", and 'switchyard help' explains them";
}

}  // namespace

int main(int argc, char** argv) {
  switchyard::wait_politely(argv);
#ifdef __GLIBC__
  // oneDNN's large buffers go back to the system when they are freed. By default malloc keeps them from the
  // second time on, in places where they do not fit each other's gaps, and memory grows for some steps.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
  std::signal(SIGXFSZ,
              SIG_IGN);  // a file size limit is then a failed write, which is reported like a full disk
  CLI::App app(
      "switchyard trains mixture-of-experts language models from scratch and shows where their tokens went.",
      "switchyard");
  app.set_version_flag("--version", SWITCHYARD_VERSION);
  app.require_subcommand(1);
  app.footer(
      "'switchyard help COMMAND' explains a command. Exit codes: 0 done, 1 the run failed, 2 input that "
      "cannot "
      "be used.");

  switchyard::TrainOptions train;
  switchyard::EvalOptions eval;
  switchyard::InspectOptions inspect;
  std::function<int()> command;
  CLI::App& train_app = *app.add_subcommand("train", "Train a model as a configuration says");
  describe_train(train_app, train);
  train_app.callback([&] { command = [&] { return run_train(train); }; });
  CLI::App& eval_app = *app.add_subcommand(
      "eval", "Loss, perplexity, bits per byte and expert balance of a checkpoint on token shards");
  describe_eval(eval_app, eval);
  eval_app.callback([&] { command = [&] { return run_eval(eval); }; });
  CLI::App& inspect_app = *app.add_subcommand("inspect", "What a shard, a checkpoint or a configuration holds");
  describe_inspect(inspect_app, inspect);
  inspect_app.callback([&] { command = [&] { return run_inspect(inspect); }; });
  switchyard::ExportOptions export_options;
  CLI::App& export_app =
      *app.add_subcommand("export", "Write a checkpoint or a model as a Hugging Face model directory");
  describe_export(export_app, export_options);
  export_app.callback([&] { command = [&] { return run_export(export_options); }; });
  switchyard::DumpOptions dump;
  CLI::App& dump_app =
      *app.add_subcommand("dump", "One step on one batch, tensor by tensor, to compare with others");
  describe_dump(dump_app, dump);
  dump_app.callback([&] { command = [&] { return run_dump(dump); }; });
  switchyard::GenerateOptions generate;
  CLI::App& generate_app = *app.add_subcommand("generate", "Go on from a text with a checkpoint's model");
  describe_generate(generate_app, generate);
  generate_app.callback([&] { command = [&] { return run_generate(generate); }; });

  switchyard::TokenizeOptions tokenize;
  CLI::App& tokenize_app = *app.add_subcommand(
      "tokenize", "Documents on standard input to tokens on standard output, for other programs");
  describe_tokenize(tokenize_app, tokenize);
  tokenize_app.callback([&] { command = [&] { return run_tokenize(tokenize); }; });

  // 'switchyard' alone and 'switchyard help' explain everything, 'switchyard help train' one command.
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || (words[0] == "help" && words.size() == 1)) return show_help(app);
  const bool help = words[0] == "help";
  const std::string& name = words[help ? 1 : 0];
  const auto commands = app.get_subcommands([&](const CLI::App* each) { return each->get_name() == name; });
  CLI::App* const named = commands.empty() ? nullptr : commands.front();
  if (named == nullptr && !name.starts_with("-")) {
    switchyard::log_error(no_command(app, name));
    return kExitInput;
  }
  if (help) return show_help(named != nullptr ? *named : app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    switchyard::log_error(std::string(error.what()) + "; 'switchyard help" +
                          (named != nullptr ? " " + name : "") + "' shows the usage");
    return kExitInput;
  }
  try {
    return command();
  } catch (const switchyard::InputError& error) {
    switchyard::log_error(error.what());
    return kExitInput;
  } catch (const std::exception& error) {
    switchyard::log_error(error.what());
    return kExitRun;
  }
}
