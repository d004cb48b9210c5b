#include "checkpoint/run_state.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "checkpoint/json_text.h"
#include "checkpoint/manifest.h"
#include "core/error.h"
#include "core/file.h"

namespace switchyard::checkpoint {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

template <class T>
T whole_number(const ordered_json& object, const char* key, const fs::path& path) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_unsigned() || it->get<std::uint64_t>() > std::uint64_t(INT64_MAX)) {
    if constexpr (std::is_same_v<T, std::uint64_t>) {  // the seed may use all 64 bits
      if (it != object.end() && it->is_number_unsigned()) return it->get<T>();
    }
    throw_input("{}: \"{}\" is not a whole number; the checkpoint is damaged, use another one", path.string(),
                key);
  }
  return it->get<T>();
}

ordered_json read_run_json(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kRunJson;
  auto run = parse_ordered_json_text(read_text_file(path), path.string());
  if (!run.is_object() || !run.contains("config"))
    throw_input("{}: is not a run's state; the checkpoint is damaged, use another one", path.string());
  if (const auto version = whole_number<std::int64_t>(run, "format_version", path);
      version != kCheckpointFormat)
    throw_input("{}: format_version is {}, known is {}", path.string(), version, kCheckpointFormat);
  return run;
}

RunState run_state_of(const ordered_json& run, const fs::path& path) {
  RunState state;
  state.step = whole_number<std::int64_t>(run, "step", path);
  state.tokens = whole_number<std::int64_t>(run, "tokens", path);
  state.samples = whole_number<std::uint64_t>(run, "samples", path);
  state.seed = whole_number<std::uint64_t>(run, "seed", path);
  state.updates = run.contains("updates") ? whole_number<std::int64_t>(run, "updates", path) : state.step;
  const auto number = [](const ordered_json& object, const char* key) -> std::optional<double> {
    const auto it = object.find(key);
    return it != object.end() && it->is_number() ? std::optional(it->get<double>()) : std::nullopt;
  };
  state.train_seconds = number(run, "train_seconds").value_or(0);
  state.val_loss = number(run, "val_loss");
  if (!run.contains("spikes")) return state;
  const ordered_json& spikes = run["spikes"];
  const auto numbers = [&](const char* key) {
    std::vector<double> list;
    for (const ordered_json& value : spikes.value(key, ordered_json::array())) {
      if (!value.is_number())
        throw_input("{}: \"spikes.{}\" holds {}, not a number; the checkpoint is damaged, use another one",
                    path.string(), key, printable(value.dump()));
      list.push_back(value.get<double>());
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
  ordered_json text;
  text["format_version"] = kCheckpointFormat;
  text["step"] = state.step;
  text["tokens"] = state.tokens;
  text["samples"] = state.samples;
  text["seed"] = state.seed;
  text["updates"] = state.updates;
  text["train_seconds"] = state.train_seconds;
  text["val_loss"] = state.val_loss ? ordered_json(*state.val_loss) : ordered_json();
  text["spikes"] = {{"skipped", state.spikes.skipped},
                    {"skipped_in_row", state.spikes.skipped_in_row},
                    {"rollbacks", state.spikes.rollbacks},
                    {"losses", state.spikes.losses},
                    {"grad_norms", state.spikes.grad_norms}};
  if (!record.data.empty()) text["data"] = ordered_json::parse(record.data);
  text["config"] = ordered_json::parse(record.config_json);
  return text.dump(2) + "\n";
}

RunRecord read_run_record(const fs::path& checkpoint) {
  const ordered_json run = read_run_json(checkpoint);
  RunRecord record{run_state_of(run, checkpoint / kRunJson), run["config"].dump(2) + "\n", {}};
  if (run.contains("data")) record.data = run["data"].dump();
  return record;
}

RunState read_run_state(const fs::path& checkpoint) { return read_run_record(checkpoint).state; }

}  // namespace switchyard::checkpoint
