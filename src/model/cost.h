// What a model costs: its parameters and the FLOPs of a forward pass.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "model/batch.h"
#include "model/transformer.h"

namespace switchyard::model {

// How many parameters a model has, and how many work on one token.

struct ParameterCount {
  std::int64_t total = 0;          // of the main model: the figures that are published
  std::int64_t active = 0;         // all but the experts that a token is not sent to
  std::int64_t active_matmul = 0;  // of the active ones, those in matrix products: 6 FLOPs a token in training
  std::int64_t mtp =
      0;  // besides, in the layers for multi-token prediction; embedding and head are the main model's
  // What `total` is made of: ("embedding", values), ("attention", ...), ... ; a part without values is left
  // out.
  std::vector<std::pair<std::string, std::int64_t>> parts;
};

// From the configuration alone; nothing is allocated.
ParameterCount count_parameters(const config::Model& model, const config::Router& router);

// FLOPs of a forward pass, counted from what was really computed: a multiply-add is 2. Matrix products and
// attention alone; norms, rotations, softmax and sums are some percent of a percent of them.
//   D hidden size, V vocabulary, H heads, N width of a query or key, M of a value, F width of an expert
//
// Of one token, in one layer:
//   attention   2 (values of the projections' matrices) + 2 H (N + M) for each key that the token sees
//   router      2 (values of its matrices + multiply-adds that it has beside them)
//   experts     6 D F for each of its slots that an expert took: gate, up and down
//   always      6 D (width) of the shared experts, or of the dense network
// and once   head   2 V D.
// The static model is the same with all K slots of every token taken. Layers for multi-token prediction, which
// only training has, count in neither.

struct LayerFlops {
  double attention = 0;
  double router = 0;
  double experts = 0;
  double always = 0;
  double total() const { return attention + router + experts + always; }
};

struct Flops {
  std::vector<LayerFlops> layers;  // of every layer, dense ones too
  double head = 0;
  double total() const;
};

// What a batch has to compute, whatever its router decides; added up over batches.
struct TokenCounts {
  std::int64_t tokens = 0;  // that are not padding
  std::int64_t keys = 0;    // that these tokens see, in one layer
  TokenCounts& operator+=(const TokenCounts& other) {
    tokens += other.tokens;
    keys += other.keys;
    return *this;
  }
};
TokenCounts count_tokens(const Batch& batch);

class FlopCounter {
 public:
  explicit FlopCounter(const Transformer& model);
  // Of the tokens together. slot_L: slots that experts took, one number for each layer with experts, in order.
  Flops count(const TokenCounts& counts, std::span<const double> slot_L) const;
  // The static model's.
  Flops count_static(const TokenCounts& counts) const;

 private:
  struct Layer {
    LayerCost cost;
    bool is_moe;
  };
  std::vector<Layer> layers_;
  double head_ = 0;
  std::int64_t n_slots_ = 0;
};

}  // namespace switchyard::model
