#include "checkpoint/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <set>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "checkpoint/manifest.h"
#include "checkpoint/modeling_file.h"
#include "checkpoint/shared_writing.h"
#include "checkpoint/tokenizer_record.h"
#include "config/load.h"
#include "config/router_section.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/progress.h"
#include "parallel/agreement.h"
#include "router/router.h"

namespace switchyard::checkpoint {

namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kState = "state.safetensors";
constexpr const char* kLatest = "latest";
constexpr const char* kBest = "best";
constexpr const char* kTemporary = ".tmp_";  // being written, or a link about to be renamed
constexpr const char* kReplaced = ".old_";   // a checkpoint that another of the same step takes the place of

std::string step_name(std::int64_t step) { return fmt::format("step_{:06}", step); }

// Where the checkpoint of a step is written, until it is whole.
fs::path temporary_path(const fs::path& run_directory, std::int64_t step) {
  return checkpoints_directory(run_directory) / (kTemporary + step_name(step));
}

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

void remove_stale(const fs::path& checkpoints) {
  std::vector<fs::path> stale;
  std::error_code error;
  const fs::directory_iterator entries(checkpoints, error);
  if (error && error != std::errc::no_such_file_or_directory)
    throw_input("{}: cannot be read: {}", checkpoints.string(), error.message());
  for (const auto& entry : entries) {
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

constexpr std::pair<RowArray, const char*> kMoments[] = {{RowArray::moment1, ".exp_avg"},
                                                         {RowArray::moment2, ".exp_avg_sq"}};

TensorSpec spec_of(std::string name, DType dtype, const Shape& shape) {
  TensorSpec spec{.name = std::move(name), .type = stored_type(dtype), .shape = {}};
  for (int i = 0; i < shape.rank(); ++i) spec.shape.push_back(shape[i]);
  return spec;
}

std::vector<TensorSpec> weight_specs(const ParameterStore& store) {
  std::vector<TensorSpec> specs;
  for (const Parameter& row : store.rows())
    specs.push_back(spec_of(row.name, store.values().dtype(), row.shape));
  return specs;
}

// The moments of each trained row, one beside the other, then the extra tensors.
std::vector<TensorSpec> state_specs(const ParameterStore& store, std::span<const NamedTensor> extra) {
  std::vector<TensorSpec> specs;
  for (const Parameter& row : store.rows())
    for (const auto& [moment, suffix] : kMoments)
      if (row.trained) specs.push_back(spec_of(row.name + suffix, store.values().dtype(), row.shape));
  for (const auto& [name, tensor] : extra) specs.push_back(spec_of(name, tensor.dtype(), tensor.shape()));
  return specs;
}

// The index in state_specs of the first moment of each row; of rows that are not trained it says nothing.
std::vector<std::size_t> first_states(const ParameterStore& store) {
  std::vector<std::size_t> first_R;
  std::size_t next = 0;
  for (const Parameter& row : store.rows()) {
    first_R.push_back(next);
    if (row.trained) next += std::size(kMoments);
  }
  return first_R;
}

// The tensor files of a checkpoint: those of the weights, and behind them kState.
struct TensorFiles {
  TensorFiles(const ParameterStore& store, std::span<const NamedTensor> extra, std::int64_t max_shard_size)
      : weights(lay_out_weights(weight_specs(store), max_shard_size)),
        state(lay_out_file(kState, state_specs(store, extra))),
        files(weights.files) {
    for (TensorPlace& place : state.place_T) place.file = files.size();
    files.push_back(state.files[0]);
  }
  FilesLayout weights, state;
  std::vector<FileLayout> files;
};

// What this rank writes of them. The heads and the extra tensors, which all ranks have, are the first rank's.
std::vector<FilePiece> own_pieces(const TensorFiles& layout, const ParameterStore& store,
                                  std::span<const NamedTensor> extra, bool is_first) {
  std::vector<FilePiece> pieces;
  for (const RowPiece& piece : store.owned(RowArray::value))
    pieces.push_back(piece_of(layout.weights.place_T[piece.row], piece.first, piece.tensor_N));
  const std::vector<std::size_t> first_R = first_states(store);
  for (std::size_t moment = 0; moment < std::size(kMoments); ++moment)
    for (const RowPiece& piece : store.owned(kMoments[moment].first))
      pieces.push_back(
          piece_of(layout.state.place_T[first_R[piece.row] + moment], piece.first, piece.tensor_N));
  if (!is_first) return pieces;
  for (std::size_t file = 0; file < layout.files.size(); ++file)
    pieces.push_back({.file = file, .bytes = std::as_bytes(std::span(layout.files[file].head))});
  for (std::size_t i = 0; i < extra.size(); ++i)
    pieces.push_back(
        piece_of(layout.state.place_T[layout.state.place_T.size() - extra.size() + i], 0, extra[i].tensor));
  return pieces;
}

// RUN/checkpoints/`link` := a relative symlink to the checkpoint of `step`.
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

// Removes the checkpoint of `step`: a process killed meanwhile leaves a temporary, not half a checkpoint.
void remove_checkpoint(const fs::path& run_directory, std::int64_t step) {
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const fs::path doomed = checkpoints / (kReplaced + step_name(step));
  std::error_code error;
  fs::rename(checkpoints / step_name(step), doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error)
    throw_input("{}: cannot be removed: {}", (checkpoints / step_name(step)).string(), error.message());
}

// The step of the lowest number that `figure` has; of equal ones the newest.
template <class Figure>
std::optional<std::int64_t> lowest(const std::vector<RunState>& states, const Figure& figure) {
  std::optional<std::int64_t> step;
  double least = 0;
  for (const RunState& state : states) {
    const std::optional<double> value = figure(state);
    if (!value || (step && !(*value <= least))) continue;
    step = state.step;
    least = *value;
  }
  return step;
}

std::optional<double> train_loss(const RunState& state) {
  return state.spikes.losses.empty() ? std::nullopt : std::optional(recent_loss(state.spikes));
}

}  // namespace

std::vector<std::int64_t> checkpoint_steps(const fs::path& run_directory) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const fs::directory_iterator entries(checkpoints, error);
  // Where checkpoints are and cannot be seen a run would begin anew.
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
    throw_input("{}: cannot be read: {}", checkpoints.string(), error.message());
  for (const auto& entry : entries) {
    const auto step = step_of(entry.path().filename().string());
    if (step && entry.is_directory(error)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

fs::path checkpoints_directory(const fs::path& run_directory) { return run_directory / "checkpoints"; }

fs::path checkpoint_path(const fs::path& run_directory, std::int64_t step) {
  return checkpoints_directory(run_directory) / step_name(step);
}

namespace {

// What the first rank does of a save, for all of them.
class Saving {
 public:
  Saving(const fs::path& run_directory, const RunState& state, const config::Run& run, const std::string& data)
      : run_directory_(run_directory),
        checkpoints_(checkpoints_directory(run_directory)),
        step_(state.step),
        verify_(run.checkpoint.verify),
        texts_(tokenizer_files(run.data)) {
    config_ = with_text_tokens(config::state_router(config::model_to_hf_json(run.model), run.model, run.router,
                                                    router::router_schemas()),
                               record_of(texts_));
    for (auto& file : modeling_files(run.model, run.router)) texts_.push_back(std::move(file));
    run_ = run_record_json({state, run.resolved_json, data});
    std::error_code error;
    fs::create_directories(checkpoints_, error);
    if (error) throw_input("{}: cannot be created: {}", checkpoints_.string(), error.message());
    remove_stale(checkpoints_);
  }

  // Makes the temporary directory where there is room for the tensors.
  void begin(const TensorFiles& tensors) {
    // The manifest, the directory itself, blocks begun.
    const std::uint64_t slack = (64 << 10) + 200 * tensors.weights.place_T.size();
    require_free_space(checkpoints_,
                       tensors.weights.bytes() + tensors.state.bytes() + config_.size() + run_.size() + slack);
    temporary_.emplace(temporary_path(run_directory_, step_));
  }

  // All files but those of the tensors, whose figures these are; then the directory takes its name.
  fs::path finish(const TensorFiles& tensors, const std::vector<FileDigest>& digests) {
    const fs::path directory = temporary_->path();
    NamedDigests files;
    files.emplace_back(kConfig, write_text(directory / kConfig, config_));
    for (std::size_t i = 0; i < digests.size(); ++i) {
      if (i + 1 == digests.size() && !tensors.weights.index.empty())
        files.emplace_back(kWeightsIndex, write_text(directory / kWeightsIndex, tensors.weights.index));
      files.emplace_back(tensors.files[i].name, digests[i]);
    }
    files.emplace_back(kRunJson, write_text(directory / kRunJson, run_));
    for (const auto& [file, text] : texts_) files.emplace_back(file, write_text(directory / file, text));
    files.emplace_back(kManifest, write_text(directory / kManifest, manifest_json(files)));
    for (const auto& [file, digest] : files)
      if (verify_ && !is_of(tensors, file)) read_back(directory / file, digest);  // the tensors' have been
    sync_directory(directory);

    const fs::path target = checkpoint_path(run_directory_, step_);
    const fs::path replaced = checkpoints_ / (kReplaced + step_name(step_));
    put_in_place(directory, target, replaced);
    temporary_->keep();
    sync_directory(checkpoints_);
    point_link_to(run_directory_, kLatest, step_);
    sync_directory(checkpoints_);
    std::error_code error;
    fs::remove_all(replaced, error);
    if (error) throw_input("{}: cannot be removed: {}", replaced.string(), error.message());
    return target;
  }

 private:
  static bool is_of(const TensorFiles& tensors, const std::string& name) {
    return std::any_of(tensors.files.begin(), tensors.files.end(),
                       [&](const FileLayout& file) { return file.name == name; });
  }

  const fs::path run_directory_, checkpoints_;
  const std::int64_t step_;
  const bool verify_;
  NamedTexts texts_;
  std::string config_, run_;
  std::optional<TemporaryDirectory> temporary_;
};

}  // namespace

fs::path save_checkpoint(const fs::path& run_directory, const ParameterStore& store, const RunState& state,
                         const config::Run& run, std::span<const NamedTensor> extra_state,
                         const std::string& data, const parallel::Group& all) {
  SY_CHECK(store.training(), "only a training store has moments to save");
  SY_CHECK(state.step >= 0, "step {}", state.step);
  const TensorFiles tensors(store, extra_state, run.checkpoint.max_shard_size);
  std::optional<Saving> saving;
  parallel::by_first(all, [&] {
    saving.emplace(run_directory, state, run, data);
    saving->begin(tensors);
    return "";
  });
  const std::vector<FileDigest> digests =
      write_together(temporary_path(run_directory, state.step), tensors.files,
                     own_pieces(tensors, store, extra_state, all.place() == 0), run.checkpoint.writers,
                     run.checkpoint.verify, all);
  return parallel::by_first(all, [&] { return saving->finish(tensors, digests).string(); });
}

void prune_checkpoints(const fs::path& run_directory, const config::Checkpoint& options) {
  SY_CHECK(options.keep >= 0 && options.keep_every >= 0, "keep {}, keep_every {}", options.keep,
           options.keep_every);
  remove_stale(checkpoints_directory(run_directory));
  const std::vector<std::int64_t> steps = checkpoint_steps(run_directory);
  if (steps.empty()) return;
  std::vector<RunState> states;
  std::set<std::int64_t> stay;
  for (const std::int64_t step : steps) {
    try {
      states.push_back(read_run_state(checkpoint_path(run_directory, step)));
    } catch (const InputError& error) {
      // It may be the best one, and readable the next time.
      log_warning(fmt::format("{}: this checkpoint takes no part in the comparison of checkpoints, and stays",
                              error.what()));
      stay.insert(step);
    }
  }

  if (options.keep_best) {
    const auto best = lowest(states, [](const RunState& state) { return state.val_loss; });
    if (best) {
      point_link_to(run_directory, kBest, *best);
      stay.insert(*best);
    }
  }
  if (options.keep == 0) return;
  const auto n_newest = std::min(steps.size(), static_cast<std::size_t>(options.keep));
  stay.insert(steps.end() - static_cast<std::ptrdiff_t>(n_newest), steps.end());
  std::error_code error;
  const fs::path checkpoints = checkpoints_directory(run_directory);
  const std::string latest = fs::read_symlink(checkpoints / kLatest, error).filename().string();
  for (const std::int64_t step : steps) {
    if (checkpoint_path(run_directory, step).filename().string() == latest) stay.insert(step);
    if (options.keep_every > 0 && step % options.keep_every == 0) stay.insert(step);
  }
  const auto good = std::find_if(states.rbegin(), states.rend(),
                                 [](const RunState& state) { return state.spikes.skipped_in_row == 0; });
  if (good != states.rend()) stay.insert(good->step);
  if (const auto reached = lowest(states, train_loss)) {
    const auto of = [&](std::int64_t step) {
      return *train_loss(*std::find_if(states.begin(), states.end(),
                                       [&](const RunState& state) { return state.step == step; }));
    };
    const std::optional<double> newest = train_loss(states.back());
    if (newest && *newest > kFarAbove * of(*reached)) stay.insert(*reached);
  }
  for (const std::int64_t step : steps)
    if (!stay.contains(step)) remove_checkpoint(run_directory, step);
}

void move_later_checkpoints(const fs::path& run_directory, std::int64_t step, const fs::path& other) {
  std::vector<std::int64_t> later = checkpoint_steps(run_directory);
  std::erase_if(later, [step](std::int64_t each) { return each <= step; });
  const fs::path checkpoints = checkpoints_directory(run_directory), there = checkpoints_directory(other);
  remove_stale(checkpoints);
  std::error_code error;
  fs::create_directories(there, error);
  point_link_to(run_directory, kLatest, step);
  std::size_t moved = 0;
  const auto move_one = [&] {
    fs::rename(checkpoints / step_name(later[moved]), there / step_name(later[moved]), error);
  };
  while (!error && moved < later.size()) {
    move_one();
    if (moved == 0 && error == std::errc::cross_device_link) {
      // RUN/checkpoints is on a disk of its own: they stay there, and OTHER/checkpoints is a link.
      const fs::path kept = checkpoints / other.filename();
      fs::remove(there, error);
      if (!error) fs::create_directory(kept, error);
      if (!error) fs::create_directory_symlink(fs::canonical(kept), there, error);
      if (!error) move_one();
    }
    if (!error) ++moved;
  }
  if (error && moved == 0 && !later.empty()) point_link_to(run_directory, kLatest, later.back());
  if (!error && fs::is_symlink(checkpoints / kBest) && !fs::exists(checkpoints / kBest))
    fs::remove(checkpoints / kBest, error);
  if (error)
    throw_input(
        "{}: the checkpoints after step {} cannot be moved there: {}; go on in another directory with --out",
        there.string(), step, error.message());
  sync_directory(there);
  sync_directory(checkpoints);
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
  fs::path as_named = fs::absolute(path).lexically_normal();
  if (!as_named.has_filename()) as_named = as_named.parent_path();
  for (const fs::path& each :
       {as_named, fs::canonical(path)})  // RUN/checkpoints may be a link, or be linked to
    if (each.filename() == "checkpoints")
      if (auto latest = find_latest(each.parent_path())) return *latest;
  if (fs::exists(path / kWeightsFile, error) || fs::exists(path / kRunJson, error))
    throw_input("{}: is missing; the checkpoint is not whole, use another one", (path / kManifest).string());
  throw_input("{}: holds no checkpoint; give RUN/checkpoints/step_NNNNNN or a run directory that has one",
              path.string());
}

Checkpoint::Checkpoint(const fs::path& path)
    : Checkpoint(path, parallel::Group(*parallel::make_lone_transport(), {0})) {}

Checkpoint::Checkpoint(const fs::path& path, const parallel::Group& all)
    : path_(parallel::by_first(all, [&] { return resolve_checkpoint(path).string(); })) {
  const fs::path manifest = path_ / kManifest;
  const std::string manifest_text = parallel::by_first(all, [&] {
    if (!has_manifest(path_))
      throw_input("{}: is missing; the checkpoint is not whole, use another one", manifest.string());
    return read_text_file(manifest);
  });
  const std::vector<ManifestEntry> files = parse_manifest(manifest_text, manifest.string());
  verify_files(path_, files, all);
  total_bytes_ = manifest_text.size();
  for (const ManifestEntry& file : files) total_bytes_ += file.bytes;
  parallel::together(all, [&] { open(files); });
}

void Checkpoint::open(const std::vector<ManifestEntry>& files) {
  const auto require = [&](const char* name) {
    if (std::none_of(files.begin(), files.end(), [&](const ManifestEntry& file) { return file.name == name; }))
      throw_input("{}: is missing; the checkpoint is not whole, use another one", (path_ / name).string());
  };
  for (const char* name : {kConfig, kRunJson, kState}) require(name);
  std::vector<std::string> weights;
  bool has_index = false;
  for (const ManifestEntry& file : files) {
    const bool part = file.name.starts_with("model-") && file.name.ends_with(".safetensors");
    if (part || file.name == kWeightsFile) weights.push_back(file.name);
    if (file.name == kWeightsIndex) has_index = true;
  }
  if (weights.empty()) require(kWeightsFile);
  weights_.emplace(path_, weights, has_index);
  state_tensors_.emplace_back(path_ / kState);
  model_json_ = read_text_file(path_ / kConfig);
  run_ = read_run_record(path_);
}

config::Model Checkpoint::model() const { return config::parse_model(model_json_, (path_ / kConfig).string()); }

std::vector<ModelDifference> differences_of(const config::Model& here, const config::Model& there) {
  const Json a = sorted(parse_stored_json(config::model_to_hf_json(here), kConfig));
  const Json b = sorted(parse_stored_json(config::model_to_hf_json(there), kConfig));
  std::vector<ModelDifference> differences;
  const auto compare = [&](const std::string& key) {
    const auto text = [&key](const Json& side) {
      const Json* value = side.find(key);
      return value == nullptr ? "nothing" : to_line(*value);
    };
    if (text(a) != text(b)) differences.push_back({key, text(a), text(b)});
  };
  for (const JsonMember& member : a.object()) compare(member.key);
  for (const JsonMember& member : b.object())
    if (!a.contains(member.key)) compare(member.key);
  return differences;
}

std::vector<ModelDifference> differences_of(const config::Router& here, const config::Router& there) {
  const Json a = config::write_router(here), b = config::write_router(there);
  std::vector<ModelDifference> differences;
  for (const JsonMember& member : a.object())
    if (const Json* other = b.find(member.key); other != nullptr && *other != member.value)
      differences.push_back({member.key, to_line(member.value), to_line(*other)});
  return differences;
}

void Checkpoint::check_resumable(const config::Run& run) const {
  std::vector<std::string> differences;
  for (const ModelDifference& difference : differences_of(run.model, model()))
    differences.push_back(
        fmt::format("model.{} is {}, in the checkpoint {}", difference.key, difference.here, difference.there));
  if (run.train.seed != state().seed)
    differences.push_back(fmt::format("train.seed is {}, in the checkpoint {}", run.train.seed, state().seed));
  if (!differences.empty())
    throw_input("{}: cannot be resumed with this configuration: {}; use the checkpoint's or start a new run",
                path_.string(), fmt::join(differences, "; "));
}

void Checkpoint::load_weights(ParameterStore& store) const { weights_->load(model(), store); }

void Checkpoint::load_state(ParameterStore& store, std::span<const NamedTensor> extra_state) const {
  SY_CHECK(store.training(), "only a training store has moments to load");
  const SafetensorsFile& file = state_tensors_.front();
  const std::vector<const StoredTensor*> stored = match_all(file, state_specs(store, extra_state));
  const std::vector<std::size_t> first_R = first_states(store);
  std::int64_t number = 0;
  for (std::size_t moment = 0; moment < std::size(kMoments); ++moment)
    for (const RowPiece& piece : store.held(kMoments[moment].first)) {
      mark("reading of moments", number++);
      file.read(*stored[first_R[piece.row] + moment], piece.first, piece.tensor_N);
    }
  for (std::size_t i = 0; i < extra_state.size(); ++i)
    file.read(*stored[stored.size() - extra_state.size() + i], extra_state[i].tensor);
}

}  // namespace switchyard::checkpoint
