// How a model is spread over devices, and what a step is: what a plan is asked about.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ops/elementwise.h"
#include "plan/shape.h"

namespace switchyard::plan {

// Who keeps what of the optimizer's state.
//   switchyard  float32 parameters and gradients on every rank, moments by parallel.zero, bf16 weights beside
//   them megatron    bf16 weights, float32 gradients; float32 parameters and moments divided over data ranks
//   (Megatron's
//               distributed optimizer)
//   fsdp        float32 parameters, gradients and moments divided over all ranks, layers gathered in bf16 as
//   they run
//   torch       the same, in PyTorch's own modules, as torchtitan: more passes over memory
enum class Scheme { switchyard, megatron, fsdp, torch };
inline constexpr Scheme kSchemes[] = {Scheme::switchyard, Scheme::megatron, Scheme::fsdp, Scheme::torch};
// Layers are gathered as they run.
inline bool is_fsdp(Scheme scheme) { return scheme == Scheme::fsdp || scheme == Scheme::torch; }
std::string_view name_of(Scheme scheme);

enum class Precision { float32, bfloat16, fp8 };
inline constexpr Precision kPrecisions[] = {Precision::float32, Precision::bfloat16, Precision::fp8};
std::string_view name_of(Precision precision);

// What the forward pass does not keep. `block`, and `full`, which is another word for it: all of a layer but
// what enters it. `swiglu`: what switchyard calls so. The others may be combined: norms' outputs, activations
// of networks, whole dense networks, whole layers of experts, keys and values of latent attention, attention's
// inside, which the tiled kernels do not keep anyway. `selective`: torchtitan's, every other product.
struct Recompute {
  bool block = false, swiglu = false, norm = false, act = false, mlp = false, moe = false, up_proj = false,
       core_attention = false, selective = false;
};
// "none", or a list of names with commas. Throws InputError with the names that there are.
Recompute parse_recompute(const std::string& text);

struct Layout {
  std::int64_t ranks = 1;
  std::int64_t tensor = 1;  // ranks that divide each matrix of attention and of dense networks, and the tokens
                            // between them
  std::int64_t pipeline = 1;       // stages, neighbouring layers each
  std::int64_t chunks = 1;         // pieces of each stage, which take turns (virtual stages)
  std::int64_t context = 1;        // ranks that divide a sequence
  std::int64_t expert = 1;         // ranks that together hold each expert once
  std::int64_t expert_tensor = 1;  // ranks that divide each expert
  std::int64_t zero = 1;           // of switchyard's scheme
  std::int64_t micro_batch = 1;    // sequences
  std::int64_t global_batch = 1;   // sequences
  std::int64_t seq_len = 1;
  Scheme scheme = Scheme::switchyard;
  Precision precision = Precision::bfloat16;
  Recompute recompute = {};
  std::string recompute_name = "none";
  bool real_routing = true;   // tokens go where a router sends them; false: the same number to each expert
  bool overlap = false;       // exchanges of tokens go on beside what computes
  bool tokens_to_all = true;  // of switchyard's scheme: parallel.token_exchange is `all`, not `rows`

  std::int64_t data() const { return ranks / (tensor * pipeline * context); }
  // Ranks that hold the same experts.
  std::int64_t expert_data() const { return ranks / (pipeline * expert * expert_tensor); }
  std::int64_t micro_batches() const { return global_batch / (data() * micro_batch); }
  // What switchyard itself runs: ranks of data and of experts.
  bool runs_here() const {
    return ranks <= ops::kMostLeaves && tensor == 1 && pipeline == 1 && context == 1 && expert_tensor == 1 &&
           scheme == Scheme::switchyard;
  }
};

// Throws InputError, naming the option, where sizes do not divide each other or the model.
void check_layout(const Layout& layout, const Shape& shape);

// Main layers of each stage: neighbours; where they do not divide, the first stages have one more.
std::vector<std::int64_t> layers_of_stages(const Shape& shape, const Layout& layout);

}  // namespace switchyard::plan
