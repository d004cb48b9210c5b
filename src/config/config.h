// One run, as one typed value. Read from a JSON file, checked once at the edge, never re-interpreted inside.
//
// `model` takes the keys of a Hugging Face config.json under their own names; the other sections are ours.
// Defaults stand here and nowhere else.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "config/router_options.h"
#include "core/context.h"
#include "core/routing.h"

namespace switchyard::config {

struct Layout;  // config/layouts.h
extern const Layout kQwen3Moe;
// RMSNorm of queries and keys before they are rotated: of each head (Qwen3), or of all heads of a token in one
// (OLMoE).
enum class QkNorm { none, head, projection };
enum class RopeType { unscaled, linear, yarn };
using switchyard::BalanceScope;
enum class Schedule { constant, linear, cosine, wsd };
// What an evaluation while training weighs the domains by: each alike, or as training's samples do.
enum class EvalMix { equal, training };
// What the forward pass does not keep and the backward pass makes again: nothing; the experts' inputs and
// activations; all of a block but what enters it.
enum class Recompute { none, swiglu, block };
enum class ComputeType { float32, bfloat16, fp8 };  // what model::dtype_of and matmul_type_of make of it
using switchyard::AttentionBackend;

// Rotary embedding, everything that depends on other keys resolved.
struct Rope {
  double theta = 1e6;
  RopeType type = RopeType::unscaled;
  double factor = 1;                                  // 1 where unscaled; the rest is of yarn
  std::int64_t original_max_position_embeddings = 0;  // 0 where not yarn
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;         // the borders of the ramp are whole numbers
  double attention_factor = 1;  // what cos and sin are multiplied by
  bool interleaved = false;     // pairs are (x_2i, x_2i+1); else (x_i, x_i+n/2)
  // As given; their effect is in attention_factor and in Model::softmax_scale_factor.
  std::optional<double> mscale = std::nullopt;
  std::optional<double> mscale_all_dim = std::nullopt;

  bool operator==(const Rope&) const = default;
};

// Multi-head latent attention. Its two inner norms have eps 1e-6 always, whatever Model::rms_norm_eps is.
struct Mla {
  std::int64_t q_lora_rank = 0;  // 0: queries come from q_proj directly
  std::int64_t kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 0;
  std::int64_t qk_rope_head_dim = 0;
  std::int64_t v_head_dim = 0;

  bool operator==(const Mla&) const = default;
};

enum class AttentionType { gqa, mla };

// What one layer is made of; the widths of its parts stand in Model.
struct LayerSpec {
  AttentionType attention = AttentionType::gqa;
  bool moe = false;  // experts, not a dense network

  bool operator==(const LayerSpec&) const = default;
};

// Architecture, differences of layouts already resolved (which keys exist, their defaults, which layers are
// dense).
struct Model {
  const Layout* layout = &kQwen3Moe;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;               // of queries and keys; with mla qk_nope_head_dim + qk_rope_head_dim
  std::optional<Mla> mla;                  // set where the layout has it (deepseek_v3)
  bool attention_bias = false;             // qwen3_moe: of q, k, v and o; deepseek_v3: of q_a, kv_a and o
  double softmax_scale_factor = 1;         // attention scores are multiplied by it and head_dim^-0.5
  std::int64_t intermediate_size = 0;      // of dense layers; 0 where no layer is dense
  std::int64_t moe_intermediate_size = 0;  // of one expert; this and the next two are 0 where no layer is MoE
  std::int64_t num_experts = 0;
  std::int64_t num_experts_per_tok = 0;
  bool norm_topk_prob = true;
  std::int64_t n_shared_experts = 0;  // one SwiGLU of n_shared_experts * moe_intermediate_size, for every token
  std::int64_t n_group = 1;           // the experts form so many groups of neighbours ...
  std::int64_t topk_group = 1;        // ... and only those of so many groups can be chosen
  double routed_scaling_factor = 1;   // multiplies the weights of the chosen experts
  std::vector<LayerSpec> layers;      // num_hidden_layers of them
  // Depths of multi-token prediction, a layer each, behind the others. A run without their loss has none.
  std::int64_t num_nextn_predict_layers = 0;
  QkNorm qk_norm = QkNorm::none;
  bool tie_word_embeddings = false;
  double rms_norm_eps = 1e-6;
  Rope rope;
  // 0: none; otherwise a token sees itself and the sliding_window - 1 before it.
  std::int64_t sliding_window = 0;
  std::int64_t max_position_embeddings = 0;
  double initializer_range = 0.02;

  bool operator==(const Model&) const = default;
};

// Sets the layers: experts where `moe` says so, attention of the kind that the model has widths for.
inline void set_layers(Model& model, const std::vector<bool>& moe) {
  model.layers.clear();
  for (const bool is_moe : moe)
    model.layers.push_back({model.mla ? AttentionType::mla : AttentionType::gqa, is_moe});
}

// What every router has, and its own options. Which those are, their defaults, and what a type refuses stand in
// its schema (router_schema.h); the defaults here are those of softmax_topk.
struct Router {
  std::string type = "softmax_topk";
  double balance_coef = 0.001;  // of the balance loss; 0 turns the term off
  BalanceScope balance_scope = BalanceScope::global_batch;
  double z_loss_coef = 0.0;
  double variance_coef = 0.0;       // of the variance loss; 0: none
  double orthogonality_coef = 0.0;  // of the orthogonality loss of experts' outputs; 0: none
  std::optional<double> capacity_factor = std::nullopt;  // none: an expert takes as many tokens as come
  double jitter = 0.0;               // standard deviation of the noise on the logits in training
  double logit_norm = 0.0;           // lambda of normalised logits; 0: logits are what they are
  std::int64_t num_hash_layers = 0;  // of the layers with experts the first so many choose by a table of tokens
  RouterOptions own = {};

  bool operator==(const Router&) const = default;
};

// K: the most experts that a token goes to.
inline std::int64_t slots_per_token(const Router& router, const Model& model) {
  return router.own.has("max_experts") ? router.own.integer("max_experts") : model.num_experts_per_tok;
}

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
  bool document_mask = false;             // attention stops at document borders; needs begin_token
  std::optional<std::int64_t> eot_token;  // defaults to what meta.json beside the shards says
  // The token that each document begins with; defaults to eot_token where that is given, else to meta.json's.
  std::optional<std::int64_t> begin_token = std::nullopt;

  bool operator==(const Data&) const = default;
};

// When a step is left out, since its loss or gradient is far from those before it (train/spike.h).
struct Spike {
  double deviations = 6;         // of the loss above its running median; 0: losses are not looked at
  double grad_norm_factor = 20;  // of the gradient norm over its running median; 0: norms are not looked at
  std::int64_t window = 128;     // steps that both are compared with
  std::int64_t patience = 10;    // after so many in a row the run goes back to a checkpoint

  bool operator==(const Spike&) const = default;
};

struct Train {
  std::uint64_t seed = 1;
  std::int64_t steps = 0;
  std::int64_t seq_len = 0;
  static constexpr std::int64_t kAutoMicroBatch = -1;
  std::int64_t micro_batch_size = 0;   // sequences that pass through the model at once; or kAutoMicroBatch
  std::int64_t global_batch_size = 0;  // sequences of one optimizer step; a multiple of micro_batch_size
  ComputeType dtype = ComputeType::float32;
  Recompute recompute = Recompute::none;
  AttentionBackend attention = AttentionBackend::flash;  // of training; evaluation and generation have flash
  double lr = 1e-3;
  double min_lr_ratio = 0.1;   // the schedule ends at lr * min_lr_ratio
  double router_lr_ratio = 1;  // of the routers' weights: lr times this
  Schedule schedule = Schedule::cosine;
  double warmup_ratio = 0.02;  // share of the steps
  double decay_ratio = 0.2;    // share of the steps, of schedule wsd only
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double clip_norm = 1.0;  // 0: no clipping
  Spike spike = {};
  double mtp_loss_coef = 0.0;    // of the multi-token prediction loss; 0: no such layers
  bool same_bits = false;        // the gradient's bits do not depend on the number of ranks
  std::int64_t eval_every = 0;   // steps; 0: only after the last step
  std::int64_t eval_tokens = 0;  // at most so many a domain; 0: all
  EvalMix eval_mix = EvalMix::equal;

  bool operator==(const Train&) const = default;
};

// How tokens come to the ranks that hold their experts (parallel/token_exchange.h); automatic: rows on a CPU,
// all on a device.
enum class TokenExchange { automatic, all, rows };
// How ranks on devices add up: by our operators in one order, or by NCCL in its own.
enum class Sums { ordered, library };

struct Parallel {
  std::int64_t threads = 0;  // of a rank; 0: the cores that it may use, divided by the ranks that share them
  std::int64_t ranks = 0;    // 0: as many as were started; else they must be so many
  std::int64_t expert = 1;   // ranks that together hold each expert once
  std::int64_t zero = 1;     // 0: every rank has all of AdamW's state; 1: its part; 2: of gradients, too
  TokenExchange token_exchange = TokenExchange::automatic;
  Sums sums = Sums::ordered;
  bool overlap = false;           // exchanges between devices beside what computes
  bool symmetric_memory = false;  // what devices exchange lies in windows of NCCL
  // Rows that a rank's experts can take, as a multiple of an even load, at least 1.
  static constexpr double kAutoRoom = 0, kWorstRoom = std::numeric_limits<double>::infinity();
  double expert_room = kAutoRoom;
  double patience = 45;  // seconds without a sign of life after which the run ends; 0: never

  bool operator==(const Parallel&) const = default;
};

enum class Writers { all, first };  // of a checkpoint's files: every rank its part, or rank 0 all of them

struct Checkpoint {
  std::int64_t every = 0;                       // steps; 0: only after the last step
  double every_minutes = 30;                    // beside `every`; 0: not by time
  std::int64_t keep = 2;                        // the newest so many stay; 0: all
  std::int64_t keep_every = 0;                  // those of a multiple of so many steps stay too; 0: none
  bool keep_best = true;                        // and that of the lowest validation loss
  std::int64_t max_shard_size = 5'000'000'000;  // bytes of weights in one file; more are split over several
  Writers writers = Writers::all;
  bool verify = true;  // what was written is read back from the disk before it counts

  bool operator==(const Checkpoint&) const = default;
};

// What a run is asked beside its loss, whenever it is evaluated.
struct Eval {
  std::vector<std::string> tasks;  // files of questions with choices
  std::int64_t shots = 0;          // examples before each question, from the file itself
  std::int64_t limit = 0;          // questions of each file, from the first on; 0: all

  bool operator==(const Eval&) const = default;
};

struct Log {
  std::int64_t every = 1;    // steps from one console line to the next; metrics.jsonl has every step
  bool tensorboard = false;  // event files beside metrics.jsonl
  std::int64_t check_replicas =
      100;               // steps from one comparison of what ranks hold alike to the next; 0: never
  bool profile = false;  // the time of every operator

  bool operator==(const Log&) const = default;
};

struct Run {
  Model model;
  Router router;
  Data data;
  Train train;
  Parallel parallel;
  Checkpoint checkpoint;
  Eval eval;
  Log log;
  // The whole configuration as JSON, every default filled in and `model` in Hugging Face's keys: what the run
  // directory's config.json and the checkpoint's run.json hold. Reading it again gives the same Run.
  std::string resolved_json;

  bool operator==(const Run&) const = default;
};

}  // namespace switchyard::config
