#include <fmt/core.h>

#include <algorithm>
#include <filesystem>

#include "checkpoint/model_directory.h"
#include "checkpoint/tokenizer_record.h"
#include "commands/commands.h"
#include "commands/inspect_page.h"
#include "commands/options.h"
#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "data/shard.h"
#include "data/shard_paths.h"
#include "model/cost.h"
#include "router/router.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;

constexpr const char* kAllTensors = "all";
struct Options {
  std::string path;
  std::string tensors;  // empty: do not list them; "weights"; or kAllTensors: the optimizer's state too
  bool json = false;
};

void describe(CLI::App& app, Options& options) {
  app.add_option(
         "PATH", options.path,
         "A token shard (.bin), a checkpoint, run or Hugging Face model directory, a configuration or a "
         "tokenizer.json")
      ->required();
  app.add_flag("--json", options.json, "Print JSON");
  app.add_flag("--tensors{weights}", options.tensors,
               "List the tensors of the weights too; --tensors=all: of the optimizer's state as well")
      ->check(CLI::IsMember({"weights", kAllTensors}));
  app.footer(
      "Examples:\n"
      "  switchyard inspect configs/bench_cpu_86m.json\n"
      "  switchyard inspect data/quickstart/legal/train_000000.bin\n"
      "  switchyard inspect runs/quickstart\n"
      "  switchyard inspect runs/quickstart --tensors --json");
}

Json parameter_json(const config::Model& model, const config::Router& router) {
  const model::ParameterCount count = model::count_parameters(model, router);
  Json json(
      Json::Object{{"total", count.total}, {"active", count.active}, {"active_matmul", count.active_matmul}});
  for (const auto& [part, values] : count.parts) json["parts"][part] = values;
  if (model.num_nextn_predict_layers > 0) json["mtp"] = count.mtp;
  return json;
}

// Of what this program has written.
Json parsed(const std::string& config_json) { return parse_stored_json(config_json, "the configuration"); }

Json model_json(const config::Model& model) { return parsed(config::model_to_hf_json(model)); }

Json inspect_shard(const fs::path& path) {
  const data::Shard shard(path);
  std::vector<std::int32_t> buffer(1 << 16);
  std::int32_t largest = 0;
  for (std::int64_t first = 0; first < shard.size(); first += static_cast<std::int64_t>(buffer.size())) {
    const auto count = std::min<std::int64_t>(shard.size() - first, static_cast<std::int64_t>(buffer.size()));
    const auto part = std::span(buffer).first(static_cast<std::size_t>(count));
    shard.read(first, part);
    largest = std::max(largest, *std::max_element(part.begin(), part.end()));
  }
  Json info(Json::Object{{"kind", "shard"},
                         {"path", path.string()},
                         {"tokens", shard.size()},
                         {"token_bytes", shard.token_bytes()},
                         {"largest_token", largest}});
  const data::SpecialTokens special = data::special_tokens_beside({path});
  if (special.eot) info["eot_token"] = *special.eot;
  if (special.begin) info["begin_token"] = *special.begin;
  return info;
}

Json inspect_config(const fs::path& path, const std::string& text) {
  if (!config::looks_like_run(text, path.string())) {
    const config::Model model = config::parse_model(text, path.string());
    return Json::Object{
        {"kind", "model"},
        {"path", path.string()},
        {"parameters",
         parameter_json(model, config::parse_model_router(text, path.string(), router::router_schemas()))},
        {"model", model_json(model)}};
  }
  const config::Run run = config::parse_run(text, path.string(), {}, router::router_schemas(), std::nullopt,
                                            checkpoint::vocab_size_of);
  const std::int64_t tokens_a_step = run.train.global_batch_size * run.train.seq_len;
  return Json::Object{{"kind", "run"},
                      {"path", path.string()},
                      {"parameters", parameter_json(run.model, run.router)},
                      {"tokens_per_step", tokens_a_step},
                      {"tokens", tokens_a_step * run.train.steps},
                      {"config", parsed(run.resolved_json)}};
}

Json inspect_tokenizer(const fs::path& path, const std::string& text) {
  const tokenizer::Description about = tokenizer::describe_hugging_face(text, path.string());
  Json info(Json::Object{{"kind", "tokenizer"},
                         {"path", path.string()},
                         {"vocab_size", about.vocab_size},
                         {"model_tokens", about.model_tokens},
                         {"merges", about.merges},
                         {"added_tokens", about.added_tokens},
                         {"special_tokens", about.special_tokens},
                         {"normalizer", about.normalizer},
                         {"pre_tokenizer", about.pre_tokenizer},
                         {"post_processor", about.post_processor},
                         {"decoder", about.decoder},
                         {"tokens_before_text", Json::list(about.begin)},
                         {"tokens_behind_text", Json::list(about.end)}});
  if (about.end_of_text) info["eot_token"] = *about.end_of_text;
  return info;
}

void append_tensors(Json& list, const checkpoint::SafetensorsFile& file) {
  for (const checkpoint::StoredTensor& tensor : file.tensors())
    list.push_back(Json::Object{{"file", file.path().filename().string()},
                                {"name", tensor.name},
                                {"dtype", checkpoint::name_of(tensor.type)},
                                {"shape", Json::list(tensor.shape)}});
}

// The weights; with `all` what else a checkpoint carries too.
Json tensors_of(const checkpoint::ModelDirectory& directory, bool all) {
  Json list(Json::Array{});
  for (const checkpoint::SafetensorsFile& file : directory.weights().files()) append_tensors(list, file);
  if (all && directory.checkpoint()) append_tensors(list, directory.checkpoint()->state_file());
  return list;
}

Json model_directory_json(const checkpoint::ModelDirectory& directory) {
  const config::Model& model = directory.model();
  const config::Router router = directory.router();
  return Json::Object{{"kind", "model_directory"},
                      {"path", directory.path().string()},
                      {"bytes", bytes_of(directory)},
                      {"parameters", parameter_json(model, router)},
                      {"model", parsed(config::state_router(config::model_to_hf_json(model), model, router,
                                                            router::router_schemas()))}};
}

Json checkpoint_json(const checkpoint::ModelDirectory& directory) {
  const checkpoint::Checkpoint& checkpoint = *directory.checkpoint();
  const checkpoint::RunState& state = checkpoint.state();
  const config::Run run = *directory.run();
  Json info(Json::Object{{"kind", "checkpoint"},
                         {"path", directory.path().string()},
                         {"step", state.step},
                         {"steps", run.train.steps},
                         {"tokens", state.tokens},
                         {"updates", state.updates},
                         {"skipped", state.spikes.skipped},
                         {"rollbacks", state.spikes.rollbacks},
                         {"train_seconds", state.train_seconds},
                         {"bytes", bytes_of(directory)},
                         {"parameters", parameter_json(run.model, run.router)},
                         {"config", parsed(checkpoint.run_config_json())}});
  if (!state.spikes.losses.empty()) info["loss"] = state.spikes.losses.back();
  if (state.val_loss) info["val_loss"] = *state.val_loss;
  if (const auto record = checkpoint::tokenizer_record_in(directory.path()))
    info["tokenizer"] = Json::Object{{"tokenizer", record->tokenizer},
                                     {"begin_token", record->begin_token},
                                     {"eot_token", record->eot_token}};
  return info;
}

int print_model(const checkpoint::ModelDirectory& directory, const Options& options) {
  const bool all = options.tensors == kAllTensors;
  if (options.json) {
    Json info = directory.checkpoint() ? checkpoint_json(directory) : model_directory_json(directory);
    if (!options.tensors.empty()) info["tensors"] = tensors_of(directory, all);
    fmt::print("{}", to_text(info));
    return 0;
  }
  fmt::print("{}", model_page(directory));
  if (options.tensors.empty()) return 0;
  const Json tensors = tensors_of(directory, all);
  fmt::print("\n{} tensors\n", tensors.size());
  for (const Json& tensor : tensors.array())
    fmt::print("{:<4} {:<60} {:<16} {}\n", tensor["dtype"].text(), printable(tensor["name"].text()),
               to_line(tensor["shape"]), printable(tensor["file"].text()));
  return 0;
}

// One line a member; nested objects indented.
void print_text(const Json& value, int indent) {
  for (const auto& [key, member] : value.object()) {
    if (member.is_object()) {
      fmt::print("{:{}}{}:\n", "", indent, key);
      print_text(member, indent + 2);
    } else {
      fmt::print("{:{}}{}: {}\n", "", indent, key, member.is_string() ? member.text() : to_line(member));
    }
  }
}

int run(const Options& options) {
  const fs::path path(options.path);
  if (!fs::exists(path))
    throw_input(
        "{}: no such file or directory; give a shard, a checkpoint, a model directory, a config or "
        "a tokenizer.json",
        options.path);
  if (fs::is_directory(path)) return print_model(checkpoint::ModelDirectory(path), options);
  if (!options.tensors.empty())
    throw_input("--tensors: {} is a file; give a checkpoint, a run or a Hugging Face model directory",
                options.path);
  Json info;
  if (path.extension() == ".json") {
    const std::string text = read_text_file(path);
    info =
        tokenizer::looks_like_hugging_face(text) ? inspect_tokenizer(path, text) : inspect_config(path, text);
  } else {
    info = inspect_shard(path);
  }
  if (options.json) {
    fmt::print("{}", to_text(info));
  } else {
    print_text(info, 0);
  }
  return 0;
}

}  // namespace

const Command kInspect = {"inspect", "What a shard, a checkpoint or a configuration holds",
                          with_options<Options, describe, run>};

}  // namespace switchyard::commands
