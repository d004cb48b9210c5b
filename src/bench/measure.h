// How fast a model trains, reads a prompt and generates, with how much memory, and which part of what the
// machine can do that is. Tokens are random; without weights to read, these are, too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/model_directory.h"
#include "config/config.h"
#include "ops/profile.h"
#include "plan/cpu_step.h"
#include "train/profile_report.h"

namespace switchyard::bench {

// What is measured.
struct Subject {
  std::string name;                                       // as it was given
  config::Run run;                                        // its model and router; `train` of the training part
  const checkpoint::ModelDirectory* directory = nullptr;  // the weights; null: random ones
  config::ComputeType inference_type = config::ComputeType::float32;
  bool trains = false;
  std::string why_not_trained;  // where it does not
};

struct Settings {
  std::int64_t batch = 8;        // sequences at once, beside one alone
  std::int64_t prompt = 512;     // tokens of each
  std::int64_t new_tokens = 64;  // behind the prompt
  std::int64_t rounds = 5;
  std::int64_t steps = 1;     // optimizer steps of a round
  std::int64_t static_k = 0;  // beside each part the same with softmax_topk of so many experts; 0: not
};

enum class Kind { training, prefill, decode };
const char* name_of(Kind kind);

// One way to use one model. A pass is an optimizer step, a prompt, or one token of each sequence.
struct Part {
  Kind kind = Kind::training;
  bool is_static = false;  // of the model that it is compared with
  config::ComputeType type = config::ComputeType::float32;
  std::int64_t sequences = 0;                                  // of a pass
  std::int64_t tokens = 0;                                     // of a pass, in all
  std::int64_t micro_batches = 0, micro_batches_measured = 0;  // training
  std::vector<double> seconds_R;  // of a pass, one a round: a mean over the round's
  std::vector<double> seconds_N;  // of each pass of all rounds
  // Of a pass that was not timed: what operators did in it (their seconds are slower than the pass), and how
  // many experts a token had, a mean over layers; 0 where the model has no router.
  std::vector<ops::Profile::Row> work;
  double experts_per_token = 0;
};

// Bytes. What a part does not have is 0.
struct Memory {
  Kind kind = Kind::training;  // decode: of generating, prefill included
  bool is_static = false;
  std::int64_t sequences = 0;
  std::int64_t weights = 0;  // what is trained in float32, and what is computed with beside it
  std::int64_t gradients = 0, moments = 0;
  std::int64_t cache = 0;  // keys and values of the past, rope table included
  std::int64_t activations = 0;
  std::int64_t workspace = 0;  // that operators have grown to
};

struct Report {
  std::vector<Part> parts;
  std::vector<Memory> memory;
  std::vector<std::pair<std::string, std::string>> not_measured;  // a part, why
  std::int64_t training_peak = 0, inference_peak = 0;             // bytes resident at most; 0: not measured
  bool peaks_are_apart = true;  // false: the peak so far, with what was measured before
  train::MachineRates rates;
  // Of a training step on a CPU, of the model as configured: what plan::predict_cpu_step() says right before
  // and right after the measurement, their mean.
  std::optional<plan::CpuStep> predicted;
};

// One process, on `device`. Throws InputError, before anything large is taken, where memory is too small for
// it.
Report measure(const Subject& subject, const Settings& settings, Device device);

// The router of the comparison: softmax_topk of `k` experts, which `model` then has, too.
std::pair<config::Model, config::Router> static_model(const config::Run& run, std::int64_t k);
// Whether routers of this kind send tokens to a number of experts that is not the same for all.
bool has_dynamic_number(const config::Router& router);

// Of the dynamic part beside the static one of the same kind and number of sequences, which were measured in
// turns.
struct Comparison {
  const Part *dynamic = nullptr, *of_static = nullptr;
  double time_ratio = 0, time_ratio_low = 0, time_ratio_high = 0;  // by rounds: median and range
  double flops_ratio = 0;                                          // of all matrix products and attention
};
std::vector<Comparison> compare(const Report& report);

}  // namespace switchyard::bench
