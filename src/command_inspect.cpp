#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "data/dataset.h"
#include "data/shard.h"
#include "model/parameter_count.h"
#include "router/registry.h"
#include "tokenizer/tokenizer.h"
#include "train/checkpoint.h"
#include "train/model_directory.h"
#include "train/token_data.h"

namespace switchyard {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Json parameter_json(const config::Model& model, const config::Router& router) {
  const model::ParameterCount count = model::count_parameters(model, router);
  Json json = {{"total", count.total}, {"active", count.active}, {"active_matmul", count.active_matmul}};
  if (model.num_nextn_predict_layers > 0) json["mtp"] = count.mtp;
  return json;
}

Json model_json(const config::Model& model) { return Json::parse(config::model_to_hf_json(model)); }

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
  Json info = {{"kind", "shard"},
               {"path", path.string()},
               {"tokens", shard.size()},
               {"token_bytes", shard.token_bytes()},
               {"largest_token", largest}};
  const data::SpecialTokens special = data::special_tokens_beside({path});
  if (special.eot) info["eot_token"] = *special.eot;
  if (special.begin) info["begin_token"] = *special.begin;
  return info;
}

Json inspect_config(const fs::path& path, const std::string& text) {
  if (!config::looks_like_run(text)) {
    const config::Model model = config::parse_model(text, path.string());
    return {{"kind", "model"},
            {"path", path.string()},
            {"parameters",
             parameter_json(model, config::parse_model_router(text, path.string(), router::router_schemas()))},
            {"model", model_json(model)}};
  }
  const config::Run run =
      config::parse_run(text, path.string(), {}, router::router_schemas(), std::nullopt, train::vocab_size_of);
  const std::int64_t tokens_a_step = run.train.global_batch_size * run.train.seq_len;
  return {{"kind", "run"},
          {"path", path.string()},
          {"parameters", parameter_json(run.model, run.router)},
          {"tokens_per_step", tokens_a_step},
          {"tokens", tokens_a_step * run.train.steps},
          {"config", Json::parse(run.resolved_json)}};
}

Json inspect_tokenizer(const fs::path& path, const std::string& text) {
  const tokenizer::Description about = tokenizer::describe_hugging_face(text, path.string());
  Json info = {{"kind", "tokenizer"},
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
               {"tokens_before_text", about.begin},
               {"tokens_behind_text", about.end}};
  if (about.end_of_text) info["eot_token"] = *about.end_of_text;
  return info;
}

Json inspect_model_directory(const train::ModelDirectory& directory) {
  Json tensors = Json::array();
  std::uint64_t bytes = 0;
  for (const train::SafetensorsFile& file : directory.weights().files()) {
    bytes += fs::file_size(file.path());
    for (const train::StoredTensor& tensor : file.tensors())
      tensors.push_back({{"file", file.path().filename().string()},
                         {"name", tensor.name},
                         {"dtype", train::name_of(tensor.type)},
                         {"shape", tensor.shape}});
  }
  const config::Model& model = directory.model();
  return {{"kind", "model_directory"},
          {"path", directory.path().string()},
          {"bytes", bytes},
          {"parameters", parameter_json(model, directory.router())},
          {"model", model_json(model)},
          {"tensors", std::move(tensors)}};
}

Json inspect_checkpoint(const fs::path& path) {
  const train::CheckpointInfo info = train::describe_checkpoint(path);
  const config::Run run =
      config::parse_run(info.run_config_json, (info.path / "run.json").string(), {}, router::router_schemas());
  Json tensors = Json::array();
  for (const train::TensorInfo& tensor : info.tensors)
    tensors.push_back(
        {{"file", tensor.file}, {"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}});
  return {{"kind", "checkpoint"},           {"path", info.path.string()},
          {"step", info.state.step},        {"tokens", info.state.tokens},
          {"bytes", info.total_bytes},      {"parameters", parameter_json(run.model, run.router)},
          {"model", model_json(run.model)}, {"config", Json::parse(info.run_config_json)},
          {"tensors", std::move(tensors)}};
}

// One line a member; nested objects indented, long lists by their length.
void print_text(const Json& value, int indent) {
  for (const auto& [key, member] : value.items()) {
    if (member.is_object()) {
      fmt::print("{:{}}{}:\n", "", indent, key);
      print_text(member, indent + 2);
    } else if (key == "tensors") {
      fmt::print("{:{}}tensors: {}\n", "", indent, member.size());
      for (const auto& tensor : member)
        fmt::print("{:{}}{:<4} {:<60} {}\n", "", indent + 2, tensor["dtype"].get<std::string>(),
                   tensor["name"].get<std::string>(), tensor["shape"].dump());
    } else {
      fmt::print("{:{}}{}: {}\n", "", indent, key,
                 member.is_string() ? member.get<std::string>() : member.dump());
    }
  }
}

}  // namespace

int run_inspect(const InspectOptions& options) {
  const fs::path path(options.path);
  if (!fs::exists(path))
    throw_input(
        "{}: no such file or directory; give a shard, a checkpoint, a model directory, a config or "
        "a tokenizer.json",
        options.path);
  Json info;
  if (fs::is_directory(path)) {
    info = train::is_hugging_face(path) ? inspect_model_directory(train::ModelDirectory(path))
                                        : inspect_checkpoint(path);
  } else if (path.extension() == ".json") {
    const std::string text = read_text_file(path);
    info =
        tokenizer::looks_like_hugging_face(text) ? inspect_tokenizer(path, text) : inspect_config(path, text);
  } else {
    info = inspect_shard(path);
  }
  if (options.json) {
    fmt::print("{}\n", info.dump(2));
  } else {
    print_text(info, 0);
  }
  return 0;
}

}  // namespace switchyard
