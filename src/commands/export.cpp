// A checkpoint or a model directory -> a Hugging Face model directory, tensor by tensor from file to file.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>

#include "checkpoint/model_directory.h"
#include "checkpoint/modeling_file.h"
#include "checkpoint/tokenizer_record.h"
#include "checkpoint/weights_files.h"
#include "commands/commands.h"
#include "commands/options.h"
#include "config/byte_size.h"
#include "config/layouts.h"
#include "config/load.h"
#include "config/names.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "model/transformer.h"
#include "router/router.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;
using checkpoint::StoredType;

struct Options {
  std::string source;  // a checkpoint, a run directory or a Hugging Face model directory
  std::string out;
  std::string dtype;  // empty: as the source has it; float32, bfloat16, float16
  std::string max_shard_size = "5GB";
  bool as_layout = false;  // the layout's config.json, whatever the router is
};

void describe(CLI::App& app, Options& options) {
  app.add_option("SOURCE", options.source, "A checkpoint, a run directory or a Hugging Face model directory")
      ->required();
  app.add_option("--out", options.out, "The directory to make; it must not be there yet")
      ->type_name("DIR")
      ->required();
  app.add_option("--dtype", options.dtype, "float32, bfloat16 or float16 (default: as the source has it)")
      ->type_name("DTYPE")
      ->transform(type_name({"float32", "bfloat16", "float16"}));
  app.add_option("--max-shard-size", options.max_shard_size,
                 "Bytes of weights in one file: 5GB, 512MiB, 1000000")
      ->type_name("SIZE")
      ->capture_default_str();
  app.add_flag("--as-layout", options.as_layout,
               "Write the layout's config.json though the router is not the layout's own; transformers then "
               "computes another model");
  app.footer(
      "Writes config.json and *.safetensors for transformers' from_pretrained, and the tokenizer's files. A "
      "model whose router transformers does not compute brings the code for it, modeling_switchyard.py, which "
      "from_pretrained runs with trust_remote_code=True, and refuses to open the model without.\n"
      "Examples:\n"
      "  switchyard export runs/quickstart --out exported --dtype bfloat16");
}

// What belongs to a model beside its weights.
constexpr const char* kCompanions[] = {"tokenizer.json",
                                       "tokenizer_config.json",
                                       "tokenizer.model",
                                       "vocab.json",
                                       "merges.txt",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "chat_template.jinja",
                                       "generation_config.json"};

std::optional<StoredType> parse_dtype(const std::string& name) {
  if (name.empty()) return std::nullopt;
  if (name == "float32") return StoredType::f32;
  if (name == "bfloat16") return StoredType::bf16;
  if (name == "float16") return StoredType::f16;
  throw_input("--dtype {}: is not known; known: float32, bfloat16, float16", name);
}

const char* torch_dtype_of(StoredType type) {
  return type == StoredType::bf16 ? "bfloat16" : type == StoredType::f16 ? "float16" : "float32";
}

// The router's bias is float32 in transformers whatever the model's dtype is, and no narrower type has all
// numbers of experts.
StoredType type_of(const checkpoint::StoredTensor& tensor, const std::optional<StoredType>& wanted) {
  if (!wanted) return tensor.type;
  const bool wide = tensor.name.ends_with(".e_score_correction_bias") || tensor.name.ends_with(".gate.tid2eid");
  return wide ? StoredType::f32 : *wanted;
}

std::vector<checkpoint::WrittenTensor> tensors_to_write(const checkpoint::ModelDirectory& source,
                                                        std::span<const Parameter> rows,
                                                        const std::optional<StoredType>& dtype) {
  std::vector<checkpoint::WrittenTensor> tensors;
  for (checkpoint::ModelTensor& row : source.weights().match(source.model(), rows)) {
    const StoredType type = type_of(row.tensor, dtype);
    tensors.push_back({std::move(row.tensor), type, row.file});
  }
  return tensors;
}

// The source's own config.json with the router and the dtype of what is written.
std::string config_for(const checkpoint::ModelDirectory& source, const config::RoutedModel& written,
                       StoredType dtype, const std::optional<checkpoint::TokenizerRecord>& record) {
  const std::string stated = checkpoint::with_text_tokens(
      config::state_router(source.config_json(), written.model, written.router, router::router_schemas()),
      record);
  Json config = parse_stored_json(stated, (source.path() / "config.json").string());
  // The code that an auto_map names is copied where it is this program's own alone.
  const bool has_code = !checkpoint::modeling_files(written.model, written.router).empty();
  std::erase_if(config.object(), [&](const JsonMember& member) {
    return member.key == "dtype" || (member.key == "auto_map" && !has_code);
  });
  config["torch_dtype"] = torch_dtype_of(dtype);
  return to_text(config);
}

// Beside the source; of a checkpoint also in its run directory. What a run's tokenizer is, its record says.
void write_companions(const checkpoint::ModelDirectory& source,
                      const std::optional<checkpoint::TokenizerRecord>& record, const fs::path& to) {
  std::vector<fs::path> places = {source.path()};
  if (source.checkpoint()) places.push_back(fs::canonical(source.path()).parent_path().parent_path());
  for (const char* name : kCompanions) {
    for (const fs::path& place : places) {
      if (!fs::is_regular_file(place / name)) continue;
      std::error_code error;
      fs::copy_file(place / name, to / name, error);
      if (error) throw_input("{}: cannot be copied: {}", (place / name).string(), error.message());
      break;
    }
  }
  if (!record) return;
  const fs::path tokenizer = source.path() / checkpoint::kTokenizer;
  const bool own = fs::exists(tokenizer);
  if (!own && record->tokenizer != "bytes") return;
  for (const auto& [name, text] :
       checkpoint::text_files(*record, own ? read_text_file(tokenizer) : "",
                              source.model().max_position_embeddings, tokenizer.string()))
    if (name == checkpoint::kTokenizer || !fs::exists(to / name)) checkpoint::write_text(to / name, text);
}

// Names of `rows` that `others` has not, shortened to their number and the first.
std::string names_beyond(std::span<const Parameter> rows, std::span<const Parameter> others) {
  std::set<std::string_view> there;
  for (const Parameter& row : others) there.insert(row.name);
  std::vector<std::string> names;
  for (const Parameter& row : rows)
    if (!there.contains(row.name)) names.push_back(row.name);
  if (names.empty()) return "";
  return names.size() == 1 ? names[0] : fmt::format("{} and {} more", names[0], names.size() - 1);
}

// Says what transformers makes of an export whose router is not the layout's own. Returns the model and router
// that its config.json states.
config::RoutedModel stated_for(const checkpoint::ModelDirectory& source, const model::Transformer& model,
                               bool as_layout) {
  const config::Router router = source.router();
  const auto beyond = config::beyond_layout(router, source.model(), router::router_schemas());
  const std::string layout_name(source.model().layout->name);
  if (beyond.empty()) {
    if (as_layout) log_info("--as-layout has no effect: the router is the layout's own");
    return {source.model(), router};
  }
  const std::string why = fmt::format("{}", fmt::join(beyond, "; "));
  if (!as_layout) {
    log_info(fmt::format(
        "transformers does not have this model's router ({}): {} computes it, by from_pretrained(..., "
        "trust_remote_code=True), which is refused without; --as-layout writes {} all the same",
        why, config::kModelingFile, layout_name));
    return {source.model(), router};
  }
  const config::Router own = config::default_router(*source.model().layout, router::router_schemas());
  const model::Transformer layout(source.model(), own, DType::f32, false);
  const std::string random = names_beyond(layout.parameters().rows(), model.parameters().rows());
  const std::string ignored = names_beyond(model.parameters().rows(), layout.parameters().rows());
  log_warning(fmt::format("--as-layout: transformers will compute another model than was trained ({}){}{}", why,
                          random.empty() ? "" : "; it begins at random, for want of a tensor: " + random,
                          ignored.empty() ? "" : "; it ignores: " + ignored));
  return {config::with_weights_of_layout(source.model()), own};
}

// Where config.json states the layout's own router, what its router keeps for training alone (the momentum of a
// bias) is no tensor of the layout, and nobody who reads the export would know it.
void leave_out_training_state(std::vector<checkpoint::WrittenTensor>& tensors,
                              const checkpoint::ModelDirectory& source, const config::RoutedModel& stated) {
  if (!config::beyond_layout(stated.router, stated.model, router::router_schemas()).empty() ||
      !config::beyond_layout(source.router(), source.model(), router::router_schemas()).empty())
    return;
  const model::Transformer layout(
      stated.model, config::default_router(*stated.model.layout, router::router_schemas()), DType::f32, false);
  std::set<std::string_view> known;
  for (const Parameter& row : layout.parameters().rows()) known.insert(row.name);
  std::vector<std::string> left;
  std::erase_if(tensors, [&](const checkpoint::WrittenTensor& tensor) {
    if (known.contains(tensor.from.name)) return false;
    left.push_back(tensor.from.name);
    return true;
  });
  if (!left.empty())
    log_info(fmt::format("left out, since training alone reads it: {}{}", left[0],
                         left.size() == 1 ? "" : fmt::format(" and {} more", left.size() - 1)));
}

int run(const Options& options) {
  const auto dtype = parse_dtype(options.dtype);
  const auto max_shard_size = config::parse_byte_size(options.max_shard_size);
  if (!max_shard_size)
    throw_input("--max-shard-size {}: expected bytes: a number, or a text such as 5GB or 512MiB",
                options.max_shard_size);
  fs::path out = fs::absolute(options.out).lexically_normal();
  if (!out.has_filename()) out = out.parent_path();
  if (fs::exists(fs::symlink_status(out)))
    throw_input("{}: is already there; choose another --out or remove it", out.string());

  const checkpoint::ModelDirectory source(options.source);
  const model::Transformer model(source.model(), source.router(), DType::f32, false);
  const config::RoutedModel stated = stated_for(source, model, options.as_layout);
  const auto record = checkpoint::tokenizer_record_in(source.path());
  auto tensors = tensors_to_write(source, model.parameters().rows(), dtype);
  leave_out_training_state(tensors, source, stated);
  const auto embedding = std::find_if(
      tensors.begin(), tensors.end(),
      [](const checkpoint::WrittenTensor& tensor) { return tensor.from.name == "model.embed_tokens.weight"; });
  SY_CHECK(embedding != tensors.end(), "a model without an embedding");

  std::error_code error;
  fs::create_directories(out.parent_path(), error);
  if (error) throw_input("{}: cannot be created: {}", out.parent_path().string(), error.message());
  constexpr std::uint64_t kSlack = 1 << 20;  // headers, config.json, the index
  require_free_space(out.parent_path(), checkpoint::safetensors_bytes(tensors) + kSlack);
  TemporaryDirectory temporary(out.parent_path() / (".tmp_" + out.filename().string()));
  checkpoint::write_text(temporary.path() / "config.json", config_for(source, stated, embedding->type, record));
  const auto files = checkpoint::write_weights(temporary.path(), tensors, *max_shard_size);
  write_companions(source, record, temporary.path());
  for (const auto& [name, text] : checkpoint::modeling_files(stated.model, stated.router))
    checkpoint::write_text(temporary.path() / name, text);
  sync_directory(temporary.path());
  fs::rename(temporary.path(), out, error);
  if (error) throw_input("{}: cannot be put in place: {}", out.string(), error.message());
  temporary.keep();
  sync_directory(out.parent_path());
  log_info(fmt::format("{}: {} tensors as {}, in {} file{}", out.string(), tensors.size(),
                       torch_dtype_of(embedding->type), std::max<std::size_t>(1, files.size() - 1),
                       files.size() > 2 ? "s" : ""));
  return 0;
}

}  // namespace

const Command kExport = {"export", "Write a checkpoint or a model as a Hugging Face model directory",
                         with_options<Options, describe, run>};

}  // namespace switchyard::commands
