// Where the weights of a model come from: a checkpoint of a run, or a Hugging Face model directory (config.json
// and *.safetensors, with or without model.safetensors.index.json).
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/model_weights.h"
#include "config/config.h"
#include "core/context.h"
#include "core/parameters.h"
#include "parallel/group.h"

namespace switchyard::model {
class Transformer;
}

namespace switchyard::checkpoint {

// True for a directory with the config.json of a model alone and nothing of a run around it: a checkpoint that
// lost its manifest is not one.
bool is_hugging_face(const std::filesystem::path& path);

// The weights of a Hugging Face directory, whose config.json is given. Throws InputError: quantised weights;
// files that the index does not name or that are not there.
ModelWeights open_weights(const std::filesystem::path& directory, const std::string& config_json);

class ModelDirectory {
 public:
  // A checkpoint as Checkpoint takes it (verified), else a Hugging Face directory. Throws InputError: neither;
  // quantised weights; files that the index does not name or that are not there.
  explicit ModelDirectory(const std::filesystem::path& path);
  // The same by all ranks of a run.
  ModelDirectory(const std::filesystem::path& path, const parallel::Group& all);

  const std::filesystem::path& path() const { return path_; }
  const std::optional<Checkpoint>& checkpoint() const { return checkpoint_; }  // none: of Hugging Face
  // Hugging Face's keys; states the router where it is not the layout's own (config::state_router).
  const std::string& config_json() const { return config_json_; }
  const config::Model& model() const { return model_; }
  const ModelWeights& weights() const;
  // The configuration of the run that wrote the checkpoint; none: of Hugging Face.
  const std::optional<config::Run>& run() const { return run_; }
  config::Router router() const;  // the run's, or what config.json states, or that of the model's layout
  // Throws InputError, listing every key with both values, where `model` computes something else than the
  // directory's. What only says how weights begin, how long sequences may be, whether there is multi-token
  // prediction or how many experts a token has may differ.
  void check_model(const config::Model& model) const;
  // Fills the store of such a model, whose router may be another than the directory's. Of the router's rows
  // those of one name, shape and meaning are taken; what the files lack begins anew, by `seed`; what the router
  // has no place for is left. All of that is said in one line. With `strict` it is an InputError where anything
  // begins anew or is left, or the router computes something else; it lists all of that, and what `strict` says
  // of other differences. Everything else must be there, and nothing besides.
  void load_weights(const config::Model& model, const config::Router& router, std::uint64_t seed,
                    const std::optional<std::vector<std::string>>& strict, ParameterStore& store) const;

 private:
  void open_hugging_face();

  std::filesystem::path path_;
  std::optional<Checkpoint> checkpoint_;
  std::optional<config::Run> run_;       // of a checkpoint
  std::optional<ModelWeights> weights_;  // of Hugging Face
  std::string config_json_;
  config::Model model_;
};

// How a command wants the model of a directory.
struct ModelOptions {
  // What to compute in: "float32", "bfloat16"; empty: on a CUDA device what the run trained in, else float32.
  std::string dtype;
  std::optional<config::Router> router = std::nullopt;  // in place of the directory's
  std::optional<config::Model> model = std::nullopt;    // the same, of check_model()
  bool training = false;                                // with gradients and what a backward pass needs
};

// The main model of a directory with its weights, where `ctx` computes; without layers of multi-token
// prediction, which are for training. Sets ctx.matmul to what the model computes in. Its activations are not
// planned yet. What another router lacks begins as with seed 1. Throws InputError where the weights are not
// this model's.
std::unique_ptr<model::Transformer> open_model(const ModelDirectory& directory, const ModelOptions& options,
                                               Context& ctx);

}  // namespace switchyard::checkpoint
