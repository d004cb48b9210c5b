// Every key of the sections that are ours, once: its name, type, default (what the struct has), range and what
// it means. From here come reading, the resolved configuration, the lists of known keys and `switchyard help
// config`; a test holds docs/configuration.md to it.
//
// describe(v, section) shows a visitor each key in the order in which it is written. The visitor's functions:
//   seed, integer, number, boolean, text, choice        a value whose default is what the struct has
//   required_integer, required_text                     one without a default
//   nullable_integer, nullable_number                   one that may be null, and is null where it is absent
//   optional_number                                     one that may be absent
//   texts, bytes, entries, room, spike, micro_batch     those of a form of their own
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "config/names.h"
#include "config/ranges.h"
#include "config/router_schema.h"
#include "config/section.h"

namespace switchyard::config {

struct Field {
  std::string_view key;
  std::string_view meaning;
  // In words, where the default and the range that the code has do not say all.
  std::string_view range{};
  std::string_view fallback{};
};

template <class V>
void describe(V& v, Router& router) {  // but for type and balance_coef, whose defaults are the type's
  v.choice(
      {"balance_scope",
       "over which tokens the balance loss counts: of one layer's micro-batch, of each sequence, of the whole "
       "global batch, or of all layers together (as `transformers` does)",
       "", "`global_batch`; `sigmoid_group`: `sequence`"},
      router.balance_scope, kBalanceScopes);
  v.number({"z_loss_coef", "coefficient of mean(logsumexp(logits)^2); 0: none",
            "[0, 1e6]; 0 where there is no softmax over logits (`kmeans`, score_function `sigmoid` or "
            "`sqrtsoftplus`)"},
           router.z_loss_coef, kCoefficient);
  v.number(
      {"variance_coef",
       "coefficient of the variance loss, which rewards probabilities that differ from token to token of a "
       "sequence: minus the mean over tokens of sum((p - mean of p)^2); 0: none"},
      router.variance_coef, kCoefficient);
  v.number(
      {"orthogonality_coef",
       "coefficient of the orthogonality loss, the mean over tokens and pairs of their experts of the squared "
       "cosine of the experts' outputs; 0: none",
       "[0, 1e6]; 0 where `parallel.expert` is above 1"},
      router.orthogonality_coef, kCoefficient);
  v.nullable_number(
      {"capacity_factor",
       "an expert takes at most ceil(capacity_factor * tokens * slots / experts) slots of a micro-batch, "
       "those of largest weight; the others are dropped. null: no limit"},
      router.capacity_factor, {0, 1e6, true});
  v.number({"jitter",
            "standard deviation of the noise on the logits (`kmeans`: the similarities) in training; 0: none"},
           router.jitter, {0, 1e3});
  v.number(
      {"logit_norm",
       "logits become logit_norm * (logit - mean) / (standard deviation), both over the experts of a token, "
       "before the softmax; 0: they stay",
       "[0, 1000]; 0 where there is no gate before a softmax (`kmeans`, `lpr`, score_function `sigmoid` or "
       "`sqrtsoftplus`)"},
      router.logit_norm, {0, 1e3});
  v.integer(
      {"num_hash_layers",
       "in the first so many layers with experts a table of tokens, made from `train.seed` and kept in "
       "checkpoints, says which experts a token goes to; a gate's scores weigh them",
       "[0, layers with experts]; 0 where max_experts is an option (`top_p`, `dynamic_k`, `expert_threshold`)"},
      router.num_hash_layers, 0);
}

template <class V>
void describe(V& v, DataEntry& entry, bool weighted) {
  v.required_text({"path", "a shard, a directory of shards, or a glob"}, entry.path);
  if (entry.domain.empty()) entry.domain = "default";
  v.text({"domain", "entries of one domain are one stream; figures are reported per domain"}, entry.domain);
  if (weighted)
    v.optional_number(
        {"weight",
         "the domain's share of the samples, relative to the sum over domains. All domains have one or "
         "none has; entries of a domain that give one must agree",
         "", "by tokens"},
        entry.weight, {0, 1e9, true});
}

template <class V>
void describe(V& v, Data& data) {
  v.entries({"train", "paths or entries, as below", "at least one entry", "required"}, data.train, true);
  v.entries({"validation", "the same, without weights; empty: nothing is evaluated while training", "", "`[]`"},
            data.validation, false);
  v.boolean({"document_mask", "attention stops at document borders; needs the token that documents begin with"},
            data.document_mask);
  v.nullable_integer({"eot_token", "the end-of-text token; null: what `meta.json` beside the shards says",
                      "[0, vocab_size - 1]"},
                     data.eot_token, 0);
  v.nullable_integer(
      {"begin_token",
       "the token that each document begins with; null: `eot_token` where that is given, else what "
       "`meta.json` says",
       "[0, vocab_size - 1]"},
      data.begin_token, 0);
}

template <class V>
void describe(V& v, Spike& spike) {
  v.number({"deviations",
            "of the loss above the running median, in standard deviations of the losses in the window (at "
            "least 2 % of "
            "the median); in the first 20 steps: above twice the largest so far. 0: losses are not looked at"},
           spike.deviations, {0, 1e9});
  v.number({"grad_norm_factor",
            "of the gradient's norm over its running median, from step 20 on; 0: norms are not looked at",
            "0, (1, 1e9]"},
           spike.grad_norm_factor, {0, 1e9});
  // A checkpoint keeps so many steps' losses and norms as text.
  v.integer({"window", "steps, of those that were learned from, that both are compared with"}, spike.window, 20,
            100'000);
  v.integer({"patience", "so many steps left out in a row send the run back"}, spike.patience, 1);
}

template <class V>
void describe(V& v, Train& train) {
  v.seed({"seed", "of initial weights and the order of the data"}, train.seed);
  v.required_integer({"steps", "optimizer steps"}, train.steps, 1);
  v.required_integer({"seq_len", "tokens of a sequence", "[1, max_position_embeddings]"}, train.seq_len, 1);
  v.micro_batch({"micro_batch_size",
                 "sequences that pass through the model at once; `auto`: as many as fit into memory "
                 "([memory.md](memory.md#the-largest-micro-batch)), which needs global_batch_size",
                 "at least 1, or `auto`"},
                train.micro_batch_size);
  if (train.global_batch_size == 0) train.global_batch_size = train.micro_batch_size;  // its default
  v.integer({"global_batch_size", "sequences of one optimizer step", "a multiple of micro_batch_size",
             "micro_batch_size"},
            train.global_batch_size, 1);
  v.choice({"dtype",
            "of the operands of matrix products; on a CUDA device of all weights in use and activations. "
            "Parameters, their gradients and moments, statistics and routers are float32. `fp8` is "
            "`bfloat16`, and while training the products with the weights of attention's projections, dense "
            "layers and experts, forward and backward, are in FP8 (E4M3, a scale for each 128 values of a row "
            "or 128 x 128 of a weight, sums in float32). It needs compute capability 9.0, and has not run on "
            "a GPU yet; on the CPU it is emulated, slower than `float32`. Evaluation and generation take it "
            "for `bfloat16`",
            "`float32`, `bfloat16`, `fp8`; short `fp32`, `f32`, `float`; `bf16`"},
           train.dtype, kComputeTypes, full_type_name);
  v.choice({"recompute",
            "what the forward pass does not keep and the backward pass makes again, the same bit for bit: "
            "`swiglu` the "
            "experts' inputs and SwiGLU's outputs, `block` all of a layer but what enters it, for a third more "
            "work"},
           train.recompute, kRecomputes);
  v.choice(
      {"attention",
       "whose kernels compute attention while training on a CUDA device: switchyard's or cuDNN's. `cudnn` "
       "needs a "
       "program built with it, `dtype` `bfloat16` or `fp8`, no `document_mask`, heads of a multiple of 8 up to "
       "256 (128 "
       "before compute capability 9.0), and a router that does not read attention's entropy; anything else is "
       "refused at the start. It has not run on a GPU yet. Evaluation and generation keep `flash`"},
      train.attention, kAttentionBackends);
  v.number({"lr", "the highest learning rate"}, train.lr, {0, 1000, true});
  v.number({"min_lr_ratio", "the schedule ends at lr * min_lr_ratio"}, train.min_lr_ratio, kShare);
  v.number({"router_lr_ratio",
            "the learning rate of what routers learn by gradient is lr times this; 0: they stay as they "
            "began"},
           train.router_lr_ratio, {0, 1000});
  v.choice({"schedule", "after the warm-up: no decay, a straight line, half a cosine, or warmup-stable-decay"},
           train.schedule, kSchedules);
  v.number({"warmup_ratio", "share of the steps in which lr rises from 0"}, train.warmup_ratio, kShare);
  v.number({"decay_ratio", "share of the steps in which lr falls, of `wsd` only; with warmup_ratio at most 1"},
           train.decay_ratio, kShare);
  v.number({"weight_decay", "AdamW's, on matrices"}, train.weight_decay, {0, 1000});
  v.number({"beta1", "AdamW's decay of the first moment"}, train.beta1, {0, 1, false, true});
  v.number({"beta2", "AdamW's decay of the second moment"}, train.beta2, {0, 1, false, true});
  // As float32 neither zero nor too small to divide by.
  v.number({"eps", "added to the root of AdamW's second moment"}, train.eps, {1e-30, 1});
  v.number({"clip_norm", "the gradient's global norm is brought down to it; 0: no clipping"}, train.clip_norm,
           {0, 1e9});
  v.spike({"spike", "when a step is left out, below; false: never", "", "on"}, train.spike);
  v.number(
      {"mtp_loss_coef",
       "coefficient of the multi-token prediction loss; above 0 it needs `model.num_nextn_predict_layers`, and "
       "`train.seq_len` above that"},
      train.mtp_loss_coef, kCoefficient);
  v.boolean(
      {"same_bits",
       "micro-batches' gradients are added by halves, so that 1, 2, 4, 8, ... ranks of as many threads each "
       "train to the same bits. Needs `parallel.expert` 1 and that number to divide the micro-batches of a "
       "step; with M of them a rank takes log2 M more gradients of memory"},
      train.same_bits);
  v.integer({"eval_every",
             "steps from one evaluation to the next; 0: only after the last step. Needs `data.validation` or "
             "`eval.tasks`"},
            train.eval_every, 0);
  v.integer({"eval_tokens", "tokens that an evaluation predicts of each domain at most; 0: all", "at least 0"},
            train.eval_tokens, 0, INT64_MAX / 16);
  v.choice(
      {"eval_mix",
       "which of them: the first of each domain, as many of all; or, of as many in all, of each domain the "
       "share "
       "that it has of training's samples, in windows that are spread evenly over its text. Balance is that of "
       "the "
       "tokens a router is trained on: with other shares it looks worse. `training` needs `eval_tokens`, and a "
       "domain of `data.train` for each of `data.validation`"},
      train.eval_mix, kEvalMixes);
}

template <class V>
void describe(V& v, Parallel& parallel) {
  v.integer(
      {"threads",
       "threads of a rank on the CPU; 0: the cores that it may use, divided by the ranks that share them"},
      parallel.threads, 0, 4096);
  v.integer({"ranks",
             "how many ranks the run must have; 0: as many as `mpirun -n` or `--nproc` started. A guard for "
             "scripts: the same configuration runs on any number"},
            parallel.ranks, 0, 256);  // what a sum over ranks is written for: ops::kMostLeaves
  v.integer(
      {"expert",
       "ranks that together hold each expert once; it divides the number of ranks and the number of experts. "
       "1: every rank holds all experts"},
      parallel.expert, 1, 1 << 20);
  v.integer(
      {"zero",
       "0: every rank keeps all of AdamW's moments; 1: each keeps those of its part, to the same bits; 2: and "
       "the gradients of layers, which are then added up after each micro-batch: with several of them a rank "
       "sends so many times as much, and sums are made in another order"},
      parallel.zero, 0, 2);
  v.choice({"token_exchange",
            "with `expert` above 1, how tokens come to their experts: `all` tokens to every rank of the expert "
            "group, or `rows` where they are needed, each token once, on devices of one machine alone; `auto`: "
            "`rows` on a "
            "CPU, `all` on a device"},
           parallel.token_exchange, kTokenExchanges);
  v.choice(
      {"sums",
       "how ranks on CUDA devices add gradients and counts: `ordered`, in one order, to the same bits in every "
       "run; or `library`, as NCCL does, which may be faster and may give other bits each time"},
      parallel.sums, kSums);
  v.boolean(
      {"overlap",
       "exchanges between CUDA devices go on beside what does not need them: tokens, beside shared experts and "
       "the gradients of experts' weights; gradients of layers, beside the backward pass of the layers below. "
       "The same bits; with `zero` 2 memory for the gradients of one more layer; it has not run on several "
       "GPUs yet"},
      parallel.overlap);
  v.boolean({"symmetric_memory",
             "memory that ranks on CUDA devices exchange comes from NCCL, 2.28 or newer, and is known to all "
             "of them, so that "
             "copy engines may move bytes in place of multiprocessors. The same bits; it has not run on "
             "several GPUs yet"},
            parallel.symmetric_memory);
  v.room(
      {"expert_room",
       "with `expert` above 1, the rows that a rank's experts can take, as a multiple of an even load; a step "
       "that needs more is done again in rounds, and no token is dropped. `worst`: all that there can be; "
       "`auto`: that, as far as memory allows",
       "`auto`, `worst` or a number of at least 1"},
      parallel.expert_room);
  v.number({"patience",
            "seconds without a sign of life from a rank after which the run ends; 0: never, for a debugger"},
           parallel.patience, {0, 1e9});
}

template <class V>
void describe(V& v, Checkpoint& checkpoint) {
  v.integer({"every", "steps from one checkpoint to the next; 0: by the clock alone, and after the last step"},
            checkpoint.every, 0);
  v.number(
      {"every_minutes", "minutes after which a checkpoint is due, whatever `every` says; 0: not by the clock"},
      checkpoint.every_minutes, {0, 1e9});
  v.integer({"keep", "the newest so many stay; 0: all"}, checkpoint.keep, 0);
  v.integer({"keep_every", "those of a step that is a multiple of this stay as well; 0: none"},
            checkpoint.keep_every, 0);
  v.boolean({"keep_best",
             "the one of the lowest validation loss stays, among those that were evaluated at their step, and "
             "`checkpoints/best` points to it"},
            checkpoint.keep_best);
  v.bytes({"max_shard_size",
           "bytes of weights in one file of a checkpoint, or a text such as `\"5GB\"` (powers of 1000) or "
           "`\"512MiB\"` "
           "(of 1024); more are split over several files with an index"},
          checkpoint.max_shard_size);
  v.choice(
      {"writers",
       "who writes a checkpoint's files where there are several ranks: `all`, each its part, or the `first` "
       "alone, for file systems on which several machines may not write to one file. The bytes are the same"},
      checkpoint.writers, kWriters);
  v.boolean(
      {"verify",
       "each file is read back from the disk and compared with what was written before the checkpoint "
       "counts; `false`: it is synced alone, and the line says `saved RUN/checkpoints/step_NNNNNN, not read "
       "back`"},
      checkpoint.verify);
}

template <class V>
void describe(V& v, Eval& eval) {
  v.texts({"tasks",
           "files of questions with choices ([tasks.md](tasks.md)), asked at every `train.eval_every`: the "
           "scores go "
           "into `metrics.jsonl` and to the console. A prompt longer than `train.seq_len` loses its beginning"},
          eval.tasks);
  v.integer({"shots", "examples before each question, the file's first others"}, eval.shots, 0);
  v.integer({"limit", "questions of each file, from the first on; 0: all"}, eval.limit, 0);
}

template <class V>
void describe(V& v, Log& log) {
  v.integer({"every", "steps from one console line to the next; `metrics.jsonl` has every step"}, log.every, 1);
  v.boolean(
      {"tensorboard", "event files in the run's `tensorboard/`: every number of every line of `metrics.jsonl`"},
      log.tensorboard);
  v.integer(
      {"check_replicas",
       "steps from one comparison of what several ranks hold alike to the next; a difference ends the run. 0: "
       "never"},
      log.check_replicas, 0);
  v.boolean(
      {"profile",
       "the time of every operator beside the least that this machine needs for it, at the end and in the "
       "run's "
       "`profile.json` ([how to read it](benchmarks/cpu.md#where-a-step-goes)); slower on a device, which is "
       "waited for at every operator"},
      log.profile);
}

// Reads each key out of a section of a configuration. Throws InputError.
class FieldReader {
 public:
  using FullName = std::string_view (*)(std::string_view);

  explicit FieldReader(Section& section) : section_(section) {}

  void seed(const Field& f, std::uint64_t& value) { value = section_.seed(f.key, value); }
  void required_integer(const Field& f, std::int64_t& value, std::int64_t low) {
    value = section_.integer(f.key, low, kMaxSize);
  }
  void integer(const Field& f, std::int64_t& value, std::int64_t low, std::int64_t high = kMaxSize) {
    value = section_.integer(f.key, low, high, value);
  }
  void nullable_integer(const Field& f, std::optional<std::int64_t>& value, std::int64_t low) {
    value = section_.nullable_integer(f.key, low, kMaxSize);
  }
  void number(const Field& f, double& value, const Interval& range) {
    value = section_.number(f.key, range, value);
  }
  void nullable_number(const Field& f, std::optional<double>& value, const Interval& range) {
    value = section_.nullable_number(f.key, range);
  }
  void optional_number(const Field& f, std::optional<double>& value, const Interval& range) {
    if (section_.find(f.key) != nullptr) value = section_.number(f.key, range);
  }
  void boolean(const Field& f, bool& value) { value = section_.boolean(f.key, value); }
  void required_text(const Field& f, std::string& value) { value = section_.text(f.key); }
  void text(const Field& f, std::string& value) { value = section_.text(f.key, value); }
  template <class Enum, std::size_t N>
  void choice(const Field& f, Enum& value, const Enum (&all)[N], FullName full_name = nullptr) {
    value = section_.choice<Enum>(f.key, all, value, full_name);
  }
  void texts(const Field& f, std::vector<std::string>& value);
  void bytes(const Field& f, std::int64_t& value);
  void entries(const Field& f, std::vector<DataEntry>& value, bool weighted);
  void room(const Field& f, double& value);
  void micro_batch(const Field& f, std::int64_t& value);
  void spike(const Field& f, Spike& value);

 private:
  Section& section_;
};

// What `switchyard help config` prints: of "" the sections and their keys; of a section or a key, by its path
// or its name alone, what it is. Throws InputError, with the nearest name, where there is none.
std::string help_on(std::string_view name, std::span<const RouterSchema> routers);

// What help and docs/configuration.md say of a key.
struct FieldText {
  std::string_view key;
  std::string type, fallback, range;
  std::string_view meaning;
};
// Of a section that describe() has: "router", "data.train.N", ...; empty for another one.
const std::vector<FieldText>& field_texts(std::string_view section);

}  // namespace switchyard::config
