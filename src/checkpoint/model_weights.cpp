#include "checkpoint/model_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "checkpoint/weight_names.h"
#include "config/layouts.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/progress.h"
#include "model/names.h"

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

// What can be wrong with a tensor, in the order in which it is told.
enum class Mismatch {
  in_two_files,
  in_no_file,
  in_other_file,
  not_in_index,
  missing,
  unknown,
  shape,
  type,
  two_names,
};
constexpr const char* kMismatches[] = {"there twice",
                                       "of the index in no file",
                                       "in another file than the index says",
                                       "not in the index",
                                       "missing",
                                       "not known",
                                       "of another shape",
                                       "neither F32, BF16 nor F16",
                                       "there under two names"};

// The tensors with which something is wrong.
class Problems {
 public:
  void add(Mismatch kind, std::string name) {
    names_[static_cast<std::size_t>(kind)].push_back(std::move(name));
  }
  // Throws InputError with one clause a kind.
  void stop_if_any(const std::string& where, std::string_view advice) {
    std::string text;
    for (std::size_t kind = 0; kind < std::size(kMismatches); ++kind) {
      std::vector<std::string>& names = names_[kind];
      if (names.empty()) continue;
      std::sort(names.begin(), names.end());
      text += fmt::format("{}{} {}: {}", text.empty() ? "" : "; ", names.size(), kMismatches[kind],
                          list_names(names));
    }
    if (!text.empty())
      throw_input("{}: the tensors are not those of this model{}: {}; {}", where,
                  advice.starts_with("use a checkpoint") ? " and run" : "", text, advice);
  }

 private:
  std::vector<std::string> names_[std::size(kMismatches)];
};

std::string name_in(const SafetensorsFile& file, const std::string& name) {
  return fmt::format("{} ({})", printable(name), file.path().filename().string());
}

// A row, and what the file calls the tensor that it is read from where that is another name.
std::string row_and_source(const std::string& row, const StoredTensor& stored) {
  return row == stored.name ? row : fmt::format("{} of {}", row, printable(stored.name));
}

// Every tensor of the files by name.
std::unordered_map<std::string_view, Found> all_tensors(const std::vector<SafetensorsFile>& files,
                                                        Problems& problems) {
  std::unordered_map<std::string_view, Found> found;
  for (const SafetensorsFile& file : files) {
    for (const StoredTensor& tensor : file.tensors()) {
      const auto [it, fresh] = found.try_emplace(tensor.name, Found{&file, &tensor});
      if (!fresh)
        problems.add(Mismatch::in_two_files,
                     fmt::format("{} ({} and {})", printable(tensor.name),
                                 it->second.file->path().filename().string(), file.path().filename().string()));
    }
  }
  return found;
}

bool same_shape(const StoredTensor& stored, const Shape& shape) {
  bool same = static_cast<int>(stored.shape.size()) == shape.rank();
  for (int i = 0; same && i < shape.rank(); ++i) same = stored.shape[static_cast<std::size_t>(i)] == shape[i];
  return same;
}

// Of a router's row the name without the layer's prefix ("expert_keys"); none: the row is no router's.
std::optional<std::string> name_in_router(const config::Layout& layout, const std::string& row) {
  const std::int64_t layer = layer_of(row);
  if (layer < 0) return std::nullopt;
  const std::string prefix = model::router_prefix(layout, layer);
  if (!row.starts_with(prefix)) return std::nullopt;
  return row.substr(prefix.size());
}

void add_once(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
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
  const auto found = all_tensors(files, problems);
  if (index.empty()) return;
  for (const auto& [name, file] : index) {
    const auto it = found.find(name);
    if (it == found.end()) {
      problems.add(Mismatch::in_no_file, fmt::format("{} ({})", printable(name), file));
    } else if (it->second.file->path().filename() != file) {
      problems.add(Mismatch::in_other_file, fmt::format("{} (in {}, not in {})", printable(name),
                                                        it->second.file->path().filename().string(), file));
    }
  }
  for (const auto& [name, source] : found)
    if (!index.contains(std::string(name)))
      problems.add(Mismatch::not_in_index, name_in(*source.file, source.tensor->name));
}

// The tensors of the files under the names of the rows, whatever the files call them, until a row takes them.
class Candidates {
 public:
  Candidates(const std::vector<SafetensorsFile>& files, const WeightNames& names, Problems& problems) {
    for (const SafetensorsFile& file : files)
      for (const StoredTensor& stored : file.tensors())
        for (StoredRow& row : names.rows_of(stored))
          tensors_.push_back({std::move(row.tensor), &file, row.stored});
    std::set<std::string> clashes;  // one for two tensors, however many rows they share
    for (const ModelTensor& tensor : tensors_) {
      const auto [it, fresh] = left_.try_emplace(tensor.tensor.name, &tensor);
      const std::string &one = it->second->stored->name, &other = tensor.stored->name;
      if (!fresh && one != other) clashes.insert(fmt::format("{} and {}", printable(one), printable(other)));
    }
    for (const std::string& clash : clashes) problems.add(Mismatch::two_names, clash);
  }

  const ModelTensor* take(const std::string& row) {  // null: there is none
    const auto it = left_.find(row);
    if (it == left_.end()) return nullptr;
    const ModelTensor* const taken = it->second;
    left_.erase(it);
    return taken;
  }
  const std::unordered_map<std::string_view, const ModelTensor*>& left() const { return left_; }

 private:
  std::vector<ModelTensor> tensors_;
  std::unordered_map<std::string_view, const ModelTensor*> left_;
};

void check_row(const Parameter& row, const ModelTensor& source, Problems& problems) {
  const std::string name = row_and_source(row.name, *source.stored);
  if (!is_weight(source.tensor.type)) {
    problems.add(Mismatch::type, fmt::format("{} ({})", name, name_of(source.tensor.type)));
  } else if (!same_shape(source.tensor, row.shape)) {
    problems.add(Mismatch::shape, fmt::format("{} ({}, expected {})", name, source.tensor.shape_string(),
                                              row.shape.to_string()));
  }
}

// What no row asks for and is no error.
struct PassedOver {
  std::int64_t buffers = 0;  // of rotary embeddings
  std::int64_t behind = 0;   // tensors of layers behind `last_layer`
  std::int64_t last_layer = 0;
  std::vector<std::string> whole_numbers;

  void tell(const fs::path& directory) const {
    if (buffers > 0)
      log_info(fmt::format("{}: {} rotary_emb.inv_freq passed over: computed from the configuration",
                           directory.string(), buffers));
    if (behind > 0)
      log_info(
          fmt::format("{}: {} tensors of multi-token prediction layers (from {} on) passed over: the model "
                      "has no such layer",
                      directory.string(), behind, last_layer + 1));
    if (!whole_numbers.empty())
      log_info(fmt::format("{}: {} tensors of whole numbers passed over, which no weight is: {}",
                           directory.string(), whole_numbers.size(), list_names(whole_numbers)));
  }
};

bool same_content(const StoredTensor& a, const StoredTensor& b) {
  return a.type == b.type && a.shape == b.shape &&
         std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

// A tensor that no row took: passed over, or a problem. `embedding`: null where the files have none.
void sort_out(const ModelTensor& left, const config::Model& model, const StoredTensor* embedding,
              PassedOver& passed, Problems& problems) {
  const StoredTensor& tensor = left.tensor;
  // transformers writes n_shared_experts 0 as a layer of width 0; nothing is in it that could be left unread.
  if (tensor.bytes.empty()) return;
  if (tensor.name == "lm_head.weight" && model.tie_word_embeddings && embedding != nullptr) {
    if (!same_content(tensor, *embedding))
      problems.add(Mismatch::unknown,
                   "lm_head.weight (differs from the embedding that config.json ties it to)");
  } else if (is_rotary_buffer(tensor.name)) {
    ++passed.buffers;
  } else if (model.layout->has_key("num_nextn_predict_layers") && layer_of(tensor.name) > passed.last_layer) {
    ++passed.behind;
  } else if (is_whole_number(tensor.type)) {
    passed.whole_numbers.push_back(fmt::format("{} ({})", printable(left.stored->name), name_of(tensor.type)));
  } else {
    problems.add(Mismatch::unknown, name_in(*left.file, left.stored->name));
  }
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
  const WeightNames names(*model.layout, rows);
  Candidates candidates(files_, names, problems);

  std::vector<ModelTensor> matched;
  PassedOver passed{.last_layer = model.num_hidden_layers - 1, .whole_numbers = {}};
  const StoredTensor* embedding = nullptr;
  for (const Parameter& row : rows) {
    passed.last_layer = std::max(passed.last_layer, layer_of(row.name));
    const ModelTensor* const source = candidates.take(row.name);
    if (source == nullptr) {
      problems.add(Mismatch::missing, row.name);
      continue;
    }
    check_row(row, *source, problems);
    matched.push_back(*source);
    if (row.name == "model.embed_tokens.weight") embedding = &source->tensor;
  }
  for (const auto& [name, left] : candidates.left()) sort_out(*left, model, embedding, passed, problems);
  problems.stop_if_any(where_of(directory_, files_), "use weights that belong to this config.json");
  passed.tell(directory_);
  return matched;
}

void ModelWeights::read(std::span<const ModelTensor* const> source_R, ParameterStore& store) {
  std::int64_t number = 0;
  for (const RowPiece& piece : store.held(RowArray::value)) {
    const ModelTensor* const source = source_R[piece.row];
    if (source == nullptr) continue;
    mark("reading of weights", number++);
    source->file->read(source->tensor, piece.first, piece.tensor_N);
  }
}

void ModelWeights::load(const config::Model& model, ParameterStore& store) const {
  const std::vector<ModelTensor> matched = match(model, store.rows());
  std::vector<const ModelTensor*> source_R;
  for (const ModelTensor& tensor : matched) source_R.push_back(&tensor);
  read(source_R, store);
}

RouterChange ModelWeights::load(const config::Model& model, std::span<const Parameter> rows, std::uint64_t seed,
                                const std::function<void(const RouterChange&)>& agree,
                                ParameterStore& store) const {
  const std::vector<ModelTensor> matched = match(model, rows);
  std::unordered_map<std::string_view, std::size_t> left;  // of `rows`, until the store has taken them
  for (std::size_t row = 0; row < rows.size(); ++row) left.emplace(rows[row].name, row);

  RouterChange change;
  std::vector<const ModelTensor*> source_R(store.rows().size(), nullptr);
  for (std::size_t row = 0; row < store.rows().size(); ++row) {
    const Parameter& here = store.rows()[row];
    const auto found = left.find(here.name);
    const bool same = found != left.end() && rows[found->second].shape == here.shape &&
                      rows[found->second].meaning == here.meaning;
    if (same) {
      source_R[row] = &matched[found->second];
      left.erase(found);
    }
    if (const auto name = name_in_router(*model.layout, here.name))
      add_once(same ? change.kept : change.anew, *name);
    else
      SY_CHECK(same, "{} is no row of a router, and another one in the files", here.name);
  }
  for (const Parameter& there : rows) {
    if (!left.contains(there.name)) continue;
    const auto name = name_in_router(*model.layout, there.name);
    SY_CHECK(name.has_value(), "{} is no row of a router, and none of the model", there.name);
    add_once(change.left, *name);
  }
  agree(change);
  for (std::size_t row = 0; row < source_R.size(); ++row)
    if (source_R[row] == nullptr) store.initialise(seed, row);
  read(source_R, store);
  return change;
}

std::vector<const StoredTensor*> match_all(const SafetensorsFile& file, std::span<const TensorSpec> specs) {
  Problems problems;
  std::unordered_map<std::string_view, const StoredTensor*> left;
  for (const StoredTensor& tensor : file.tensors()) left.emplace(tensor.name, &tensor);
  std::vector<const StoredTensor*> matched;
  for (const TensorSpec& spec : specs) {
    const auto it = left.find(spec.name);
    if (it == left.end()) {
      problems.add(Mismatch::missing, spec.name);
      continue;
    }
    const StoredTensor& tensor = *it->second;
    if (tensor.shape != spec.shape)
      problems.add(Mismatch::shape, fmt::format("{} ({}, expected [{}])", spec.name, tensor.shape_string(),
                                                fmt::join(spec.shape, ", ")));
    matched.push_back(&tensor);
    left.erase(it);
  }
  for (const auto& [name, tensor] : left) problems.add(Mismatch::unknown, printable(name));
  problems.stop_if_any(file.path().string(), "use a checkpoint of the same model");
  return matched;
}

}  // namespace switchyard::checkpoint
