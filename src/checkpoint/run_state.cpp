#include "checkpoint/run_state.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "checkpoint/manifest.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::checkpoint {

namespace {

namespace fs = std::filesystem;

template <class T>
T whole_number(const Json& object, const char* key, const fs::path& path) {
  const std::optional<std::uint64_t> value = object[key].whole();
  if (!value || !std::in_range<T>(*value))  // the seed may use all 64 bits
    throw_input("{}: \"{}\" is not a whole number; the checkpoint is damaged, use another one", path.string(),
                key);
  return static_cast<T>(*value);
}

Json parse_run_json(std::string_view text, const fs::path& path) {
  Json run = parse_stored_json(text, path.string());
  if (!run.contains("config"))
    throw_input("{}: is not a run's state; the checkpoint is damaged, use another one", path.string());
  if (const auto version = whole_number<std::int64_t>(run, "format_version", path);
      version != kCheckpointFormat)
    throw_input("{}: format_version is {}, known is {}", path.string(), version, kCheckpointFormat);
  return run;
}

RunState run_state_of(const Json& run, const fs::path& path) {
  RunState state;
  state.step = whole_number<std::int64_t>(run, "step", path);
  state.tokens = whole_number<std::int64_t>(run, "tokens", path);
  state.samples = whole_number<std::uint64_t>(run, "samples", path);
  state.seed = whole_number<std::uint64_t>(run, "seed", path);
  state.updates = run.contains("updates") ? whole_number<std::int64_t>(run, "updates", path) : state.step;
  const auto number = [](const Json& object, const char* key) {
    return object[key].is_number() ? std::optional(object[key].number()) : std::nullopt;
  };
  state.train_seconds = number(run, "train_seconds").value_or(0);
  state.val_loss = number(run, "val_loss");
  if (!run.contains("spikes")) return state;
  const Json& spikes = run["spikes"];
  const auto numbers = [&](const char* key) {
    std::vector<double> list;
    if (!spikes[key].is_array()) return list;
    for (const Json& value : spikes[key].array()) {
      if (!value.is_number())
        throw_input("{}: \"spikes.{}\" holds {}, not a number; the checkpoint is damaged, use another one",
                    path.string(), key, printable(to_line(value)));
      list.push_back(value.number());
    }
    return list;
  };
  if (!spikes.is_object())
    throw_input("{}: \"spikes\" is not an object; the checkpoint is damaged, use another one", path.string());
  state.spikes = {.losses = numbers("losses"),
                  .grad_norms = numbers("grad_norms"),
                  .skipped = whole_number<std::int64_t>(spikes, "skipped", path),
                  .skipped_in_row = whole_number<std::int64_t>(spikes, "skipped_in_row", path),
                  .rollbacks = whole_number<std::int64_t>(spikes, "rollbacks", path)};
  return state;
}

}  // namespace

double median_of(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double recent_loss(const SpikeHistory& history) {
  const auto n = static_cast<std::ptrdiff_t>(std::min(history.losses.size(), kRecent));
  return median_of(std::vector<double>(history.losses.end() - n, history.losses.end()));
}

std::string run_record_json(const RunRecord& record) {
  const RunState& state = record.state;
  Json text;
  text["format_version"] = kCheckpointFormat;
  text["step"] = state.step;
  text["tokens"] = state.tokens;
  text["samples"] = state.samples;
  text["seed"] = state.seed;
  text["updates"] = state.updates;
  text["train_seconds"] = state.train_seconds;
  text["val_loss"] = state.val_loss ? Json(*state.val_loss) : Json();
  text["spikes"] = Json::Object{{"skipped", state.spikes.skipped},
                                {"skipped_in_row", state.spikes.skipped_in_row},
                                {"rollbacks", state.spikes.rollbacks},
                                {"losses", Json::list(state.spikes.losses)},
                                {"grad_norms", Json::list(state.spikes.grad_norms)}};
  if (!record.data.empty()) text["data"] = parse_stored_json(record.data, "data");
  text["config"] = parse_stored_json(record.config_json, "config");
  return to_text(text);
}

RunRecord parse_run_record(std::string_view text, const fs::path& path) {
  const Json run = parse_run_json(text, path);
  RunRecord record{run_state_of(run, path), to_text(run["config"]), {}};
  if (run.contains("data")) record.data = to_line(run["data"]);
  return record;
}

RunRecord read_run_record(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kRunJson;
  return parse_run_record(read_text_file(path), path);
}

RunState read_run_state(const fs::path& checkpoint) { return read_run_record(checkpoint).state; }

}  // namespace switchyard::checkpoint
