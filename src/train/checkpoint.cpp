#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "router/registry.h"
#include "train/disk_space.h"
#include "train/json_text.h"
#include "train/manifest.h"
#include "train/temporary_directory.h"
#include "train/tokenizer_record.h"
#include "train/weights_writer.h"

namespace switchyard::train {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kConfig = "config.json";
constexpr const char* kRun = "run.json";
constexpr const char* kState = "state.safetensors";
constexpr const char* kLatest = "latest";
constexpr const char* kTemporary = ".tmp_";  // being written, or a link about to be renamed
constexpr const char* kReplaced = ".old_";   // a checkpoint that another of the same step takes the place of

std::string step_name(std::int64_t step) { return fmt::format("step_{:06}", step); }

// The step of a name "step_NNNNNN", or no value.
std::optional<std::int64_t> step_of(const std::string& name) {
  constexpr std::string_view kPrefix = "step_";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || step < 0 || step_name(step) != name) return std::nullopt;
  return step;
}

bool has_manifest(const fs::path& checkpoint) {
  std::error_code error;
  return fs::is_regular_file(checkpoint / kManifest, error);
}

// ---- writing ----

void remove_stale(const fs::path& checkpoints) {
  std::vector<fs::path> stale;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoints, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kTemporary) || name.starts_with(kReplaced)) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) {
    fs::remove_all(path, error);
    if (error) throw_input("{}: left by a stopped save, cannot be removed: {}", path.string(), error.message());
  }
}

// Puts `temporary` where `target` is, in one step where the system can.
void put_in_place(const fs::path& temporary, const fs::path& target, const fs::path& replaced) {
  std::error_code error;
  if (!fs::exists(target, error)) {
    fs::rename(temporary, target, error);
  } else if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    fs::rename(temporary, replaced, error);  // now the earlier checkpoint
  } else if (errno == EINVAL || errno == ENOSYS) {
    // Not in one step: a process killed between the two renames leaves find_latest the checkpoint before this
    // one.
    fs::rename(target, replaced, error);
    if (!error) fs::rename(temporary, target, error);
    if (error) {
      std::error_code ignored;
      fs::rename(replaced, target, ignored);
    }
  } else {
    error.assign(errno, std::generic_category());
  }
  if (error) throw_input("{}: cannot be put in place: {}", target.string(), error.message());
}

std::vector<NamedTensor> weight_tensors(const ParameterStore& store) {
  std::vector<NamedTensor> tensors;
  for (std::size_t i = 0; i < store.rows().size(); ++i)
    tensors.push_back({store.rows()[i].name, store.value(i)});
  return tensors;
}

std::vector<NamedTensor> state_tensors(const ParameterStore& store, std::span<const NamedTensor> extra) {
  std::vector<NamedTensor> tensors;
  for (std::size_t i = 0; i < store.rows().size(); ++i) {
    if (!store.rows()[i].trained) continue;
    tensors.push_back({store.rows()[i].name + ".exp_avg", store.moment1(i)});
    tensors.push_back({store.rows()[i].name + ".exp_avg_sq", store.moment2(i)});
  }
  tensors.insert(tensors.end(), extra.begin(), extra.end());
  return tensors;
}

std::string run_json(const RunState& state, const config::Run& run, const std::string& data) {
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
  if (!data.empty()) text["data"] = ordered_json::parse(data);
  text["config"] = ordered_json::parse(run.resolved_json);
  return text.dump(2) + "\n";
}

// ---- reading ----

// Checks every file against the manifest, and that no other file is there. Returns the bytes of all of them.
std::uint64_t verify(const fs::path& checkpoint, const std::vector<VouchedFile>& files) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoint, error)) {
    const std::string name = entry.path().filename().string();
    const bool vouched =
        name == kManifest ||
        std::any_of(files.begin(), files.end(), [&](const VouchedFile& file) { return file.name == name; });
    if (!vouched)
      throw_input("{}: is not in {}; remove it or use another checkpoint", entry.path().string(), kManifest);
  }
  if (error) throw_input("{}: cannot be listed: {}", checkpoint.string(), error.message());

  std::uint64_t total = fs::file_size(checkpoint / kManifest, error);
  for (const VouchedFile& expected : files) {
    const fs::path path = checkpoint / expected.name;
    if (!fs::exists(path, error))
      throw_input("{}: is missing, though {} lists it; use another checkpoint", path.string(), kManifest);
    if (const std::uint64_t bytes = fs::file_size(path, error); bytes != expected.bytes)
      throw_input("{}: has {} bytes, {} says {}; the file was cut or changed, use another checkpoint",
                  path.string(), bytes, kManifest, expected.bytes);
    if (const std::string crc = crc_text(crc32_of_file(path)); crc != expected.crc)
      throw_input("{}: has CRC-32 {}, {} says {}; the file is damaged, use another checkpoint", path.string(),
                  crc, kManifest, expected.crc);
    total += expected.bytes;
  }
  return total;
}

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
  const fs::path path = checkpoint / kRun;
  auto run = parse_ordered_json_text(read_text_file(path), path.string());
  if (!run.is_object() || !run.contains("config"))
    throw_input("{}: is not a run's state; the checkpoint is damaged, use another one", path.string());
  if (const auto version = whole_number<std::int64_t>(run, "format_version", path);
      version != kCheckpointFormat)
    throw_input("{}: format_version is {}, known is {}", path.string(), version, kCheckpointFormat);
  return run;
}

// Keys that older checkpoints do not have begin anew.
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

std::vector<std::int64_t> checkpoint_steps(const fs::path& run_directory) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoints_directory(run_directory), error)) {
    const auto step = step_of(entry.path().filename().string());
    if (step && entry.is_directory(error)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void point_link_to(const fs::path& run_directory, const char* link, std::int64_t step) {
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const fs::path temporary = checkpoints / (std::string(kTemporary) + link);
  std::error_code error;
  fs::create_directory_symlink(step_name(step), temporary, error);
  if (!error) fs::rename(temporary, checkpoints / link, error);
  if (error) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw_input("{}: cannot be pointed to {}: {}; the checkpoint itself is whole",
                (checkpoints / link).string(), step_name(step), error.message());
  }
}

void remove_checkpoint(const fs::path& run_directory, std::int64_t step) {
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const fs::path doomed = checkpoints / (kReplaced + step_name(step));
  std::error_code error;
  fs::rename(checkpoints / step_name(step), doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error)
    throw_input("{}: cannot be removed: {}", (checkpoints / step_name(step)).string(), error.message());
}

RunState read_run_state(const fs::path& checkpoint) {
  return run_state_of(read_run_json(checkpoint), checkpoint / kRun);
}

fs::path checkpoints_directory(const fs::path& run_directory) { return run_directory / "checkpoints"; }

fs::path checkpoint_path(const fs::path& run_directory, std::int64_t step) {
  return checkpoints_directory(run_directory) / step_name(step);
}

fs::path save_checkpoint(const fs::path& run_directory, const ParameterStore& store, const RunState& state,
                         const config::Run& run, std::span<const NamedTensor> extra_state,
                         const std::string& data) {
  SY_CHECK(store.training(), "only a training store has moments to save");
  SY_CHECK(state.step >= 0, "step {}", state.step);
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const std::string name = step_name(state.step);
  const fs::path target = checkpoints / name;
  std::error_code error;
  fs::create_directories(checkpoints, error);
  if (error) throw_input("{}: cannot be created: {}", checkpoints.string(), error.message());
  remove_stale(checkpoints);

  const auto weights = as_written(weight_tensors(store));
  const auto moments_and_more = as_written(state_tensors(store, extra_state));
  const auto text_files = tokenizer_files(run.data);
  const std::string config_text =
      with_text_tokens(config::state_router(config::model_to_hf_json(run.model), run.model, run.router,
                                            router::router_schemas()),
                       record_of(text_files));
  const std::string run_text = run_json(state, run, data);
  // The manifest, the directory itself, blocks begun, the index of weights in several files.
  const std::uint64_t slack = (64 << 10) + 200 * weights.size();
  require_free_space(checkpoints, safetensors_bytes(weights) + safetensors_bytes(moments_and_more) +
                                      config_text.size() + run_text.size() + slack);

  TemporaryDirectory temporary(checkpoints / (kTemporary + name));
  std::vector<std::pair<std::string, FileDigest>> files;
  files.emplace_back(kConfig, write_text(temporary.path() / kConfig, config_text));
  for (auto& file : write_weights(temporary.path(), weights, run.checkpoint.max_shard_size))
    files.push_back(std::move(file));
  files.emplace_back(kState, write_safetensors(temporary.path() / kState, moments_and_more));
  files.emplace_back(kRun, write_text(temporary.path() / kRun, run_text));
  for (const auto& [file, text] : text_files)
    files.emplace_back(file, write_text(temporary.path() / file, text));
  write_text_file(temporary.path() / kManifest, manifest_json(files));
  sync_directory(temporary.path());

  const fs::path replaced = checkpoints / (kReplaced + name);
  put_in_place(temporary.path(), target, replaced);
  temporary.keep();
  sync_directory(checkpoints);
  point_link_to(run_directory, kLatest, state.step);
  sync_directory(checkpoints);
  fs::remove_all(replaced, error);
  if (error) throw_input("{}: cannot be removed: {}", replaced.string(), error.message());
  return target;
}

std::optional<fs::path> find_latest(const fs::path& run_directory) {
  const fs::path checkpoints = checkpoints_directory(run_directory);
  std::error_code error;
  const fs::path target = fs::read_symlink(checkpoints / kLatest, error);
  // A checkpoint that `latest` names and that has lost its manifest is for the reader to refuse, not to step
  // over.
  if (!error && fs::is_directory(checkpoints / target, error)) return checkpoints / target;
  const std::vector<std::int64_t> steps = checkpoint_steps(run_directory);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (fs::path path = checkpoint_path(run_directory, *step); has_manifest(path)) return path;
  }
  return std::nullopt;
}

fs::path resolve_checkpoint(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error))
    throw_input("{}: is not a directory; give a checkpoint (RUN/checkpoints/step_NNNNNN) or a run directory",
                path.string());
  if (has_manifest(path)) return fs::is_symlink(path, error) ? fs::canonical(path) : path;
  if (auto latest = find_latest(path)) return *latest;
  const fs::path absolute = fs::canonical(path);
  if (absolute.filename() == "checkpoints") {
    if (auto latest = find_latest(absolute.parent_path())) return *latest;
  }
  if (fs::exists(path / kWeightsFile, error) || fs::exists(path / kRun, error))
    throw_input("{}: is missing; the checkpoint is not whole, use another one", (path / kManifest).string());
  throw_input("{}: holds no checkpoint; give RUN/checkpoints/step_NNNNNN or a run directory that has one",
              path.string());
}

Checkpoint::Checkpoint(const fs::path& path) : path_(resolve_checkpoint(path)) {
  if (!has_manifest(path_))
    throw_input("{}: is missing; the checkpoint is not whole, use another one", (path_ / kManifest).string());
  const std::vector<VouchedFile> files =
      parse_manifest(read_text_file(path_ / kManifest), (path_ / kManifest).string());
  total_bytes_ = verify(path_, files);
  const auto require = [&](const char* name) {
    if (std::none_of(files.begin(), files.end(), [&](const VouchedFile& file) { return file.name == name; }))
      throw_input("{}: is missing; the checkpoint is not whole, use another one", (path_ / name).string());
  };
  for (const char* name : {kConfig, kRun, kState}) require(name);
  std::vector<std::string> weights;
  bool has_index = false;
  for (const VouchedFile& file : files) {
    const bool part = file.name.starts_with("model-") && file.name.ends_with(".safetensors");
    if (part || file.name == kWeightsFile) weights.push_back(file.name);
    if (file.name == kWeightsIndex) has_index = true;
  }
  if (weights.empty()) require(kWeightsFile);
  weights_.emplace(path_, weights, has_index);
  state_tensors_.emplace_back(path_ / kState);
  model_json_ = read_text_file(path_ / kConfig);

  const ordered_json run = read_run_json(path_);
  state_ = run_state_of(run, path_ / kRun);
  run_json_ = run["config"].dump(2) + "\n";
  if (run.contains("data")) data_ = run["data"].dump();
}

config::Model Checkpoint::model() const { return config::parse_model(model_json_, (path_ / kConfig).string()); }

std::vector<ModelDifference> differences_of(const config::Model& here, const config::Model& there) {
  const json a = json::parse(config::model_to_hf_json(here));
  const json b = json::parse(config::model_to_hf_json(there));
  std::vector<ModelDifference> differences;
  const auto compare = [&](const std::string& key) {
    const auto text = [&key](const json& side) { return side.contains(key) ? side[key].dump() : "nothing"; };
    if (text(a) != text(b)) differences.push_back({key, text(a), text(b)});
  };
  for (const auto& item : a.items()) compare(item.key());
  for (const auto& item : b.items()) {
    if (!a.contains(item.key())) compare(item.key());
  }
  return differences;
}

void Checkpoint::check_resumable(const config::Run& run) const {
  std::vector<std::string> differences;
  for (const ModelDifference& difference : differences_of(run.model, model()))
    differences.push_back(
        fmt::format("model.{} is {}, in the checkpoint {}", difference.key, difference.here, difference.there));
  if (run.train.seed != state_.seed)
    differences.push_back(fmt::format("train.seed is {}, in the checkpoint {}", run.train.seed, state_.seed));
  if (!differences.empty())
    throw_input("{}: cannot be resumed with this configuration: {}; use the checkpoint's or start a new run",
                path_.string(), fmt::join(differences, "; "));
}

void Checkpoint::load_weights(ParameterStore& store) const { weights_->load(model(), store); }

void Checkpoint::load_state(ParameterStore& store, std::span<const NamedTensor> extra_state) const {
  SY_CHECK(store.training(), "only a training store has moments to load");
  read_all(state_tensors_, state_tensors(store, extra_state), path_);
}

RunState load_checkpoint(const fs::path& path, const config::Run& run, ParameterStore& store,
                         std::span<const NamedTensor> extra_state) {
  const Checkpoint checkpoint(path);
  checkpoint.check_resumable(run);
  checkpoint.load_weights(store);
  checkpoint.load_state(store, extra_state);
  return checkpoint.state();
}

}  // namespace switchyard::train
