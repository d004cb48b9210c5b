#include "train/resume_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>

#include "checkpoint/manifest.h"
#include "checkpoint/tokenizer_record.h"
#include "config/load.h"
#include "core/error.h"
#include "core/json.h"
#include "core/json_differences.h"
#include "core/log.h"
#include "model/transformer.h"
#include "router/router.h"
#include "train/optimizer.h"

namespace switchyard::train {

namespace {

Json shard_json(const std::string& domain, const data::Shard& shard) {
  return Json(Json::Object{{"domain", domain},
                           {"name", shard.path().filename().string()},
                           {"tokens", shard.size()},
                           {"token_bytes", shard.token_bytes()}});
}

Json shards_of(const std::vector<Domain>& domains) {
  Json::Array list;
  for (const Domain& domain : domains) {
    for (std::size_t i = 0; i < domain.stream.shards().size(); ++i) {
      list.push_back(shard_json(domain.name, domain.stream.shards()[i]));
      list.back()["crc32"] = checkpoint::crc_text(domain.crc_of_shard[i]);
    }
  }
  return Json(std::move(list));
}

// Without a look at their tokens.
Json shards_at(const std::vector<config::DataEntry>& entries) {
  Json::Array list;
  for (const DomainFiles& files : find_files(entries))
    for (const std::filesystem::path& path : files.paths)
      list.push_back(shard_json(files.name, data::Shard(path)));
  return Json(std::move(list));
}

std::string name_of(const Json& shard) {
  const auto text = [&](const char* key) { return shard[key].is_string() ? shard[key].text() : "?"; };
  return fmt::format("{} (domain {})", text("name"), text("domain"));
}

bool same_place(const Json& a, const Json& b) { return a["name"] == b["name"] && a["domain"] == b["domain"]; }

bool holds(const Json::Array& shards, const Json& shard) {
  return std::any_of(shards.begin(), shards.end(), [&](const Json& other) { return same_place(other, shard); });
}

std::string first_difference(const Json::Array& before, const Json::Array& now) {
  for (std::size_t i = 0; i < std::max(before.size(), now.size()); ++i) {
    if (i >= before.size()) return name_of(now[i]) + " is new";
    if (i >= now.size()) return name_of(before[i]) + " is gone";
    const Json &a = before[i], &b = now[i];
    if (!same_place(a, b)) {
      if (!holds(before, b)) return name_of(b) + " is new";
      if (!holds(now, a)) return name_of(a) + " is gone";
      return fmt::format("{} comes where {} came", name_of(b), name_of(a));
    }
    for (const char* key : {"tokens", "token_bytes", "crc32"})
      if (b.contains(key) && a[key] != b[key])
        return fmt::format("{} has other tokens: {} was {}, is {}", name_of(b), key, to_line(a[key]),
                           to_line(b[key]));
  }
  return "";
}

// Where one side has no such record, shards were given without their meta.json: that alone changes no sample.
std::string tokenizer_difference(const Json& before, const Json& now) {
  if (!before.is_object() || !now.is_object()) return "";
  for (const auto& [key, value] : before.object())
    if (now.contains(key) && now[key] != value && key != "tokenizer")
      return fmt::format("meta.json beside the shards has another {}: was {}, is {}", key, to_line(value),
                         to_line(now[key]));
  return "";
}

}  // namespace

std::string data_fingerprint(const std::vector<Domain>& train, const std::vector<Domain>& validation,
                             const config::Data& data) {
  Json fingerprint;
  fingerprint["train"] = shards_of(train);
  fingerprint["validation"] = shards_of(validation);
  fingerprint["tokenizer"] = Json();
  for (const auto& [name, text] : checkpoint::tokenizer_files(data))
    if (name == checkpoint::kTokenizerMeta) fingerprint["tokenizer"] = parse_stored_json(text, name);
  return to_line(fingerprint);
}

std::string data_outline(const config::Data& data) {
  Json outline;
  outline["train"] = shards_at(data.train);
  outline["validation"] = shards_at(data.validation);
  return to_line(outline);
}

std::string first_difference_of_data(const std::string& before_text, const std::string& now_text) {
  const Json before = parse_stored_json(before_text, "the checkpoint's data"),
             now = parse_stored_json(now_text, "the run's data");
  const auto shards = [](const Json& data, const char* split) {
    return data[split].is_array() ? data[split].array() : Json::Array();
  };
  for (const char* split : {"train", "validation"}) {
    const std::string difference = first_difference(shards(before, split), shards(now, split));
    if (!difference.empty()) return fmt::format("data.{}: {}", split, difference);
  }
  const std::string tokenizer = tokenizer_difference(before["tokenizer"], now["tokenizer"]);
  return tokenizer.empty() ? "" : "data.train: " + tokenizer;
}

namespace {

// A resolved configuration, its keys in one order whoever wrote it.
Json resolved(const std::string& text) { return sorted(parse_stored_json(text, "config.json")); }

}  // namespace

namespace {

config::Run run_of(const checkpoint::Checkpoint& checkpoint) {
  return config::parse_run(checkpoint.run_config_json(), checkpoint.path().string(), {},
                           router::router_schemas());
}

}  // namespace

std::string router_differences(const config::Run& run, const checkpoint::Checkpoint& checkpoint) {
  std::vector<std::string> differences;
  for (const auto& difference : checkpoint::differences_of(run.router, run_of(checkpoint).router))
    differences.push_back(fmt::format("router.{} is {}, in the checkpoint {}", difference.key, difference.here,
                                      difference.there));
  return fmt::format("{}", fmt::join(differences, "; "));
}

// Also where the two keep the same rows: moments of another router are no start for this one.
void check_router(const config::Run& run, const checkpoint::Checkpoint& checkpoint) {
  const std::string there = run_of(checkpoint).router.type;
  if (run.router.type != there)
    throw_input(
        "{}: cannot be resumed with another router: router.type is \"{}\", in the checkpoint \"{}\"; use the "
        "checkpoint's, or begin a new run with its weights (--init-from)",
        checkpoint.path().string(), run.router.type, there);
}

// What a run keeps under the same name and shape may say something else there.
void check_meanings(const config::Run& run, const checkpoint::Checkpoint& checkpoint,
                    std::span<const Parameter> rows) {
  const config::Router router = run_of(checkpoint).router;
  if (router == run.router) return;
  const model::Transformer there(run.model, router, DType::f32, true);  // described, not allocated
  std::map<std::string_view, const Parameter*> row_of;
  for (const Parameter& row : there.parameters().rows()) row_of.emplace(row.name, &row);
  for (const Parameter& row : rows) {
    const auto found = row_of.find(row.name);
    if (found == row_of.end() || found->second->meaning == row.meaning) continue;
    throw_input(
        "{}: cannot be resumed with this configuration: {}; {} there is {}, here {}; use the checkpoint's, or "
        "begin "
        "a new run with its weights (--init-from)",
        checkpoint.path().string(), router_differences(run, checkpoint), row.name, found->second->meaning,
        row.meaning);
  }
}

// Samples would be repeated and left out without a word.
void check_data(const checkpoint::Checkpoint& checkpoint, const std::string& data, bool allow_new) {
  if (checkpoint.data().empty())
    return log_warning(checkpoint.path().string() +
                       ": has no fingerprint of its data, so whether they are these cannot be checked");
  const std::string difference = first_difference_of_data(checkpoint.data(), data);
  if (difference.empty()) return;
  if (!allow_new)
    throw_input(
        "{}: cannot be resumed with other data: {}; give the data that the run began with, or go on with these "
        "by --allow-new-data",
        checkpoint.path().string(), difference);
  log_warning("goes on with other data than the checkpoint's: " + difference);
}

// Of the domains of data.train: their shares, or no values where the data's sizes decide.
std::vector<double> shares_of(const Json& run) {
  std::map<std::string, double> weight_of;
  if (!run["data"]["train"].is_array()) return {};
  for (const Json& entry : run["data"]["train"].array())
    if (entry["domain"].is_string())
      weight_of[entry["domain"].text()] = entry["weight"].is_number() ? entry["weight"].number() : 0;
  double sum = 0;
  for (const auto& [domain, weight] : weight_of) sum += weight;
  std::vector<double> shares;
  for (const auto& [domain, weight] : weight_of) shares.push_back(sum > 0 ? weight / sum : 0);
  return weight_of.size() > 1 ? shares : std::vector<double>();
}

bool are_equal(const std::vector<double>& a, const std::vector<double>& b) {
  constexpr double kRounding = 1e-9;
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](double x, double y) { return std::abs(x - y) <= kRounding; });
}

// Model and seed must be equal (check_resumable). The rest may change on purpose, and is named.
void warn_of_changes(const config::Run& run, const checkpoint::Checkpoint& checkpoint) {
  const Json before = resolved(checkpoint.run_config_json()), now = resolved(run.resolved_json);
  if (before == now) return;
  log_warning(
      "the configuration has changed since the checkpoint was written; from here on the new one holds: " +
      fmt::format("{}", fmt::join(differing_paths(before, now), ", ")));
  // Samples have numbers by the windows and shares that there are.
  if (before["train"]["seq_len"] != now["train"]["seq_len"] || !are_equal(shares_of(before), shares_of(now)))
    log_warning(
        "train.seq_len or the weights of data.train are not the checkpoint's: samples are drawn anew, in "
        "another "
        "order, so that what the run has read may come again before the rest has come once");
  const std::int64_t next = checkpoint.state().step + 1;
  if (next > run.train.steps || before["train"] == now["train"]) return;
  const double was = learning_rate(run_of(checkpoint).train, next), is = learning_rate(run.train, next);
  if (std::abs(is - was) > 1e-3 * std::max(is, was))
    log_warning(
        fmt::format("the learning rate of step {} is {:.2e}; the checkpoint's configuration has {:.2e} there",
                    next, is, was));
}

std::vector<std::string> differences_of_tokens(const config::Data& run_data,
                                               const std::filesystem::path& directory) {
  const data::SpecialTokens data = special_tokens_of(run_data),
                            model = checkpoint::special_tokens_of_model(directory);
  std::vector<std::string> differences;
  const auto compare = [&](const char* what, std::optional<std::int64_t> here,
                           std::optional<std::int64_t> there) {
    if (here && there && *here != *there)
      differences.push_back(
          fmt::format("documents of the training data {} with token {}, those that {} was trained on with {}",
                      what, *here, directory.string(), *there));
  };
  compare("begin", data.begin, model.begin);
  compare("end", data.eot, model.eot);
  return differences;
}

void warn_of_other_tokens(const config::Data& run_data, const std::filesystem::path& directory) {
  for (const std::string& difference : differences_of_tokens(run_data, directory))
    log_warning(difference + "; prepare the data with that model's tokenizer");
}

}  // namespace switchyard::train
