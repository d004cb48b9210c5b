// GCC 12 takes a part of std::regex's states for unset under the sanitizers. POSIX's regcomp is no way out: a
// library that is linked here, Oniguruma, has functions of the same names that mean something else.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/options.h"
#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/json_differences.h"
#include "core/log.h"
#include "model/cost.h"
#include "model/transformer.h"
#include "router/router.h"
#include "sweep/processes.h"
#include "sweep/results.h"
#include "sweep/spec.h"
#include "train/resume_checks.h"
#include "train/token_data.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string spec;
  std::string out;                     // empty: runs/ and the stem of the file's name
  std::string only;                    // empty: all
  std::vector<std::string> overrides;  // of every run, after those of the file
  std::vector<std::int64_t> seeds;     // empty: as the file says
  std::string launcher;                // empty: none
  std::int64_t jobs = 0, threads = 0;  // 0: as the file says
  bool dry_run = false, table = false;
  std::string json;  // empty: none beside OUT/sweep.json; "-": standard output
};

void describe(CLI::App& app, Options& options) {
  app.add_option("SPEC", options.spec, "What to run (docs/sweeps.md)")->required();
  app.add_option("--out", options.out, "Where the runs go (default: runs/ and the name of SPEC)")
      ->type_name("DIR");
  app.add_option("--only", options.only,
                 "Variants whose name fits this regular expression, and what they are compared with")
      ->type_name("PATTERN");
  app.add_option("--set", options.overrides, "Override one key of every run's configuration; may be repeated")
      ->type_name("a.b=value")
      ->take_all()
      ->expected(1);
  app.add_option("--seeds", options.seeds, "Seeds (default: as SPEC says, or 1)")
      ->type_name("N,N,...")
      ->delimiter(',')
      ->transform(whole_number(0, "", INT64_MAX));
  app.add_option("--launcher", options.launcher,
                 "What starts each run on several ranks, in front of this program: \"mpirun -np 8\"; words are "
                 "separated by spaces. The ranks have the threads and cores that it gives them")
      ->type_name("WORDS");
  app.add_option("--jobs", options.jobs, "Runs side by side (default: as SPEC says, or 1)")
      ->type_name("N")
      ->transform(whole_number(1, "", 4096));
  app.add_option("--threads", options.threads, "Threads of each (default: as SPEC says, or 1)")
      ->type_name("N")
      ->transform(whole_number(1, "", 4096));
  CLI::Option* const dry =
      app.add_flag("--dry-run", options.dry_run, "Print the commands that would run, and do nothing");
  app.add_flag("--table", options.table, "Print the table of what is there, and run nothing")->excludes(dry);
  app.add_option("--json", options.json, "Write the table as JSON to a file, or to standard output with -")
      ->type_name("FILE|-")
      ->excludes(dry);
  app.footer(
      "Trains and evaluates every variant with every seed, goes on where it was stopped, and prints means with "
      "standard errors and the paired differences to the variant that each is compared with. What is done is "
      "not "
      "done again; OUT/sweep.markdown and OUT/sweep.json hold the table. Ctrl-C lets the runs save and stops.\n"
      "Examples:\n"
      "  switchyard sweep configs/sweeps/lpr_tiny.json --jobs 2\n"
      "  switchyard sweep configs/sweeps/lpr_tiny.json --only '^lpr' --dry-run");
}

config::Run load(const sweep::Variant& variant, const std::vector<std::string>& overrides) {
  try {
    return config::load_run(variant.config, overrides, router::router_schemas(), std::nullopt,
                            checkpoint::vocab_size_of);
  } catch (const InputError& error) {
    throw_input("variant \"{}\": {}", variant.name, error.what());
  }
}

std::int64_t tokens_of_step(const config::Run& run) { return run.train.global_batch_size * run.train.seq_len; }

// FLOPs of a token in training, forward and backward, with every expert slot taken.
double training_flops(const config::Run& run, const sweep::Variant& variant) {
  if (run.train.mtp_loss_coef > 0)
    throw_input(
        "budget.flops: variant \"{}\" trains layers for multi-token prediction (train.mtp_loss_coef), whose "
        "work is not counted; give tokens or minutes",
        variant.name);
  const model::Transformer model(run.model, run.router, DType::f32, false);  // nothing is allocated
  const std::int64_t seq_len = run.train.seq_len, window = run.model.sliding_window;
  const std::int64_t seen = window > 0 ? std::min(window, seq_len) : seq_len;  // keys, by a token that has all
  const std::int64_t keys = seen * (seen + 1) / 2 + (seq_len - seen) * seen;
  return 3 * model::FlopCounter(model).count_static({seq_len, keys}).total() / static_cast<double>(seq_len);
}

std::int64_t whole_steps(double steps, const sweep::Variant& variant) {
  if (steps < 1) throw_input("budget: is less than a step of variant \"{}\" takes; give more", variant.name);
  if (steps > 1e12) throw_input("budget: is more than 1e12 steps of variant \"{}\"; give less", variant.name);
  return std::llround(steps);
}

// Tokens a second in training, from what `bench` wrote there.
double measured_speed(const fs::path& path) {
  const Json report = parse_stored_json(read_text_file(path), path.string());
  for (const Json& part : report["parts"].array())
    if (part["part"].text() == "training") return part["tokens_per_second"]["median"].number();
  throw_input("{}: has no speed of training; remove the file, and it is measured again", path.string());
}

// As a shell takes it.
std::string as_typed(const sweep::Program& program) {
  std::vector<std::string> words = program.launcher;
  words.emplace_back("switchyard");
  words.insert(words.end(), program.arguments.begin(), program.arguments.end());
  for (std::string& word : words) {
    const bool plain = word.find_first_of(" \t\"'\\$&|;<>()[]{}*?!~`#") == std::string::npos && !word.empty();
    if (plain) continue;
    std::string quoted = "'";
    for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    word = quoted + "'";
  }
  return fmt::format("{}", fmt::join(words, " "));
}

class Sweep {
 public:
  explicit Sweep(const Options& options) : options_(options), spec_(sweep::read_spec(options.spec)) {
    out_ = options.out.empty() ? fs::path("runs") / fs::path(options.spec).stem() : fs::path(options.out);
    if (!out_.has_filename()) out_ = out_.parent_path();  // DIR/
    if (options.jobs > 0) spec_.jobs = options.jobs;
    if (options.threads > 0) spec_.threads = options.threads;
    std::istringstream words(options.launcher);
    for (std::string word; words >> word;) launcher_.push_back(word);
    if (!options.seeds.empty()) spec_.seeds = distinct(options.seeds);
    for (sweep::Variant& variant : spec_.variants)
      variant.overrides.insert(variant.overrides.end(), options.overrides.begin(), options.overrides.end());
    check_overrides();
    if (spec_.budget.of == sweep::Budget::Of::minutes && !launcher_.empty())
      throw_input(
          "{}: budget.minutes goes by the speed of one process, which --launcher does not start; give tokens "
          "or flops",
          options.spec);
    whole_ = spec_;
    if (!options.only.empty()) keep_only(options.only);
    // Every configuration is read before the first run begins.
    for (const sweep::Variant& variant : spec_.variants) load(variant, arguments_of(variant, 1));
  }

  int run() {
    if (options_.table) return print_table();
    if (!options_.dry_run) {
      std::error_code error;
      fs::create_directories(out_ / "logs", error);
      if (error) throw_input("{}: cannot be created: {}; give another --out", out_.string(), error.message());
      if (const int signal = measure_speeds(); signal != 0) return stopped(signal);
    }
    std::vector<sweep::Task> tasks;
    std::vector<std::string> names;
    for (const sweep::Variant& variant : spec_.variants) {
      for (const std::int64_t seed : spec_.seeds) {
        sweep::Task task = task_of(variant, seed);
        if (task.programs.empty()) continue;
        names.push_back(sweep::run_path("", variant, seed).string());
        tasks.push_back(std::move(task));
      }
    }
    const std::size_t all = spec_.variants.size() * spec_.seeds.size();
    if (options_.dry_run) {
      for (const sweep::Task& task : tasks)
        for (const sweep::Program& program : task.programs) fmt::print("{}\n", as_typed(program));
      return 0;
    }
    log_info(fmt::format("{} of {} runs to do, {} at a time with {} {} each; logs in {}", tasks.size(), all,
                         spec_.jobs, spec_.threads, spec_.threads == 1 ? "thread" : "threads",
                         (out_ / "logs").string()));
    std::size_t n_done = 0, n_failed = 0;
    const int signal = sweep::run_side_by_side(
        tasks, spec_.jobs, spec_.threads, [&](std::size_t i) { log_info(fmt::format("begins: {}", names[i])); },
        [&](std::size_t i, const sweep::Outcome& outcome) {
          ++n_done;
          if (outcome.exit_code == 0) {
            record(tasks[i]);
            log_info(fmt::format("{} of {}: {} done in {}", n_done, tasks.size(), names[i],
                                 format_duration(outcome.seconds)));
          } else {
            ++n_failed;
            log_warning(fmt::format("{} of {}: {} failed with exit code {}: {}; {} has all of it", n_done,
                                    tasks.size(), names[i], outcome.exit_code, outcome.error,
                                    tasks[i].log.string()));
          }
        });
    if (signal != 0) return stopped(signal);
    print_table();
    if (n_failed > 0)
      throw_run("{} of {} runs failed; the same command tries them again", n_failed, tasks.size());
    return 0;
  }

 private:
  static std::vector<std::int64_t> distinct(const std::vector<std::int64_t>& seeds) {
    std::vector<std::int64_t> sorted = seeds;
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
      throw_input("--seeds: a seed is there twice");
    return seeds;
  }

  // What the sweep itself says cannot be said by --set, too.
  void check_overrides() const {
    for (const std::string& text : options_.overrides) {
      const auto is_of = [&](std::string_view key) { return text.starts_with(std::string(key) + "="); };
      if (is_of("train.seed")) throw_input("--set {}: seeds are the sweep's; give --seeds", text);
      if (is_of("parallel.threads") && launcher_.empty())
        throw_input("--set {}: threads are the sweep's; give --threads", text);
      if (is_of("train.steps") && spec_.budget.of != sweep::Budget::Of::steps)
        throw_input("--set {}: {} has a budget, which says how long runs train; remove one", text,
                    options_.spec);
    }
  }

  void keep_only(const std::string& pattern) {
    std::regex expression;
    try {
      expression = std::regex(pattern);
    } catch (const std::regex_error&) {
      throw_input("--only '{}' is no regular expression", pattern);
    }
    std::vector<sweep::Variant> kept;
    const auto wanted = [&](const sweep::Variant& variant) {
      return std::regex_search(variant.name, expression);
    };
    for (const sweep::Variant& variant : spec_.variants) {
      const bool compared_with = std::any_of(
          spec_.variants.begin(), spec_.variants.end(),
          [&](const sweep::Variant& other) { return wanted(other) && other.against == variant.name; });
      if (wanted(variant) || compared_with) kept.push_back(variant);
    }
    if (kept.empty()) throw_input("--only '{}' fits no variant of {}", pattern, options_.spec);
    // What stays for another's sake alone has nothing to be compared with.
    for (sweep::Variant& variant : kept)
      if (std::none_of(kept.begin(), kept.end(),
                       [&](const sweep::Variant& other) { return other.name == variant.against; }))
        variant.against.clear();
    spec_.variants = std::move(kept);
  }

  std::vector<std::string> arguments_of(const sweep::Variant& variant, std::int64_t seed) const {
    std::vector<std::string> overrides = variant.overrides;
    overrides.push_back(fmt::format("train.seed={}", seed));
    if (options_.launcher.empty()) overrides.push_back(fmt::format("parallel.threads={}", spec_.threads));
    return overrides;
  }

  fs::path speed_path(const sweep::Variant& variant) const {
    return out_ / ("speed_" + variant.name + ".json");
  }

  // A budget in minutes becomes one in steps by each variant's own speed, measured as the runs will go: side by
  // side.
  int measure_speeds() const {
    if (spec_.budget.of != sweep::Budget::Of::minutes) return 0;
    std::vector<sweep::Task> tasks;
    std::vector<std::string> names;
    for (const sweep::Variant& variant : spec_.variants) {
      std::vector<std::string> command{"bench",        variant.config,
                                       "--rounds",     "3",
                                       "--steps",      "2",
                                       "--prompt",     "1",
                                       "--new-tokens", "1",
                                       "--batch",      "1",
                                       "--threads",    std::to_string(spec_.threads)};
      // Of one seed, whichever are asked for: more of them are runs of as many steps.
      for (const std::string& text : arguments_of(variant, 1)) {
        command.emplace_back("--set");
        command.push_back(text);
      }
      command.insert(command.end(), {"--json", speed_path(variant).string()});
      if (is_done(command, {})) continue;
      tasks.push_back({{{.arguments = command}}, out_ / "logs" / ("speed_" + variant.name + ".log")});
      names.push_back(variant.name);
    }
    if (!tasks.empty()) log_info(fmt::format("measuring the speed of {} variants", tasks.size()));
    std::string failed;
    const int signal = sweep::run_side_by_side(
        tasks, spec_.jobs, spec_.threads, [](std::size_t) {},
        [&](std::size_t i, const sweep::Outcome& outcome) {
          if (outcome.exit_code != 0)
            failed = fmt::format("{}: {}", names[i], outcome.error);
          else
            record(tasks[i]);
        });
    if (!failed.empty()) throw_run("the speed of {}", failed);
    return signal;
  }

  // train.steps of a variant, where a budget says it.
  std::optional<std::int64_t> steps_of(const sweep::Variant& variant, const config::Run& run) const {
    const double amount = spec_.budget.amount, tokens = static_cast<double>(tokens_of_step(run));
    switch (spec_.budget.of) {
      case sweep::Budget::Of::steps:
        return std::nullopt;
      case sweep::Budget::Of::tokens:
        return whole_steps(amount / tokens, variant);
      case sweep::Budget::Of::flops:
        return whole_steps(amount / (tokens * training_flops(run, variant)), variant);
      case sweep::Budget::Of::minutes:
        if (!fs::exists(speed_path(variant))) return std::nullopt;  // a dry run
        return whole_steps(amount * 60 * measured_speed(speed_path(variant)) / tokens, variant);
    }
    return std::nullopt;
  }

  // What is still to be done for a run; no command: nothing.
  sweep::Task task_of(const sweep::Variant& variant, std::int64_t seed) {
    const fs::path run = sweep::run_path(out_, variant, seed);
    sweep::Task task{{}, out_ / "logs" / (run.filename().string() + ".log")};
    const auto [overrides, wanted] = wanted_run(variant, seed);
    if (const std::string difference = difference_to(run, wanted, false); !difference.empty())
      throw_input("{}; remove it, or give another --out", difference);
    const std::vector<std::int64_t> saved = checkpoint::checkpoint_steps(run);
    const bool trained = !saved.empty() && saved.back() >= wanted.train.steps;
    if (!trained) {
      std::vector<std::string> command{"train", variant.config, "--out", run.string(), "--resume", "auto"};
      for (const std::string& text : overrides) {
        command.emplace_back("--set");
        command.push_back(text);
      }
      task.programs.push_back({std::move(command), launcher_});
    }
    for (std::size_t i = 0; i < spec_.evaluations.size(); ++i) {
      std::vector<std::string> command = evaluation_command(run, i);
      const Json& data = data_of_result_[command.back()] = data_of_evaluation(i, wanted);
      if (trained && is_done(command, data)) continue;
      check_evaluation(i, wanted);
      task.programs.push_back({std::move(command)});
    }
    return task;
  }

  std::vector<std::string> evaluation_command(const fs::path& run, std::size_t i) const {
    const sweep::Evaluation& evaluation = spec_.evaluations[i];
    std::vector<std::string> command{"eval", run.string(), "--threads", std::to_string(spec_.threads)};
    for (const std::string& data : evaluation.data) {
      command.emplace_back("--data");
      command.push_back(data);
    }
    if (evaluation.max_tokens > 0) {
      command.emplace_back("--max-tokens");
      command.push_back(std::to_string(evaluation.max_tokens));
    }
    command.emplace_back("--json");
    command.push_back(sweep::evaluation_path(run, spec_, i).string());
    return command;
  }

  struct Wanted {
    std::vector<std::string> overrides;
    config::Run run;
  };
  Wanted wanted_run(const sweep::Variant& variant, std::int64_t seed) const {
    std::vector<std::string> overrides = arguments_of(variant, seed);
    if (const auto steps = steps_of(variant, load(variant, overrides)))
      overrides.push_back(fmt::format("train.steps={}", *steps));
    config::Run run = load(variant, overrides);
    return {std::move(overrides), std::move(run)};
  }

  // In what a run that is there differs from the one that is wanted under its name; "" where it does not, or
  // there is none. What a budget in minutes comes to is not known before the speed is.
  std::string difference_to(const fs::path& run, config::Run wanted, bool in_table) const {
    const bool steps_unknown =
        spec_.budget.of == sweep::Budget::Of::minutes && (options_.dry_run || options_.table);
    const fs::path path = run / "config.json";
    if (!fs::exists(path)) return "";
    config::Run found = config::load_run(path.string(), {}, router::router_schemas());
    if (steps_unknown) found.train.steps = wanted.train.steps;
    if (in_table) found.parallel.threads = wanted.parallel.threads;
    if (wanted.train.micro_batch_size == config::Train::kAutoMicroBatch)
      wanted.train.micro_batch_size = found.train.micro_batch_size;
    const Json there = sorted(parse_stored_json(config::to_resolved_json(found), path.string())),
               here = sorted(parse_stored_json(config::to_resolved_json(wanted), options_.spec));
    const std::vector<std::string> paths = differing_paths(there, here);
    if (paths.empty()) return difference_of_data(run, wanted.data);
    const auto value = [&](const Json& json) {
      const Json* const at = find_path(json, paths.front());
      return at == nullptr ? "nothing" : to_line(*at);
    };
    return fmt::format("{}: is a run of other settings: {} is {} there and {} here{}", run.string(),
                       paths.front(), value(there), value(here),
                       paths.size() == 1 ? "" : fmt::format(" ({} keys differ)", paths.size()));
  }

  // The same of the shards that it has been trained on, by their names and sizes. They may be gone: training
  // asks for them where any of it is left.
  std::string difference_of_data(const fs::path& run, const config::Data& data) const {
    const std::optional<fs::path> latest = checkpoint::find_latest(run);
    const std::string before = latest ? checkpoint::read_run_record(*latest).data : "";
    if (before.empty()) return "";
    std::string now;
    try {
      now = train::data_outline(data);
    } catch (const InputError&) {
      return "";
    }
    const std::string difference = train::first_difference_of_data(before, now);
    return difference.empty() ? "" : fmt::format("{}: was trained on other data: {}", run.string(), difference);
  }

  // What an evaluation reads (train/resume_checks.h); null where that is gone.
  Json data_of_evaluation(std::size_t i, const config::Run& run) const {
    try {
      return Json(train::data_outline({.train = entries_of(spec_.evaluations[i].data, run),
                                       .validation = {},
                                       .document_mask = false,
                                       .eot_token = {},
                                       .begin_token = {}}));
    } catch (const InputError&) {
      return {};
    }
  }
  static std::vector<config::DataEntry> entries_of(const std::vector<std::string>& paths,
                                                   const config::Run& run) {
    std::vector<config::DataEntry> entries;
    for (const std::string& path : paths) entries.push_back({path, "data", std::nullopt});
    return paths.empty() ? run.data.validation : entries;
  }
  // Throws InputError where a run would be trained, and could then not be judged. A dry run, which says how it
  // would go before the data are there, warns of the first.
  void check_evaluation(std::size_t i, const config::Run& run) {
    if (options_.dry_run && warned_of_data_) return;
    const std::vector<std::string>& data = spec_.evaluations[i].data;
    try {
      if (data.empty() && run.data.validation.empty())
        throw_input("is not given, and a run has no data.validation either; give one of them");
      train::find_files(entries_of(data, run));
    } catch (const InputError& error) {
      const std::string message = fmt::format("{}: evaluate.{}.data: {}", options_.spec, i, error.what());
      if (!options_.dry_run) throw_input("{}", message);
      log_warning(message);
      warned_of_data_ = true;
    }
  }

  // Which results are there: {result: {command, data, crc32}}, so that one of other data or settings, or of
  // another program than the sweep's, is not taken for one of these. Paths as seen from --out, which may be
  // moved, or be given in another way the next time.
  fs::path record_path() const { return out_ / "evaluations.json"; }
  std::string from_out(const std::string& word) const {
    const std::string out = out_.string() + "/";
    return word.starts_with(out) ? word.substr(out.size()) : word;
  }
  std::string text_of(const std::vector<std::string>& command) const {
    std::vector<std::string> words;
    for (const std::string& word : command) words.push_back(from_out(word));
    // An evaluation comes to the same on any number of threads; a speed does not.
    if (const auto threads = std::find(words.begin(), words.end(), "--threads"); words.front() == "eval")
      words.erase(threads, threads + 2);
    return fmt::format("{}", fmt::join(words, " "));
  }
  // The last word of such a command is its result. `data`: what it reads; null: nothing, or what is gone.
  bool is_done(const std::vector<std::string>& command, const Json& data) const {
    const std::string& result = command.back();
    if (!fs::exists(result)) return false;
    const Json all = recorded();
    const Json& found = all[from_out(result)];
    // Earlier programs have recorded the command alone, and joined what lies in several directories.
    if (found.is_string())
      return found == Json(text_of(command)) && std::count(command.begin(), command.end(), "--data") < 2;
    if (!found.is_object()) return false;
    return found["command"] == Json(text_of(command)) && found["crc32"] == Json(crc32_of_file(result)) &&
           (data.is_null() || found["data"] == data);
  }
  Json recorded() const {
    if (!fs::exists(record_path())) return Json(Json::Object{});
    try {
      return parse_stored_json(read_text_file(record_path()), record_path().string());
    } catch (const InputError& error) {
      throw_input("{}; or remove it: what is evaluated is then evaluated again", error.what());
    }
  }
  void record(const sweep::Task& task) const {
    Json done = recorded();
    for (const auto& [command, launcher] : task.programs) {
      if (command.front() == "train") continue;
      const std::string& result = command.back();
      const auto data = data_of_result_.find(result);
      done[from_out(result)] =
          Json(Json::Object{{"command", text_of(command)},
                            {"data", data == data_of_result_.end() ? Json() : data->second},
                            {"crc32", crc32_of_file(result)}});
    }
    const fs::path temporary = out_ / ".tmp_evaluations.json";
    write_text_file(temporary, to_text(done));
    fs::rename(temporary, record_path());
  }

  // What is there of the runs of `spec`; `asked`: for these alone it is said why one that is there does not
  // count.
  struct Table {
    Json json;
    std::size_t counted = 0, others = 0;  // runs that are there and count; that are of other settings or data
  };
  Table table_of(const sweep::Spec& spec, bool asked) const {
    Table table;
    sweep::Results results;
    for (const sweep::Variant& variant : spec.variants) {
      auto& row = results.emplace_back();
      for (const std::int64_t seed : spec.seeds) {
        const fs::path run = sweep::run_path(out_, variant, seed);
        bool whole = fs::exists(run / "config.json");
        const config::Run wanted = whole ? wanted_run(variant, seed).run : config::Run();
        for (std::size_t i = 0; i < spec.evaluations.size(); ++i)
          whole = whole && is_done(evaluation_command(run, i), data_of_evaluation(i, wanted));
        if (const std::string difference = whole ? difference_to(run, wanted, true) : ""; !difference.empty()) {
          if (asked) log_warning(difference + "; it is not in the table");
          whole = false;
          ++table.others;
        }
        table.counted += whole ? 1 : 0;
        row.push_back(whole ? std::optional(sweep::read_result(run, spec)) : std::nullopt);
      }
    }
    table.json = sweep::to_json(spec, results);
    add_sizes(spec, table.json);
    return table;
  }

  // All variants of the file, and every seed that has been run.
  sweep::Spec whole_spec() const {
    sweep::Spec whole = whole_;
    std::set<std::int64_t> seeds(whole.seeds.begin(), whole.seeds.end());
    std::error_code error;
    for (fs::directory_iterator it(out_, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      const std::size_t at = name.rfind("_seed");
      if (at == std::string::npos) continue;
      std::int64_t seed = 0;
      const char* const last = name.data() + name.size();
      const auto [stop, bad] = std::from_chars(name.data() + at + 5, last, seed);
      const bool is_of_one =
          std::any_of(whole.variants.begin(), whole.variants.end(),
                      [&](const auto& variant) { return variant.name == name.substr(0, at); });
      if (bad == std::errc() && stop == last && is_of_one) seeds.insert(seed);
    }
    whole.seeds.assign(seeds.begin(), seeds.end());
    return whole;
  }

  int print_table() const {
    const Json table = table_of(spec_, true).json;
    const std::string markdown = sweep::to_markdown(spec_, table);
    if (fs::is_directory(out_)) write_whole_table();
    std::FILE* const to = options_.json == "-" ? stderr : stdout;
    fmt::print(to, "{}", markdown);
    if (options_.json == "-") {
      fmt::print("{}", to_text(table));
    } else if (!options_.json.empty()) {
      write_text_file(options_.json, to_text(table));
    }
    return std::fflush(to) == 0 ? 0 : 1;
  }

  // A variant that is not asked for may be one that cannot be read.
  void write_whole_table() const {
    const sweep::Spec whole = whole_spec();
    Table table;
    try {
      table = table_of(whole, false);
    } catch (const InputError& error) {
      return log_warning(fmt::format("{} stays as it is, since not all of {} can be tabulated: {}",
                                     (out_ / "sweep.json").string(), options_.spec, error.what()));
    }
    // One who only looks may look with other settings than the runs were made with.
    const fs::path file = out_ / "sweep.json";
    if (options_.table && (table.counted == 0 || table.others > 0))
      return log_warning(fmt::format("{} stays as it is, since {} of the runs there count for this command",
                                     file.string(), table.counted == 0 ? "none" : "not all"));
    write_text_file(file, to_text(table.json));
    write_text_file(out_ / "sweep.markdown", sweep::to_markdown(whole, table.json));
  }

  // Of each variant its parameters, and the tokens that its runs have read.
  void add_sizes(const sweep::Spec& spec, Json& table) const {
    Json rows(Json::Array{});
    for (std::size_t v = 0; v < spec.variants.size(); ++v) {
      const config::Run run = load(spec.variants[v], arguments_of(spec.variants[v], 1));
      const model::ParameterCount count = model::count_parameters(run.model, run.router);
      Json row = table["variants"].array()[v];
      row["parameters"]["total"] = count.total;
      row["parameters"]["active"] = count.active;
      if (row["steps"].is_integer()) row["training_tokens"] = row["steps"].integer() * tokens_of_step(run);
      rows.push_back(std::move(row));
    }
    table["variants"] = std::move(rows);
  }

  int stopped(int signal) const {
    log_info(fmt::format("stopped; the same command goes on from there: {}", out_.string()));
    return 128 + signal;
  }

  const Options& options_;
  sweep::Spec spec_, whole_;  // what is asked for; all of the file, with the seeds that are asked for
  std::map<std::string, Json> data_of_result_;
  bool warned_of_data_ = false;
  fs::path out_;
  std::vector<std::string> launcher_;
};

int run(const Options& options) { return Sweep(options).run(); }

}  // namespace

const Command kSweep = {"sweep", "Train and evaluate many runs, and say what their differences are worth",
                        with_options<Options, describe, run>};

}  // namespace switchyard::commands
