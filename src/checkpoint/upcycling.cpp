#include "checkpoint/upcycling.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/model_directory.h"
#include "checkpoint/weight_names.h"
#include "config/layouts.h"
#include "config/load.h"
#include "core/device_memory.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"
#include "model/names.h"
#include "parallel/agreement.h"

namespace switchyard::checkpoint {

namespace {

namespace fs = std::filesystem;

// Of model_type's layers, these are dense models of the layout's attention.
struct DenseKind {
  std::string_view model_type;
  const config::Layout* layout;
};
constexpr DenseKind kDenseKinds[] = {
    {"llama", &config::kMixtral}, {"mistral", &config::kMixtral}, {"qwen3", &config::kQwen3Moe}};

// What a dense model's config.json says of all that stays as it is. Layouts know some of them.
constexpr std::string_view kKept[] = {"hidden_size",         "num_hidden_layers", "num_attention_heads",
                                      "num_key_value_heads", "head_dim",          "vocab_size",
                                      "rms_norm_eps",        "rope_theta",        "rope_scaling",
                                      "rope_parameters",     "rope_interleave",   "attention_bias",
                                      "tie_word_embeddings", "hidden_act",        "q_lora_rank",
                                      "kv_lora_rank",        "qk_nope_head_dim",  "qk_rope_head_dim",
                                      "v_head_dim",          "sliding_window",    "use_sliding_window",
                                      "max_window_layers",   "clip_qkv"};
// Of which layouts have other defaults: the dense model must state them.
constexpr std::string_view kStated[] = {"hidden_size", "num_attention_heads", "num_key_value_heads",
                                        "rms_norm_eps"};

struct DenseDirectory {
  fs::path path;
  std::string config_json;
  std::optional<ModelDirectory> of_run;
  std::optional<ModelWeights> of_hugging_face;

  std::string config_path() const { return (path / "config.json").string(); }
  const ModelWeights& weights() const { return of_run ? of_run->weights() : *of_hugging_face; }
};

DenseDirectory open_dense(const fs::path& path, const parallel::Group& all) {
  DenseDirectory dense{
      .path = path, .config_json = {}, .of_run = std::nullopt, .of_hugging_face = std::nullopt};
  const bool published =
      parallel::by_first(all, [&] { return std::string(is_hugging_face(path) ? "yes" : "no"); }) == "yes";
  if (published) {
    parallel::together(all, [&] {
      dense.config_json = read_text_file(path / "config.json");
      dense.of_hugging_face.emplace(open_weights(path, dense.config_json));
    });
  } else {
    dense.of_run.emplace(path, all);
    dense.path = dense.of_run->path();
    dense.config_json = dense.of_run->config_json();
  }
  return dense;
}

// Throws where the directory is no dense model that can become one of this layout.
void check_kind(const DenseDirectory& dense, const Json& json, const config::Layout& layout) {
  const Json& found = json["model_type"];
  const std::string type = found.is_string() ? found.text() : "";
  const bool of_layout = type == layout.name;
  const bool of_kind = std::any_of(std::begin(kDenseKinds), std::end(kDenseKinds), [&](const DenseKind& kind) {
    return kind.model_type == type && kind.layout == &layout;
  });
  if (of_layout || type == fmt::format("switchyard_{}", layout.name)) {
    if (config::has_moe_layer(config::parse_model(dense.config_json, dense.config_path())))
      throw_input("{}: is a mixture already; begin with its weights by --init-from", dense.config_path());
    return;
  }
  if (of_kind) return;
  std::string known;
  for (const DenseKind& kind : kDenseKinds)
    if (kind.layout == &layout) known += fmt::format(", {}", kind.model_type);
  throw_input("{}: model_type: is {}, which does not become a {}; dense models that do: {}{}",
              dense.config_path(), printable(to_line(found)), layout.name, layout.name, known);
}

// The model with what the dense model says of attention, embeddings and norms in place of its own.
// How experts are weighed is no matter of a dense model.
void check_kept(const DenseDirectory& dense, const Json& json, const config::Model& mixture) {
  const config::Model model = config::with_weights_of_layout(mixture);
  for (const std::string_view key : kStated)
    if (json[key].is_null())
      throw_input("{}: {}: missing; state what the weights were trained with", dense.config_path(), key);
  if (json["rope_theta"].is_null() && json["rope_parameters"]["rope_theta"].is_null())
    throw_input("{}: rope_theta: missing; state what the weights were trained with", dense.config_path());
  Json::Object as_mixture;
  const Json of_model = parse_json(config::model_to_hf_json(model), "the model");
  const auto is_kept = [&](std::string_view key) {
    return std::find(std::begin(kKept), std::end(kKept), key) != std::end(kKept);
  };
  for (const JsonMember& member : of_model.object())
    if (!is_kept(member.key)) as_mixture.push_back(member);
  for (const JsonMember& member : json.object())
    if (is_kept(member.key) && model.layout->has_key(member.key)) as_mixture.push_back(member);
  const config::Model found = config::parse_model(to_text(Json(std::move(as_mixture))), dense.config_path());
  std::vector<std::string> differences;
  for (const ModelDifference& difference : differences_of(model, found))
    differences.push_back(
        fmt::format("model.{} is {}, there {}", difference.key, difference.here, difference.there));
  if (!differences.empty())
    throw_input("{}: cannot become this mixture: {}; give the configuration the dense model's",
                dense.config_path(), fmt::join(differences, "; "));
}

std::int64_t width_of(const DenseDirectory& dense, const Json& json) {
  const Json& found = json["intermediate_size"];
  if (!found.is_integer() || found.integer() < 1 || found.integer() > config::kMaxSize)
    throw_input("{}: intermediate_size: is {}, expected the width of the dense network", dense.config_path(),
                printable(to_line(found)));
  return found.integer();
}

// How the dense network's neurons are shared out.
struct Slices {
  std::int64_t width = 0;         // F
  std::int64_t shared = 0;        // S
  std::int64_t expert_width = 0;  // F'
  std::int64_t n = 1;
  float down_scale = 1;
};

Slices slices_of(const DenseDirectory& dense, std::int64_t width, const config::Model& model) {
  Slices slices{.width = width,
                .shared = model.n_shared_experts * model.moe_intermediate_size,
                .expert_width = model.moe_intermediate_size};
  const std::int64_t routed = width - slices.shared;
  if (routed <= 0 || routed % slices.expert_width != 0)
    throw_input(
        "{}: intermediate_size is {}, of which shared experts take {}; experts of width {} do not divide the "
        "rest: change the model's expert width or its shared experts",
        dense.config_path(), width, slices.shared, slices.expert_width);
  slices.n = routed / slices.expert_width;
  if (model.num_experts % slices.n != 0)
    throw_input(
        "{}: intermediate_size is {}, {} slices of {} for {} experts, which would have some of them more often "
        "than others; the number of experts must be a multiple of {}",
        dense.config_path(), width, slices.n, slices.expert_width, model.num_experts, slices.n);
  const double weights = model.norm_topk_prob ? 1
                                              : static_cast<double>(model.num_experts_per_tok) /
                                                    static_cast<double>(model.num_experts);
  slices.down_scale =
      static_cast<float>(static_cast<double>(slices.n) / (weights * model.routed_scaling_factor));
  return slices;
}

std::string description_of(const Slices& slices, const config::Model& model) {
  if (slices.n == 1 && slices.shared == 0)
    return fmt::format("{} experts a layer, each a copy of the dense network", model.num_experts);
  const std::string shared =
      slices.shared == 0
          ? ""
          : fmt::format(", shared experts have the first {} of its {} neurons", slices.shared, slices.width);
  return fmt::format(
      "{} experts a layer, {} of each of {} slices of {} neurons of the dense network, down projections times "
      "{:g}{}",
      model.num_experts, model.num_experts / slices.n, slices.n, slices.expert_width, slices.down_scale,
      shared);
}

enum class Part { gate, up, down };
constexpr const char* kPartNames[] = {"gate_proj", "up_proj", "down_proj"};

std::string dense_name(std::int64_t layer, Part part) {
  return fmt::format("{}mlp.{}.weight", model::layer_prefix(layer), kPartNames[static_cast<std::size_t>(part)]);
}

// What a row of the mixture is made of.
struct Source {
  std::string name;  // of the dense model; empty: it begins anew, as a router or multi-token prediction does
  // A part of the dense network: which, its first neuron, how many, and what they are multiplied by.
  std::optional<Part> part = std::nullopt;
  std::int64_t first = 0, count = 0;
  float scale = 1;
};

class Plan {
 public:
  Plan(const config::Model& model, const Slices& slices) : model_(model), slices_(slices) {}

  Source source_of(const Parameter& row) const {
    const std::int64_t layer = layer_of(row.name);
    if (layer < 0) return plain(row);
    if (layer >= model_.num_hidden_layers) return {};
    const std::string prefix = model::moe_prefix(*model_.layout, layer);
    if (!model_.layers[static_cast<std::size_t>(layer)].moe || !row.name.starts_with(prefix)) return plain(row);
    const std::string_view rest = std::string_view(row.name).substr(prefix.size());
    if (row.name.starts_with(model::router_prefix(*model_.layout, layer))) return {};
    if (rest.starts_with("shared_experts.")) {
      for (const Part part : {Part::gate, Part::up, Part::down})
        if (rest == fmt::format("shared_experts.{}.weight", kPartNames[static_cast<std::size_t>(part)]))
          return of_network(layer, part, 0, slices_.shared, 1);
    } else {
      const model::ExpertNames names = model::expert_names(*model_.layout, layer, row.expert);
      const std::int64_t first = slices_.shared + row.expert % slices_.n * slices_.expert_width;
      if (row.name == names.gate) return of_network(layer, Part::gate, first, slices_.expert_width, 1);
      if (row.name == names.up) return of_network(layer, Part::up, first, slices_.expert_width, 1);
      if (row.name == names.down)
        return of_network(layer, Part::down, first, slices_.expert_width, slices_.down_scale);
    }
    SY_CHECK(false, "{} is no part of a mixture that is known here", row.name);
  }

  // The rows of the dense model.
  std::vector<Parameter> dense_rows(std::span<const Parameter> rows) const {
    std::vector<Parameter> dense;
    for (const Parameter& row : rows)
      if (const Source source = source_of(row); !source.name.empty() && !source.part) dense.push_back(row);
    for (std::int64_t l = 0; l < model_.num_hidden_layers; ++l) {
      if (!model_.layers[static_cast<std::size_t>(l)].moe) continue;
      for (const Part part : {Part::gate, Part::up, Part::down}) {
        Parameter row;
        row.name = dense_name(l, part);
        row.shape = part == Part::down ? Shape{model_.hidden_size, slices_.width}
                                       : Shape{slices_.width, model_.hidden_size};
        dense.push_back(row);
      }
    }
    return dense;
  }

 private:
  static Source plain(const Parameter& row) { return {.name = row.name}; }
  static Source of_network(std::int64_t layer, Part part, std::int64_t first, std::int64_t count, float scale) {
    return {.name = dense_name(layer, part), .part = part, .first = first, .count = count, .scale = scale};
  }

  const config::Model& model_;
  const Slices& slices_;
};

// Reads parts of the dense network's tensors.
class Reader {
 public:
  // Elements [begin, begin + N) of a row.
  void read(const Source& source, const ModelTensor& from, std::int64_t begin, Tensor piece_N) {
    const HostCopy host(piece_N);
    if (source.part != Part::down) {
      // Neurons are rows, which lie one behind the other.
      from.file->read(from.tensor, source.first * from.tensor.shape[1] + begin, host.tensor());
    } else if (piece_N.dtype() == DType::f64) {
      read_columns<double>(source, from, begin, host.tensor());
    } else {
      read_columns<float>(source, from, begin, host.tensor());
    }
    host.write_back();
  }

 private:
  // Neurons are columns: the tensor is read once for all experts, which come one after the other.
  template <class T>
  void read_columns(const Source& source, const ModelTensor& from, std::int64_t begin, Tensor to_N) {
    if (from.stored != whole_of_) {
      const Shape shape{from.tensor.shape[0], from.tensor.shape[1]};
      memory_ = allocate_aligned(shape.numel() * size_of(to_N.dtype()), "a projection of the dense network");
      whole_DF_ = Tensor(memory_.get(), shape, to_N.dtype());
      from.file->read(from.tensor, whole_DF_);
      whole_of_ = from.stored;
    }
    const T* const whole_DF = whole_DF_.as<T>();
    const std::int64_t width = whole_DF_.dim(1);
    T* const to = to_N.as<T>();
    for (std::int64_t i = 0; i < to_N.numel(); ++i) {
      const std::int64_t row = (begin + i) / source.count, column = (begin + i) % source.count;
      to[i] = static_cast<T>(source.scale) * whole_DF[row * width + source.first + column];
    }
  }

  AlignedBuffer memory_;
  Tensor whole_DF_;
  const StoredTensor* whole_of_ = nullptr;
};

// Experts of one set of slices, which are neighbours, get the first one's row of a linear gate, so that a token
// that goes to one of them goes to all.
void group_gates(const config::Model& model, std::int64_t n, const ParameterStore& store) {
  for (std::int64_t l = 0; l < model.num_hidden_layers; ++l) {
    const std::string name = model::router_prefix(*model.layout, l) + "weight";
    for (std::size_t row = 0; row < store.rows().size(); ++row) {
      if (store.rows()[row].name != name) continue;
      const HostCopy gate_ED(store.value(row));
      for (std::int64_t e = 0; e < model.num_experts; ++e)
        if (e % n != 0) copy(gate_ED->slice(e, 1), gate_ED->slice(e - e % n, 1));
      gate_ED.write_back();
    }
  }
}

}  // namespace

Upcycled upcycle(const fs::path& path, const config::Model& model, ParameterStore& store,
                 const parallel::Group& all) {
  if (!config::has_moe_layer(model))
    throw_input("{}: the model has no layer of experts that it could become; use --init-from", path.string());
  const DenseDirectory dense = open_dense(path, all);
  const Json json = parse_stored_json(dense.config_json, dense.config_path());
  check_kind(dense, json, *model.layout);
  check_kept(dense, json, model);
  const Slices slices = slices_of(dense, width_of(dense, json), model);
  const Plan plan(model, slices);

  const std::vector<Parameter> rows = plan.dense_rows(store.rows());
  const std::vector<ModelTensor> matched = dense.weights().match(model, rows);
  std::map<std::string_view, const ModelTensor*> tensors;
  for (std::size_t i = 0; i < rows.size(); ++i) tensors.emplace(rows[i].name, &matched[i]);

  Reader reader;
  std::int64_t number = 0;
  for (const RowPiece& piece : store.held(RowArray::value)) {
    mark("reading of weights", number++);
    const Source source = plan.source_of(store.rows()[piece.row]);
    if (source.name.empty()) continue;
    const ModelTensor& from = *tensors.at(source.name);
    if (source.part)
      reader.read(source, from, piece.first, piece.tensor_N);
    else
      from.file->read(from.tensor, piece.first, piece.tensor_N);
  }
  if (slices.n > 1) group_gates(model, slices.n, store);
  return {dense.path, slices.n, description_of(slices, model)};
}

}  // namespace switchyard::checkpoint
