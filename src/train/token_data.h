// Token data by domain, and the buffers of one micro-batch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "core/device_memory.h"
#include "data/sampler.h"
#include "data/shard_paths.h"
#include "model/batch.h"
#include "parallel/group.h"

namespace switchyard::train {

struct Domain {
  std::string name;
  std::optional<double> weight;
  data::TokenStream stream;
  std::vector<std::uint32_t> crc_of_shard;  // of its tokens
  std::optional<data::TextSize> text;       // of the whole stream
};

// The shards of one domain, in the order in which they are read.
struct DomainFiles {
  std::string name;
  std::optional<double> weight;
  std::vector<std::filesystem::path> paths;
};
// Of the entries of one list. Throws InputError where nothing is found.
std::vector<DomainFiles> find_files(const std::vector<config::DataEntry>& entries);

// Opens the entries of one list; those of one domain become one stream, in the order of the list. Every token
// is checked against the vocabulary, the shards divided among the ranks of `all`. Throws InputError: nothing
// found, a bad shard, a token beyond the vocabulary.
std::vector<Domain> open_domains(const std::vector<config::DataEntry>& entries, std::int64_t vocab_size,
                                 const parallel::Group& all);

// The token that begins a document, for data.document_mask: what the configuration says (data.begin_token, or
// else data.eot_token), or else meta.json beside the shards. Throws InputError where neither knows, or the
// files disagree.
std::int64_t find_begin_token(const config::Data& data, std::int64_t vocab_size);

// What meta.json beside the training shards says of their documents; none where it is not there or the files
// disagree.
data::SpecialTokens special_tokens_of(const config::Data& data);

// What a run learns from and is evaluated on.
struct TrainingData {
  // Throws InputError as open_domains() and find_begin_token() do, and where the ranks of `all` do not see the
  // same data. Warns where a shard holds the tokens of another one of `train`, and where a domain's validation
  // text is too short for its share of train.eval_tokens (train.eval_mix "training").
  TrainingData(const config::Run& run, const parallel::Group& all);

  // Of each validation domain: its share of the samples of training, over the sum of these. Throws InputError
  // where one is not trained on.
  std::vector<double> training_shares() const;

  std::optional<std::int64_t> begin_token;  // with data.document_mask
  std::vector<Domain> train, validation;
  data::Sampler sampler;  // of `train`

 private:
  void warn_of_short_validation(const config::Train& options, const std::vector<double>& share_V) const;
  void warn_of_equal_shards() const;
};

// The micro-batches of one step: written on the host, read on the device one after the other.
class BatchBuffers {
 public:
  // With `begin_token`, attention does not cross it: each occurrence begins a document. `sliding_window` as in
  // config::Model: a token sees itself and the sliding_window - 1 before it; 0: all.
  BatchBuffers(std::int64_t n_seq, std::int64_t seq_len, std::optional<std::int64_t> begin_token,
               std::int64_t sliding_window, Device device = Device::cpu, std::int64_t n_micro_batches = 1);

  // Sequence b of a micro-batch := inputs window[0 .. n-1), each predicting the next, n = window.size() <=
  // seq_len + 1; the rest of it is padding. An empty window makes all of it padding. Call
  // only when the device has finished with this micro-batch.
  void set_sequence(std::int64_t b, std::span<const std::int32_t> window, std::int64_t micro = 0);

  // Which part of the run's noise a micro-batch draws (model::Batch::rng_offset_2). Call
  // only when the device has finished with this micro-batch.
  void set_rng_offset(std::int64_t step, std::int64_t first_sequence, std::int64_t micro = 0);

  // The micro-batch on the run's device, where each replaces the one before. In the run's order: neither host
  // nor device waits.
  model::Batch load(Context& ctx, std::int64_t micro = 0) const;
  // The same where the host reads it.
  const model::Batch& on_host(std::int64_t micro = 0) const { return host_[static_cast<std::size_t>(micro)]; }

 private:
  std::optional<std::int64_t> begin_token_;
  std::int64_t sliding_window_, micro_size_;
  AlignedBuffer staging_, memory_;
  std::vector<model::Batch> host_;  // views of staging_
  model::Batch device_;
};

}  // namespace switchyard::train
