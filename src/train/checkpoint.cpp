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
#include "train/disk_space.h"
#include "train/tokenizer_record.h"

namespace switchyard::train {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr int kFormatVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kConfig = "config.json";
constexpr const char* kRun = "run.json";
constexpr const char* kWeights = "model.safetensors";
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

// The steps with a directory in checkpoints/, ascending.
std::vector<std::int64_t> steps_in(const fs::path& checkpoints) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoints, error)) {
    const auto step = step_of(entry.path().filename().string());
    if (step && entry.is_directory(error)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

bool has_manifest(const fs::path& checkpoint) {
  std::error_code error;
  return fs::is_regular_file(checkpoint / kManifest, error);
}

// ---- writing
// --------------------------------------------------------------------------------------------------

// Removes a directory when it goes out of scope, unless told that it is no longer a temporary.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(fs::path path) : path_(std::move(path)) {
    std::error_code error;
    fs::create_directory(path_, error);
    if (error) throw_input("{}: cannot be created: {}", path_.string(), error.message());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!kept_) fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const fs::path& path() const { return path_; }
  void keep() { kept_ = true; }

 private:
  fs::path path_;
  bool kept_ = false;
};

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

void point_latest_to(const fs::path& checkpoints, const std::string& name) {
  const fs::path link = checkpoints / (std::string(kTemporary) + kLatest);
  std::error_code error;
  fs::create_directory_symlink(name, link, error);
  if (!error) fs::rename(link, checkpoints / kLatest, error);
  if (error) {
    std::error_code ignored;
    fs::remove(link, ignored);
    throw_input("{}: cannot be pointed to {}: {}; the checkpoint itself is whole",
                (checkpoints / kLatest).string(), name, error.message());
  }
}

FileDigest write_text(const fs::path& path, const std::string& text) {
  OutputFile file(path);
  file.write(text);
  file.close();
  return {file.bytes_written(), file.crc()};
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

std::string run_json(const RunState& state, const config::Run& run) {
  ordered_json text;
  text["format_version"] = kFormatVersion;
  text["step"] = state.step;
  text["tokens"] = state.tokens;
  text["samples"] = state.samples;
  text["seed"] = state.seed;
  text["config"] = ordered_json::parse(run.resolved_json);
  return text.dump(2) + "\n";
}

std::string crc_text(std::uint32_t crc) { return fmt::format("{:08x}", crc); }

std::string manifest_json(const std::vector<std::pair<std::string, FileDigest>>& files) {
  ordered_json manifest;
  manifest["format_version"] = kFormatVersion;
  for (const auto& [name, digest] : files)
    manifest["files"][name] = {{"bytes", digest.bytes}, {"crc32", crc_text(digest.crc)}};
  return manifest.dump(2) + "\n";
}

// ---- reading
// --------------------------------------------------------------------------------------------------

template <class Json>
Json parse_file(const fs::path& path) {
  try {
    return Json::parse(read_text_file(path));
  } catch (const nlohmann::json::exception& error) {
    throw_input("{}: is not JSON: {}; the checkpoint is damaged, use another one", path.string(), error.what());
  }
}

struct VouchedFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string crc;
};

// A name of the manifest stands for a file beside it and nothing else.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name != kManifest;
}

std::vector<VouchedFile> read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kManifest;
  if (!has_manifest(checkpoint))
    throw_input("{}: is missing; the checkpoint is not whole, use another one", path.string());
  const auto manifest = parse_file<json>(path);
  const auto damaged = [&path](const std::string& what) {
    throw_input("{}: {}; the checkpoint is damaged or of another version, use another one", path.string(),
                what);
  };
  if (!manifest.is_object() || manifest.size() != 2 || !manifest.contains("format_version") ||
      !manifest.contains("files") || !manifest["files"].is_object())
    damaged("is not {format_version, files}");
  if (manifest["format_version"] != kFormatVersion)
    damaged(
        fmt::format("format_version is {}, known is {}", manifest["format_version"].dump(), kFormatVersion));
  std::vector<VouchedFile> files;
  for (const auto& [name, entry] : manifest["files"].items()) {
    if (!is_plain_name(name)) damaged(fmt::format("{} is not the name of a file", json(name).dump()));
    if (!entry.is_object() || entry.size() != 2 || !entry.contains("bytes") ||
        !entry["bytes"].is_number_unsigned() || !entry.contains("crc32") || !entry["crc32"].is_string())
      damaged(fmt::format("the entry of {} is not {{bytes, crc32}}", name));
    files.push_back({name, entry["bytes"].get<std::uint64_t>(), entry["crc32"].get<std::string>()});
  }
  return files;
}

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
    const MappedFile file(path);
    if (file.bytes().size() != expected.bytes)
      throw_input("{}: has {} bytes, {} says {}; the file was cut or changed, use another checkpoint",
                  path.string(), file.bytes().size(), kManifest, expected.bytes);
    if (const std::string crc = crc_text(crc32(file.bytes())); crc != expected.crc)
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

// Names, shortened to what a line can hold.
std::string list_names(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 8;
  const std::size_t shown = std::min(kShown, names.size());
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + std::ptrdiff_t(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

// Fills each target from the one file that has it.
void read_all(const std::vector<SafetensorsFile>& files, const std::vector<NamedTensor>& targets,
              const fs::path& checkpoint) {
  struct Found {
    const SafetensorsFile* file;
    const StoredTensor* tensor;
  };
  std::unordered_map<std::string_view, Found> found;
  for (const SafetensorsFile& file : files) {
    for (const StoredTensor& tensor : file.tensors()) {
      const auto [it, fresh] = found.try_emplace(tensor.name, Found{&file, &tensor});
      if (!fresh)
        throw_input("{}: tensor \"{}\" is also in {}; use another checkpoint", file.path().string(),
                    tensor.name, it->second.file->path().filename().string());
    }
  }
  std::vector<std::string> missing;
  std::vector<Found> sources;
  for (const NamedTensor& target : targets) {
    const auto it = found.find(target.name);
    if (it == found.end()) {
      missing.push_back(target.name);
    } else {
      sources.push_back(it->second);
      found.erase(it);
    }
  }
  if (!missing.empty() || !found.empty()) {
    std::vector<std::string> extra;
    for (const auto& [name, source] : found) extra.emplace_back(name);
    std::sort(extra.begin(), extra.end());
    std::string what;
    if (!missing.empty()) what += fmt::format("{} missing: {}", missing.size(), list_names(missing));
    if (!extra.empty())
      what += fmt::format("{}{} not known: {}", what.empty() ? "" : "; ", extra.size(), list_names(extra));
    throw_input("{}: the tensors are not those of this model and run: {}; use a checkpoint of the same model",
                files.size() == 1 ? files.front().path().string() : checkpoint.string(), what);
  }
  for (std::size_t i = 0; i < targets.size(); ++i) sources[i].file->read(*sources[i].tensor, targets[i].tensor);
}

}  // namespace

fs::path checkpoints_directory(const fs::path& run_directory) { return run_directory / "checkpoints"; }

fs::path checkpoint_path(const fs::path& run_directory, std::int64_t step) {
  return checkpoints_directory(run_directory) / step_name(step);
}

fs::path save_checkpoint(const fs::path& run_directory, const ParameterStore& store, const RunState& state,
                         const config::Run& run, std::span<const NamedTensor> extra_state) {
  SY_CHECK(store.training(), "only a training store has moments to save");
  SY_CHECK(state.step >= 0, "step {}", state.step);
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const std::string name = step_name(state.step);
  const fs::path target = checkpoints / name;
  std::error_code error;
  fs::create_directories(checkpoints, error);
  if (error) throw_input("{}: cannot be created: {}", checkpoints.string(), error.message());
  remove_stale(checkpoints);

  const auto weights = weight_tensors(store);
  const auto moments_and_more = state_tensors(store, extra_state);
  const std::string config_text = config::model_to_hf_json(run.model);
  const std::string run_text = run_json(state, run);
  constexpr std::uint64_t kSlack = 64 << 10;  // the manifest, the directory itself, blocks begun
  require_free_space(checkpoints, safetensors_bytes(weights) + safetensors_bytes(moments_and_more) +
                                      config_text.size() + run_text.size() + kSlack);

  TemporaryDirectory temporary(checkpoints / (kTemporary + name));
  std::vector<std::pair<std::string, FileDigest>> files;
  files.emplace_back(kConfig, write_text(temporary.path() / kConfig, config_text));
  files.emplace_back(kWeights, write_safetensors(temporary.path() / kWeights, weights));
  files.emplace_back(kState, write_safetensors(temporary.path() / kState, moments_and_more));
  files.emplace_back(kRun, write_text(temporary.path() / kRun, run_text));
  for (const auto& [file, text] : tokenizer_files(run.data))
    files.emplace_back(file, write_text(temporary.path() / file, text));
  write_text_file(temporary.path() / kManifest, manifest_json(files));
  sync_directory(temporary.path());

  const fs::path replaced = checkpoints / (kReplaced + name);
  put_in_place(temporary.path(), target, replaced);
  temporary.keep();
  sync_directory(checkpoints);
  point_latest_to(checkpoints, name);
  sync_directory(checkpoints);
  fs::remove_all(replaced, error);
  if (error) throw_input("{}: cannot be removed: {}", replaced.string(), error.message());
  return target;
}

void prune_checkpoints(const fs::path& run_directory, std::int64_t keep) {
  SY_CHECK(keep >= 0, "keep {}", keep);
  if (keep == 0) return;
  const fs::path checkpoints = checkpoints_directory(run_directory);
  std::error_code error;
  const std::string latest = fs::read_symlink(checkpoints / kLatest, error).filename().string();
  std::vector<std::int64_t> steps = steps_in(checkpoints);
  const auto excess = static_cast<std::int64_t>(steps.size()) - keep;
  for (std::int64_t i = 0; i < excess; ++i) {
    const std::string name = step_name(steps[static_cast<std::size_t>(i)]);
    if (name == latest) continue;
    // Renamed first: a process killed while it removes leaves a temporary, not half a checkpoint.
    const fs::path doomed = checkpoints / (kReplaced + name);
    fs::rename(checkpoints / name, doomed, error);
    if (!error) fs::remove_all(doomed, error);
    if (error) throw_input("{}: cannot be removed: {}", (checkpoints / name).string(), error.message());
  }
}

std::optional<fs::path> find_latest(const fs::path& run_directory) {
  const fs::path checkpoints = checkpoints_directory(run_directory);
  std::error_code error;
  const fs::path target = fs::read_symlink(checkpoints / kLatest, error);
  // A checkpoint that `latest` names and that has lost its manifest is for the reader to refuse, not to step
  // over.
  if (!error && fs::is_directory(checkpoints / target, error)) return checkpoints / target;
  const std::vector<std::int64_t> steps = steps_in(checkpoints);
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
  if (fs::exists(path / kWeights, error) || fs::exists(path / kRun, error))
    throw_input("{}: is missing; the checkpoint is not whole, use another one", (path / kManifest).string());
  throw_input("{}: holds no checkpoint; give RUN/checkpoints/step_NNNNNN or a run directory that has one",
              path.string());
}

Checkpoint::Checkpoint(const fs::path& path) : path_(resolve_checkpoint(path)) {
  const std::vector<VouchedFile> files = read_manifest(path_);
  total_bytes_ = verify(path_, files);
  const auto require = [&](const char* name) {
    if (std::none_of(files.begin(), files.end(), [&](const VouchedFile& file) { return file.name == name; }))
      throw_input("{}: is missing; the checkpoint is not whole, use another one", (path_ / name).string());
  };
  for (const char* name : {kConfig, kRun, kState}) require(name);
  for (const VouchedFile& file : files) {
    const bool part = file.name.starts_with("model-") && file.name.ends_with(".safetensors");
    if (part || file.name == kWeights) weights_.emplace_back(path_ / file.name);
  }
  if (weights_.empty()) require(kWeights);
  state_tensors_.emplace_back(path_ / kState);
  model_json_ = read_text_file(path_ / kConfig);

  const fs::path run_path = path_ / kRun;
  const auto run = parse_file<ordered_json>(run_path);
  if (!run.is_object() || !run.contains("config"))
    throw_input("{}: is not a run's state; the checkpoint is damaged, use another one", run_path.string());
  if (const auto version = whole_number<std::int64_t>(run, "format_version", run_path);
      version != kFormatVersion)
    throw_input("{}: format_version is {}, known is {}", run_path.string(), version, kFormatVersion);
  state_.step = whole_number<std::int64_t>(run, "step", run_path);
  state_.tokens = whole_number<std::int64_t>(run, "tokens", run_path);
  state_.samples = whole_number<std::uint64_t>(run, "samples", run_path);
  state_.seed = whole_number<std::uint64_t>(run, "seed", run_path);
  run_json_ = run["config"].dump(2) + "\n";
}

config::Model Checkpoint::model() const { return config::parse_model(model_json_, (path_ / kConfig).string()); }

void Checkpoint::check_resumable(const config::Run& run) const {
  // Both sides go through the same writer, so that a default that is spelt out makes no difference.
  const json here = json::parse(config::model_to_hf_json(run.model));
  const json there = json::parse(config::model_to_hf_json(model()));
  std::vector<std::string> differences;
  const auto compare = [&](const std::string& key) {
    const std::string a = here.contains(key) ? here[key].dump() : "nothing";
    const std::string b = there.contains(key) ? there[key].dump() : "nothing";
    if (a != b) differences.push_back(fmt::format("model.{} is {}, in the checkpoint {}", key, a, b));
  };
  for (const auto& item : here.items()) compare(item.key());
  for (const auto& item : there.items()) {
    if (!here.contains(item.key())) compare(item.key());
  }
  if (run.train.seed != state_.seed)
    differences.push_back(fmt::format("train.seed is {}, in the checkpoint {}", run.train.seed, state_.seed));
  if (!differences.empty())
    throw_input("{}: cannot be resumed with this configuration: {}; use the checkpoint's or start a new run",
                path_.string(), fmt::join(differences, "; "));
}

void Checkpoint::load_weights(ParameterStore& store) const { read_all(weights_, weight_tensors(store), path_); }

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

CheckpointInfo describe_checkpoint(const fs::path& path) {
  const Checkpoint checkpoint(path);
  CheckpointInfo info;
  info.path = checkpoint.path();
  info.state = checkpoint.state();
  info.model = checkpoint.model();
  info.model_json = checkpoint.model_json();
  info.run_config_json = checkpoint.run_config_json();
  info.total_bytes = checkpoint.total_bytes();
  const auto list = [&](const SafetensorsFile& file) {
    for (const StoredTensor& tensor : file.tensors())
      info.tensors.push_back(
          {file.path().filename().string(), tensor.name, name_of(tensor.type), tensor.shape});
  };
  for (const SafetensorsFile& file : checkpoint.weight_files()) {
    list(file);
    for (const StoredTensor& tensor : file.tensors())
      info.parameters += static_cast<std::int64_t>(tensor.bytes.size()) / size_of(tensor.type);
  }
  list(checkpoint.state_file());
  return info;
}

}  // namespace switchyard::train
