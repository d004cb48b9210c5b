// A dense model's weights as the beginning of a mixture of experts ("sparse upcycling", arXiv 2212.05055).
//   D hidden size, F width of the dense network, E experts of width F', shared experts of width S
//
// Where a layer of the model is a mixture, its shared experts take the first S of the dense network's F
// neurons, and the experts, in turns, slices of F' of the rest: expert e has slice e modulo n = (F - S) / F'.
// With n = 1 and no shared expert each is a copy. The experts' down projections are multiplied by
//   n / (w routed_scaling_factor)
// where w is the sum of a token's weights: 1, or num_experts_per_tok / E where they are not normalised. So a
// token that goes to as many experts of each slice, with equal weights, or to copies, with any weights of that
// sum, gets the dense network's output. Routers keep their initial weights, but of a linear gate the n experts
// that make a whole network together, which are neighbours, begin with one row and are chosen together
// ("virtual groups", arXiv 2410.07524, which scales likewise): where num_experts_per_tok is a multiple of n and
// weights sum to one, the model begins as the dense one. Layers that the model has dense, attention, norms and
// embeddings are the dense model's.
#pragma once

#include <filesystem>
#include <string>

#include "config/config.h"
#include "core/parameters.h"
#include "parallel/group.h"

namespace switchyard::checkpoint {

struct Upcycled {
  std::filesystem::path directory;  // the checkpoint's, where a run was named
  std::int64_t n = 1;               // experts that make a whole network
  std::string how;                  // "16 experts a layer, each a copy of the dense network"
};

// Fills the values that this rank holds of a store that `model`, a mixture, made, and whose values are the
// initial ones already. `dense`: a run, a checkpoint, or a Hugging Face directory of a dense model of the same
// layout, of "qwen3" for qwen3_moe, of "llama" or "mistral" for mixtral. All ranks call it together. Throws
// InputError where the directory is a mixture already, where its attention, embeddings or norms are not the
// model's, or where the widths do not divide.
Upcycled upcycle(const std::filesystem::path& dense, const config::Model& model, ParameterStore& store,
                 const parallel::Group& all);

}  // namespace switchyard::checkpoint
