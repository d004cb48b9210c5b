// Token data by domain, and the buffers of one micro-batch.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/device_memory.h"
#include "data/dataset.h"
#include "model/batch.h"

namespace switchyard::train {

struct Domain {
  std::string name;
  std::optional<double> weight;
  data::TokenStream stream;
};

// Opens the entries of one list; those of one domain become one stream, in the order of the list. Every token
// is checked against the vocabulary. Throws InputError: nothing found, a bad shard, a token beyond the
// vocabulary.
std::vector<Domain> open_domains(const std::vector<config::DataEntry>& entries, std::int64_t vocab_size);

// The token that begins a document, for data.document_mask: what the configuration says, or else meta.json
// beside the shards. Throws InputError where neither knows, or the files disagree.
std::int64_t find_eot_token(const config::Data& data, std::int64_t vocab_size);

// One micro-batch, written on the host and read on the device.
class BatchBuffers {
 public:
  // With `eot_token`, attention does not cross it: each occurrence begins a document. `sliding_window` as in
  // config::Model: a token sees itself and the sliding_window - 1 before it; 0: all.
  BatchBuffers(std::int64_t n_seq, std::int64_t seq_len, std::optional<std::int64_t> eot_token,
               std::int64_t sliding_window, Device device = Device::cpu);

  // Sequence b := inputs window[0 .. n-1), each predicting the next, n = window.size() <= seq_len + 1; the rest
  // of it is padding. An empty window makes all of it padding.
  void set_sequence(std::int64_t b, std::span<const std::int32_t> window);

  const model::Batch& batch() const;                                    // on the device
  std::span<const std::int64_t> tokens_B() const { return tokens_B_; }  // of each sequence, without padding

 private:
  std::vector<std::int32_t> token_T_, target_T_, kv_begin_T_;
  std::vector<std::int64_t> tokens_B_;
  std::optional<std::int64_t> eot_token_;
  std::int64_t sliding_window_;
  CopyOn token_copy_T_, target_copy_T_, kv_begin_copy_T_;
  mutable bool stale_ = true;  // the host has written since the device's copies were made
  model::Batch batch_;
};

}  // namespace switchyard::train
