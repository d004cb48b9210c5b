// The weights of a model as files hold them: one or many safetensors files, with or without an index.
//
// Every tensor is accounted for. What is missing, too many, of another shape or dtype, in two files, or
// elsewhere than the index says is one InputError that lists it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_layout.h"
#include "checkpoint/safetensors.h"
#include "config/config.h"
#include "core/parameters.h"

namespace switchyard::checkpoint {

// A tensor under the name of the row that it belongs to: one of a file, or a part of one that holds several
// rows.
struct ModelTensor {
  StoredTensor tensor;
  const SafetensorsFile* file = nullptr;
  const StoredTensor* stored = nullptr;  // as the file has it
};

// What becomes of the rows of routers where a model's router is another than that of its files. Names without
// the layer's prefix, each once for all layers, in the order of the rows.
struct RouterChange {
  std::vector<std::string> kept;  // taken from the files
  std::vector<std::string> anew;  // the files have none of that name, shape and meaning: initial values
  std::vector<std::string> left;  // the files', for which the model has no place
};

class ModelWeights {
 public:
  // Opens `files` of `directory`; has_index: kWeightsIndex is there and is checked against them.
  ModelWeights(std::filesystem::path directory, const std::vector<std::string>& files, bool has_index);

  const std::vector<SafetensorsFile>& files() const { return files_; }

  // The tensor of every row, in the order of the rows, under whichever of its names the files have it
  // (weight_names.h). Not asked for and passed over: an lm_head.weight that equals the embedding it is tied to
  // bit for bit; inv_freq buffers of old files; layers behind the last one (DeepSeek-V3's multi-token
  // prediction) where the rows have none; and tensors of whole numbers, which no weight is. All but the first
  // are said, in one line each.
  std::vector<ModelTensor> match(const config::Model& model, std::span<const Parameter> rows) const;
  // True where any tensor belongs to this layer.
  bool has_layer(std::int64_t layer) const;
  // Fills the store's values (f32 or f64), those that this rank holds, from F32, BF16 or F16.
  void load(const config::Model& model, ParameterStore& store) const;
  // The same where the store's routers are others than those that the files are of. `rows`: of the model with
  // the files' routers, to all of which a tensor belongs, as match() says; all but the routers' are rows of the
  // store as well. Returns what becomes of the routers', having done it after `agree` was told and did not
  // throw: rows that begin anew are initialised by `seed`.
  RouterChange load(const config::Model& model, std::span<const Parameter> rows, std::uint64_t seed,
                    const std::function<void(const RouterChange&)>& agree, ParameterStore& store) const;

 private:
  // source_R: of each row of the store, null where there is none.
  static void read(std::span<const ModelTensor* const> source_R, ParameterStore& store);

  std::filesystem::path directory_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::string> index_;  // empty: none
};

// The tensor of each spec, in their order. Each is in the file once, with its shape, and nothing else is; else
// InputError that lists what is not so.
std::vector<const StoredTensor*> match_all(const SafetensorsFile& file, std::span<const TensorSpec> specs);

}  // namespace switchyard::checkpoint
