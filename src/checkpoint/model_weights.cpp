#include "checkpoint/model_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>
#include <unordered_map>
#include <utility>

#include "checkpoint/json_text.h"
#include "checkpoint/weight_names.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"

namespace switchyard::checkpoint {

namespace {

namespace fs = std::filesystem;

// Names, shortened to what a line can hold.
std::string list_names(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 8;
  const std::size_t shown = std::min(kShown, names.size());
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + std::ptrdiff_t(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

struct Found {
  const SafetensorsFile* file;
  const StoredTensor* tensor;
};

// What is wrong, one clause a kind.
class Problems {
 public:
  void add(const std::string& kind, std::vector<std::string> names) {
    if (names.empty()) return;
    std::sort(names.begin(), names.end());
    text_ += fmt::format("{}{} {}: {}", text_.empty() ? "" : "; ", names.size(), kind, list_names(names));
  }
  void stop_if_any(const std::string& where, std::string_view advice) const {
    if (!text_.empty())
      throw_input("{}: the tensors are not those of this model{}: {}; {}", where,
                  advice.starts_with("use a checkpoint") ? " and run" : "", text_, advice);
  }

 private:
  std::string text_;
};

std::string name_in(const SafetensorsFile& file, const std::string& name) {
  return fmt::format("{} ({})", printable(name), file.path().filename().string());
}

// A row, and what the file calls the tensor that it is read from where that is another name.
std::string row_and_source(const std::string& row, const StoredTensor& stored) {
  return row == stored.name ? row : fmt::format("{} of {}", row, printable(stored.name));
}

// Every tensor of the files by name; those that are in two of them go to `twice`.
std::unordered_map<std::string_view, Found> all_tensors(const std::vector<SafetensorsFile>& files,
                                                        std::vector<std::string>& twice) {
  std::unordered_map<std::string_view, Found> found;
  for (const SafetensorsFile& file : files) {
    for (const StoredTensor& tensor : file.tensors()) {
      const auto [it, fresh] = found.try_emplace(tensor.name, Found{&file, &tensor});
      if (!fresh)
        twice.push_back(fmt::format("{} ({} and {})", printable(tensor.name),
                                    it->second.file->path().filename().string(),
                                    file.path().filename().string()));
    }
  }
  return found;
}

bool same_shape(const StoredTensor& stored, const Shape& shape) {
  bool same = static_cast<int>(stored.shape.size()) == shape.rank();
  for (int i = 0; same && i < shape.rank(); ++i) same = stored.shape[static_cast<std::size_t>(i)] == shape[i];
  return same;
}

// The layer of "model.layers.N.…", or -1.
std::int64_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  std::int64_t layer = -1;
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return error == std::errc() && stop != name.data() + name.size() && *stop == '.' ? layer : -1;
}

// What transformers keeps beside its weights to rotate by, and old files hold.
bool is_rotary_buffer(std::string_view name) {
  constexpr std::string_view kOwner = "rotary_emb.";
  const std::size_t at = name.rfind(kOwner);
  if (at == std::string_view::npos) return false;
  const std::string_view buffer = name.substr(at + kOwner.size());
  return buffer == "inv_freq" || buffer == "original_inv_freq" || buffer == "cos_cached" ||
         buffer == "sin_cached";
}

std::string where_of(const fs::path& directory, const std::vector<SafetensorsFile>& files) {
  return files.size() == 1 ? files.front().path().string() : directory.string();
}

// Each name is in one file, in the one that the index, if there is one, says. It speaks of the tensors as the
// files have them.
void check_places(const std::vector<SafetensorsFile>& files, const std::map<std::string, std::string>& index,
                  Problems& problems) {
  std::vector<std::string> twice, absent, misplaced, unlisted;
  const auto found = all_tensors(files, twice);
  problems.add("there twice", std::move(twice));
  if (index.empty()) return;
  for (const auto& [name, file] : index) {
    const auto it = found.find(name);
    if (it == found.end()) {
      absent.push_back(fmt::format("{} ({})", printable(name), file));
    } else if (it->second.file->path().filename() != file) {
      misplaced.push_back(fmt::format("{} (in {}, not in {})", printable(name),
                                      it->second.file->path().filename().string(), file));
    }
  }
  for (const auto& [name, source] : found)
    if (!index.contains(std::string(name))) unlisted.push_back(name_in(*source.file, source.tensor->name));
  problems.add("of the index in no file", std::move(absent));
  problems.add("in another file than the index says", std::move(misplaced));
  problems.add("not in the index", std::move(unlisted));
}

}  // namespace

ModelWeights::ModelWeights(fs::path directory, const std::vector<std::string>& files, bool has_index)
    : directory_(std::move(directory)) {
  files_.reserve(files.size());
  for (const std::string& name : files) files_.emplace_back(directory_ / name);
  if (!has_index) return;
  const fs::path path = directory_ / kWeightsIndex;
  index_ = parse_weights_index(read_text_file(path), path.string());
  if (index_.empty()) throw_input("{}: its weight_map is empty; copy the model again", path.string());
}

bool ModelWeights::has_layer(std::int64_t layer) const {
  for (const SafetensorsFile& file : files_)
    for (const StoredTensor& tensor : file.tensors())
      if (layer_of(without_wrappers(tensor.name)) == layer) return true;
  return false;
}

std::vector<ModelTensor> ModelWeights::match(const config::Model& model,
                                             std::span<const Parameter> rows) const {
  Problems problems;
  check_places(files_, index_, problems);
  // Under the rows' names, whatever the files call them.
  const WeightNames names(model.family, rows);
  std::vector<ModelTensor> all;
  for (const SafetensorsFile& file : files_)
    for (const StoredTensor& stored : file.tensors())
      for (StoredRow& row : names.rows_of(stored)) all.push_back({std::move(row.tensor), &file, row.stored});
  std::unordered_map<std::string_view, std::size_t> found;
  std::set<std::string> clashes;  // one for two tensors, however many rows they share
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto [it, fresh] = found.try_emplace(all[i].tensor.name, i);
    const std::string &one = all[it->second].stored->name, &other = all[i].stored->name;
    if (!fresh && one != other) clashes.insert(fmt::format("{} and {}", printable(one), printable(other)));
  }

  std::vector<std::string> missing, misshapen, mistyped, extra;
  std::vector<ModelTensor> matched;
  std::int64_t last_layer = model.num_hidden_layers - 1;
  const StoredTensor* embedding = nullptr;
  for (const Parameter& row : rows) {
    last_layer = std::max(last_layer, layer_of(row.name));
    const auto it = found.find(row.name);
    if (it == found.end()) {
      missing.push_back(row.name);
      continue;
    }
    const ModelTensor& source = all[it->second];
    if (row.name == "model.embed_tokens.weight") embedding = &source.tensor;
    if (!is_weight(source.tensor.type)) {
      mistyped.push_back(
          fmt::format("{} ({})", row_and_source(row.name, *source.stored), name_of(source.tensor.type)));
    } else if (!same_shape(source.tensor, row.shape)) {
      misshapen.push_back(fmt::format("{} ({}, expected {})", row_and_source(row.name, *source.stored),
                                      source.tensor.shape_string(), row.shape.to_string()));
    }
    matched.push_back(source);
    found.erase(it);
  }

  std::int64_t buffers = 0, behind = 0;
  std::vector<std::string> no_weights;
  for (const auto& [name, i] : found) {
    const StoredTensor& stored = all[i].tensor;
    // transformers writes n_shared_experts 0 as a layer of width 0; nothing is in it that could be left unread.
    if (stored.bytes.empty()) continue;
    if (name == "lm_head.weight" && model.tie_word_embeddings && embedding != nullptr) {
      const bool equal = stored.type == embedding->type && stored.shape == embedding->shape &&
                         std::memcmp(stored.bytes.data(), embedding->bytes.data(), stored.bytes.size()) == 0;
      if (!equal) extra.push_back("lm_head.weight (differs from the embedding that config.json ties it to)");
    } else if (is_rotary_buffer(name)) {
      ++buffers;
    } else if (model.family == config::Family::deepseek_v3 && layer_of(name) > last_layer) {
      ++behind;
    } else if (is_whole_number(stored.type)) {
      no_weights.push_back(fmt::format("{} ({})", printable(all[i].stored->name), name_of(stored.type)));
    } else {
      extra.push_back(name_in(*all[i].file, all[i].stored->name));
    }
  }
  problems.add("missing", std::move(missing));
  problems.add("not known", std::move(extra));
  problems.add("of another shape", std::move(misshapen));
  problems.add("neither F32, BF16 nor F16", std::move(mistyped));
  problems.add("there under two names", {clashes.begin(), clashes.end()});
  problems.stop_if_any(where_of(directory_, files_), "use weights that belong to this config.json");
  if (buffers > 0)
    log_info(fmt::format("{}: {} rotary_emb.inv_freq passed over: computed from the configuration",
                         directory_.string(), buffers));
  if (behind > 0)
    log_info(
        fmt::format("{}: {} tensors of multi-token prediction layers (from {} on) passed over: the model "
                    "has no such layer",
                    directory_.string(), behind, last_layer + 1));
  if (!no_weights.empty())
    log_info(fmt::format("{}: {} tensors of whole numbers passed over, which no weight is: {}",
                         directory_.string(), no_weights.size(), list_names(no_weights)));
  return matched;
}

void ModelWeights::load(const config::Model& model, ParameterStore& store) const {
  const std::vector<ModelTensor> matched = match(model, store.rows());
  for (std::size_t i = 0; i < matched.size(); ++i) matched[i].file->read(matched[i].tensor, store.value(i));
}

void read_all(const std::vector<SafetensorsFile>& files, const std::vector<NamedTensor>& targets,
              const fs::path& where) {
  Problems problems;
  std::vector<std::string> twice, missing, extra;
  auto found = all_tensors(files, twice);
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
  for (const auto& [name, source] : found) extra.push_back(printable(name));
  problems.add("missing", std::move(missing));
  problems.add("not known", std::move(extra));
  problems.add("there twice", std::move(twice));
  problems.stop_if_any(where_of(where, files), "use a checkpoint of the same model");
  for (std::size_t i = 0; i < targets.size(); ++i) sources[i].file->read(*sources[i].tensor, targets[i].tensor);
}

}  // namespace switchyard::checkpoint
