// One micro-batch as the model sees it.
#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace switchyard::model {

// T = n_seq * seq_len tokens, sequence after sequence. All i32, on the model's device.
struct Batch {
  Tensor token_T;   // -1: padding, which no other token sees: at the end of a sequence or of a document
  Tensor target_T;  // the token to predict; -1: none
  // First position of its own sequence that the token sees: 0, or where its document or its sliding window
  // begins.
  Tensor kv_begin_T;
  std::int64_t n_seq = 0;
  std::int64_t seq_len = 0;
  // What a router needs to know of training (router::RouterBatch); elsewhere no noise is drawn.
  bool training = false;
  std::uint64_t seed = 0;
  // i32 {step of the optimizer, from 0; first sequence in the global batch, of all ranks}: the offset of its
  // noise (ops/elementwise.h).
  Tensor rng_offset_2{};
  Tensor tokens_B{};             // i32: of each sequence, without padding; for auxiliary losses
  Tensor attention_entropy_T{};  // within a block: what its attention says to a router that asks for it
  // Generating: each sequence has so many tokens before this batch, which the layers' caches hold; the batch's
  // are added to them, and kv_begin_T counts from the sequence's beginning. target_T is not there.
  // No value: no cache is used.
  std::optional<std::int64_t> n_past = std::nullopt;
};

}  // namespace switchyard::model
