// One run, as one typed value. Read from a JSON file, checked once at the edge, never re-interpreted inside.
//
// `model` takes the keys of a Hugging Face config.json under their own names; the other sections are ours.
// Defaults stand here and nowhere else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace switchyard::config {

enum class Family { mixtral, qwen3_moe };
enum class RouterType { softmax_topk };
enum class BalanceScope { layer, sequence, global_batch, model };
enum class Schedule { constant, linear, cosine, wsd };
enum class ComputeType { float32, bfloat16 };  // of matrix products; everything else is float32

// Architecture, family differences already resolved (which keys exist, their defaults, which layers are dense).
struct Model {
  Family family = Family::qwen3_moe;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t intermediate_size = 0;      // of dense layers; 0 where no layer is dense
  std::int64_t moe_intermediate_size = 0;  // of one expert; this and the next two are 0 where no layer is MoE
  std::int64_t num_experts = 0;
  std::int64_t num_experts_per_tok = 0;
  bool norm_topk_prob = true;
  std::vector<bool> is_moe_layer;  // one a layer, from mlp_only_layers and decoder_sparse_step
  bool qk_norm = false;            // per-head RMSNorm on queries and keys (Qwen3)
  bool tie_word_embeddings = false;
  double rms_norm_eps = 1e-6;
  double rope_theta = 1e6;
  std::int64_t sliding_window =
      0;  // 0: none; otherwise a token sees itself and the sliding_window - 1 before it
  std::int64_t max_position_embeddings = 0;
  double initializer_range = 0.02;

  bool operator==(const Model&) const = default;
};

struct Router {
  RouterType type = RouterType::softmax_topk;
  double balance_coef = 0.001;  // ROUTERS "balance"; 0 turns the term off
  BalanceScope balance_scope = BalanceScope::global_batch;
  double z_loss_coef = 0.0;

  bool operator==(const Router&) const = default;
};

struct DataEntry {
  std::string path;    // a file or a glob
  std::string domain;  // defaults to "default"; entries of one domain are one stream
  // Of training entries: the domain's share of the samples, relative to the sum over domains. All domains have
  // one or none has; the entries of one domain all hold the same. Without: in proportion to the tokens.
  std::optional<double> weight;

  bool operator==(const DataEntry&) const = default;
};

struct Data {
  std::vector<DataEntry> train;
  std::vector<DataEntry> validation;      // may be empty: then nothing is evaluated while training
  bool document_mask = false;             // attention stops at document borders; needs eot_token
  std::optional<std::int64_t> eot_token;  // defaults to what meta.json beside the shards says

  bool operator==(const Data&) const = default;
};

struct Train {
  std::uint64_t seed = 1;
  std::int64_t steps = 0;
  std::int64_t seq_len = 0;
  std::int64_t micro_batch_size = 0;   // sequences that pass through the model at once
  std::int64_t global_batch_size = 0;  // sequences of one optimizer step; a multiple of micro_batch_size
  ComputeType dtype = ComputeType::float32;
  double lr = 1e-3;
  double min_lr_ratio = 0.1;  // the schedule ends at lr * min_lr_ratio
  Schedule schedule = Schedule::cosine;
  double warmup_ratio = 0.02;  // share of the steps
  double decay_ratio = 0.2;    // share of the steps, of schedule wsd only
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double clip_norm = 1.0;        // 0: no clipping
  std::int64_t eval_every = 0;   // steps; 0: only after the last step
  std::int64_t eval_tokens = 0;  // at most so many a domain; 0: all

  bool operator==(const Train&) const = default;
};

struct Parallel {
  std::int64_t threads = 0;  // 0: one a core

  bool operator==(const Parallel&) const = default;
};

struct Checkpoint {
  std::int64_t every = 0;  // steps; 0: only after the last step
  std::int64_t keep = 2;   // the newest so many stay; 0: all

  bool operator==(const Checkpoint&) const = default;
};

struct Log {
  std::int64_t every = 1;  // steps from one console line to the next; metrics.jsonl has every step

  bool operator==(const Log&) const = default;
};

struct Run {
  Model model;
  Router router;
  Data data;
  Train train;
  Parallel parallel;
  Checkpoint checkpoint;
  Log log;
  // The whole configuration as JSON, every default filled in and `model` in Hugging Face's keys: what the run
  // directory's config.json and the checkpoint's run.json hold. Reading it again gives the same Run.
  std::string resolved_json;

  bool operator==(const Run&) const = default;
};

}  // namespace switchyard::config
