#include "train/resume_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoint/tokenizer_record.h"
#include "config/load.h"
#include "core/error.h"
#include "core/log.h"
#include "router/registry.h"
#include "train/data_fingerprint.h"
#include "train/schedule.h"

namespace switchyard::train {

namespace {

// The keys in which two configurations differ, as "train.lr, data.train.0.path".
std::string differing_keys(const nlohmann::json& a, const nlohmann::json& b) {
  std::vector<std::string> keys;
  for (const auto& change : nlohmann::json::diff(a, b)) {
    std::string key = change.at("path").get<std::string>().substr(1);
    std::replace(key.begin(), key.end(), '/', '.');
    keys.push_back(std::move(key));
  }
  return fmt::format("{}", fmt::join(keys, ", "));
}

}  // namespace

// "router.type is "lpr", in the checkpoint "top_p"; ..."
std::string router_differences(const config::Run& run, const checkpoint::Checkpoint& checkpoint) {
  const auto section = [](const std::string& text) {
    return nlohmann::json::parse(text).value("router", nlohmann::json::object());
  };
  const auto here = section(run.resolved_json), there = section(checkpoint.run_config_json());
  std::vector<std::string> differences;
  for (const auto& [key, value] : here.items())
    if (there.contains(key) && there[key] != value)
      differences.push_back(
          fmt::format("router.{} is {}, in the checkpoint {}", key, value.dump(), there[key].dump()));
  return fmt::format("{}", fmt::join(differences, "; "));
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

// Model and seed must be equal (check_resumable). The rest may change on purpose, and is named.
void warn_of_changes(const config::Run& run, const checkpoint::Checkpoint& checkpoint) {
  const auto before = nlohmann::json::parse(checkpoint.run_config_json());
  const auto now = nlohmann::json::parse(run.resolved_json);
  if (before == now) return;
  log_warning(
      "the configuration has changed since the checkpoint was written; from here on the new one holds: " +
      differing_keys(before, now));
  const std::int64_t next = checkpoint.state().step + 1;
  if (next > run.train.steps || before.value("train", nlohmann::json()) == now.value("train", nlohmann::json()))
    return;
  const double was = learning_rate(config::parse_run(checkpoint.run_config_json(), checkpoint.path().string(),
                                                     {}, router::router_schemas())
                                       .train,
                                   next),
               is = learning_rate(run.train, next);
  if (std::abs(is - was) > 1e-3 * std::max(is, was))
    log_warning(
        fmt::format("the learning rate of step {} is {:.2e}; the checkpoint's configuration has {:.2e} there",
                    next, is, was));
}

void warn_of_other_tokens(const config::Data& run_data, const std::filesystem::path& directory) {
  const data::SpecialTokens data = special_tokens_of(run_data),
                            model = checkpoint::special_tokens_of_model(directory);
  const auto compare = [&](const char* what, std::optional<std::int64_t> here,
                           std::optional<std::int64_t> there) {
    if (here && there && *here != *there)
      log_warning(
          fmt::format("documents of the training data {} with token {}, those that {} was trained on with "
                      "{}; prepare the data with that model's tokenizer",
                      what, *here, directory.string(), *there));
  };
  compare("begin", data.begin, model.begin);
  compare("end", data.eot, model.eot);
}

}  // namespace switchyard::train
