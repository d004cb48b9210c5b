#include "config/spelling.h"

#include <algorithm>
#include <optional>
#include <vector>

namespace switchyard::config {
namespace {

constexpr std::size_t kLongestWord = 200;  // keeps a hostile text from costing time

// Optimal string alignment distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

// Lower case, cut at '_' and '-'; "n" and "number" are the "num" that the layouts' keys have.
std::vector<std::string> parts_of(std::string_view word) {
  std::vector<std::string> parts(1);
  for (const char c : word) {
    if (c == '_' || c == '-') {
      parts.emplace_back();
    } else {
      parts.back() += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    }
  }
  for (std::string& part : parts)
    if (part == "n" || part == "number") part = "num";
  return parts;
}

// How far one part is from another; none where they are different words. One or two letters (q, kv) are words
// of their own, and so may be any single letter of three.
std::optional<std::size_t> distance_of_parts(const std::string& a, const std::string& b) {
  if (a == b) return 0;
  const std::size_t shorter = std::min(a.size(), b.size()), longer = std::max(a.size(), b.size());
  if (shorter < 3) return std::nullopt;
  if (a.compare(0, shorter, b, 0, shorter) == 0) return longer - shorter;  // tok, token
  const std::size_t most = std::max<std::size_t>(1, longer / 3);
  if (longer - shorter > most) return std::nullopt;  // the distance is no less than that
  const std::size_t distance = edit_distance(a, b);
  return distance > most ? std::nullopt : std::optional(distance);
}

struct Word {
  std::size_t bytes;
  std::string letters;
  std::vector<std::string> parts;
  explicit Word(std::string_view word) : bytes(word.size()), letters(letters_of(word)), parts(parts_of(word)) {}
};

std::optional<std::size_t> distance_of(const Word& a, const Word& b) {
  if (a.letters == b.letters) return 0;
  if (a.parts.size() != b.parts.size()) {
    // A border between words that was forgotten, or one too many.
    const auto all_long = [](const std::vector<std::string>& parts) {
      return std::all_of(parts.begin(), parts.end(), [](const std::string& p) { return p.size() >= 3; });
    };
    const auto [shorter, longer] = std::minmax({a.letters.size(), b.letters.size()});
    if (longer - shorter > 1 || !all_long(a.parts) || !all_long(b.parts)) return std::nullopt;
    const std::size_t distance = edit_distance(a.letters, b.letters);
    return distance <= 1 ? std::optional(distance + 1) : std::nullopt;
  }
  // Alone a short word is no part of a longer name: lrr is lr.
  if (a.parts.size() == 1 && std::min(a.bytes, b.bytes) == 2 && std::max(a.bytes, b.bytes) == 3 &&
      edit_distance(a.letters, b.letters) == 1)
    return 1;
  std::size_t sum = 0;
  for (std::size_t i = 0; i < a.parts.size(); ++i) {
    const auto part = distance_of_parts(a.parts[i], b.parts[i]);
    if (!part) return std::nullopt;
    sum += *part;
  }
  return sum;
}

struct OtherName {
  std::string_view section;  // where alone it has this meaning; empty: anywhere
  std::string_view name;     // as letters_of() has it; of a plural and its singular one stands for both
  std::string_view path;
  bool unsure = false;  // the name has a meaning of its own, too, which some values tell
};

// Names that other programs, papers and people have for what a key here says.
constexpr OtherName kOtherNames[] = {
    {"", "learningrate", "train.lr"},
    {"", "maxlr", "train.lr"},
    {"", "peaklr", "train.lr"},
    {"", "lrmax", "train.lr"},
    {"", "baselr", "train.lr"},
    {"", "minlr", "train.min_lr_ratio"},
    {"", "lrmin", "train.min_lr_ratio"},
    {"", "finallr", "train.min_lr_ratio"},
    {"", "minlearningrate", "train.min_lr_ratio"},
    {"", "warmup", "train.warmup_ratio"},
    {"", "warmupsteps", "train.warmup_ratio"},
    {"", "warmupiters", "train.warmup_ratio"},
    {"", "numwarmupsteps", "train.warmup_ratio"},
    {"", "warmupfraction", "train.warmup_ratio"},
    {"", "lrwarmupsteps", "train.warmup_ratio"},
    {"", "maxsteps", "train.steps"},
    {"", "numsteps", "train.steps"},
    {"", "nsteps", "train.steps"},
    {"", "totalsteps", "train.steps"},
    {"", "trainsteps", "train.steps"},
    {"", "trainingsteps", "train.steps"},
    {"", "numtrainsteps", "train.steps"},
    {"", "maxiters", "train.steps"},
    {"", "numiterations", "train.steps"},
    {"", "trainiters", "train.steps"},
    {"", "iterations", "train.steps"},
    {"", "iters", "train.steps"},
    {"", "epochs", "train.steps"},
    {"", "numepochs", "train.steps"},
    {"", "numtrainepochs", "train.steps"},
    {"train", "maxtokens", "train.steps"},
    {"train", "tokens", "train.steps"},
    {"train", "totaltokens", "train.steps"},
    {"", "batchsize", "train.global_batch_size"},
    {"", "batch", "train.global_batch_size"},
    {"", "trainbatchsize", "train.global_batch_size"},
    {"", "totalbatchsize", "train.global_batch_size"},
    {"", "gradientaccumulationsteps", "train.global_batch_size"},
    {"", "gradaccumsteps", "train.global_batch_size"},
    {"", "gradientaccumulation", "train.global_batch_size"},
    {"", "gradaccum", "train.global_batch_size"},
    {"", "accumulationsteps", "train.global_batch_size"},
    {"", "microbatch", "train.micro_batch_size"},
    {"", "devicebatchsize", "train.micro_batch_size"},
    {"", "perdevicetrainbatchsize", "train.micro_batch_size"},
    {"", "perdevicebatchsize", "train.micro_batch_size"},
    {"model", "maxseqlen", "model.max_position_embeddings"},
    {"model", "maxseqlength", "model.max_position_embeddings"},
    {"model", "contextlength", "model.max_position_embeddings"},
    {"model", "nctx", "model.max_position_embeddings"},
    {"model", "npositions", "model.max_position_embeddings"},
    {"model", "blocksize", "model.max_position_embeddings"},
    {"model", "seqlen", "model.max_position_embeddings"},
    {"", "maxseqlen", "train.seq_len"},
    {"", "maxseqlength", "train.seq_len"},
    {"", "sequencelength", "train.seq_len"},
    {"", "seqlength", "train.seq_len"},
    {"", "contextlength", "train.seq_len"},
    {"", "contextlen", "train.seq_len"},
    {"", "blocksize", "train.seq_len"},
    {"", "maxlength", "train.seq_len"},
    {"", "seqlen", "train.seq_len"},
    {"", "lrscheduler", "train.schedule"},
    {"", "lrschedulertype", "train.schedule"},
    {"", "lrschedule", "train.schedule"},
    {"", "lrdecaystyle", "train.schedule"},
    {"", "scheduler", "train.schedule"},
    {"", "wd", "train.weight_decay"},
    {"", "l2", "train.weight_decay"},
    {"", "betas", "train.beta1"},
    {"", "adambetas", "train.beta1"},
    {"", "adambeta1", "train.beta1"},
    {"", "adambeta2", "train.beta2"},
    {"train", "epsilon", "train.eps"},
    {"", "adameps", "train.eps"},
    {"", "adamepsilon", "train.eps"},
    {"", "gradclip", "train.clip_norm"},
    {"", "clipgrad", "train.clip_norm"},
    {"", "clip", "train.clip_norm"},
    {"", "maxgradnorm", "train.clip_norm"},
    {"", "gradclipnorm", "train.clip_norm"},
    {"", "clipgradnorm", "train.clip_norm"},
    {"", "gradientclipping", "train.clip_norm"},
    {"", "gradientclipval", "train.clip_norm"},
    {"", "precision", "train.dtype"},
    {"", "mixedprecision", "train.dtype"},
    {"", "bf16", "train.dtype"},
    {"", "fp16", "train.dtype"},
    {"", "fp8", "train.dtype"},
    {"", "amp", "train.dtype"},
    {"train", "torchdtype", "train.dtype"},
    {"", "gradientcheckpointing", "train.recompute"},
    {"", "activationcheckpointing", "train.recompute"},
    {"", "evalinterval", "train.eval_every"},
    {"", "evalsteps", "train.eval_every"},
    {"", "valevery", "train.eval_every"},
    {"", "valinterval", "train.eval_every"},
    {"", "validateevery", "train.eval_every"},
    {"", "evaliters", "train.eval_tokens"},
    {"", "valtokens", "train.eval_tokens"},
    {"", "randomseed", "train.seed"},
    {"", "saveevery", "checkpoint.every"},
    {"", "savesteps", "checkpoint.every"},
    {"", "saveinterval", "checkpoint.every"},
    {"", "checkpointevery", "checkpoint.every"},
    {"checkpoint", "interval", "checkpoint.every"},
    {"", "savetotallimit", "checkpoint.keep"},
    {"", "maxcheckpoints", "checkpoint.keep"},
    {"", "keeplast", "checkpoint.keep"},
    {"", "logevery", "log.every"},
    {"", "logginginterval", "log.every"},
    {"", "loggingsteps", "log.every"},
    {"", "loginterval", "log.every"},
    {"log", "interval", "log.every"},
    {"", "nthreads", "parallel.threads"},
    {"", "numthreads", "parallel.threads"},
    {"", "numworkers", "parallel.threads"},
    {"data", "val", "data.validation"},
    {"data", "valid", "data.validation"},
    {"data", "valdata", "data.validation"},
    {"data", "validationdata", "data.validation"},
    {"data", "eval", "data.validation"},
    {"data", "test", "data.validation"},
    {"data", "dev", "data.validation"},
    {"data", "traindata", "data.train"},
    {"data", "training", "data.train"},
    {"data", "eostoken", "data.eot_token"},
    {"data", "eostokenid", "data.eot_token"},
    {"data", "eot", "data.eot_token"},
    {"data.train.N", "file", "data.train.N.path"},
    {"data.train.N", "files", "data.train.N.path"},
    {"data.train.N", "glob", "data.train.N.path"},
    {"data.train.N", "name", "data.train.N.domain"},
    {"data.train.N", "ratio", "data.train.N.weight"},
    {"data.train.N", "proportion", "data.train.N.weight"},
    {"data.train.N", "share", "data.train.N.weight"},
    {"data.validation.N", "file", "data.validation.N.path"},
    {"data.validation.N", "glob", "data.validation.N.path"},
    {"data.validation.N", "name", "data.validation.N.domain"},
    {"model", "topk", "model.num_experts_per_tok", true},  // in a config.json it is of sampling
    {"router", "topk", "model.num_experts_per_tok"},
    {"train", "topk", "model.num_experts_per_tok"},
    {"", "moetopk", "model.num_experts_per_tok"},
    {"", "numexpertspertoken", "model.num_experts_per_tok"},
    {"", "expertspertoken", "model.num_experts_per_tok"},
    {"", "expertspertok", "model.num_experts_per_tok"},
    {"", "nexpertspertoken", "model.num_experts_per_tok"},
    {"", "nexpertspertok", "model.num_experts_per_tok"},
    {"", "numactiveexperts", "model.num_experts_per_tok"},
    {"", "activeexperts", "model.num_experts_per_tok"},
    {"", "numselectedexperts", "model.num_experts_per_tok"},
    {"router", "k", "model.num_experts_per_tok"},
    {"router", "numexpertspertok", "model.num_experts_per_tok"},
    {"", "nexperts", "model.num_experts"},
    {"", "nexperts", "model.num_local_experts"},
    {"", "nexperts", "model.n_routed_experts"},
    {"", "numexperts", "model.num_experts"},
    {"", "numexperts", "model.num_local_experts"},
    {"", "numexperts", "model.n_routed_experts"},
    {"", "experts", "model.num_experts"},
    {"", "experts", "model.num_local_experts"},
    {"", "experts", "model.n_routed_experts"},
    {"", "moenumexperts", "model.num_experts"},
    {"", "moenumexperts", "model.num_local_experts"},
    {"", "moenumexperts", "model.n_routed_experts"},
    {"", "nroutedexperts", "model.num_experts"},
    {"", "nroutedexperts", "model.num_local_experts"},
    {"", "numlocalexperts", "model.n_routed_experts"},
    {"", "auxlosscoef", "router.balance_coef"},
    {"", "auxcoef", "router.balance_coef"},
    {"", "auxlossweight", "router.balance_coef"},
    {"", "auxlossalpha", "router.balance_coef"},
    {"", "moeauxlosscoeff", "router.balance_coef"},
    {"", "routerauxlosscoef", "router.balance_coef"},
    {"", "balanceloss", "router.balance_coef"},
    {"", "balancelosscoef", "router.balance_coef"},
    {"", "loadbalancecoef", "router.balance_coef"},
    {"", "loadbalancingcoef", "router.balance_coef"},
    {"", "loadbalancinglosscoef", "router.balance_coef"},
    {"", "zloss", "router.z_loss_coef"},
    {"", "zlossweight", "router.z_loss_coef"},
    {"", "zcoef", "router.z_loss_coef"},
    {"", "routerzlosscoef", "router.z_loss_coef"},
    {"", "routerzloss", "router.z_loss_coef"},
    {"router", "noise", "router.jitter"},
    {"", "routerjitternoise", "router.jitter"},
    {"", "jitternoise", "router.jitter"},
    {"router", "capacity", "router.capacity_factor"},
    {"router", "name", "router.type"},
    {"router", "kind", "router.type"},
    {"", "routertype", "router.type"},
    {"model", "type", "model.model_type"},
    {"model", "family", "model.model_type"},
    {"model", "architecture", "model.model_type"},
    {"", "dmodel", "model.hidden_size"},
    {"model", "dim", "model.hidden_size"},
    {"", "nembd", "model.hidden_size"},
    {"", "nembed", "model.hidden_size"},
    {"", "embeddim", "model.hidden_size"},
    {"", "embdim", "model.hidden_size"},
    {"", "embeddingdim", "model.hidden_size"},
    {"", "embeddingsize", "model.hidden_size"},
    {"", "hiddendim", "model.hidden_size"},
    {"", "modeldim", "model.hidden_size"},
    {"", "nlayer", "model.num_hidden_layers"},
    {"", "nlayers", "model.num_hidden_layers"},
    {"", "numlayers", "model.num_hidden_layers"},
    {"", "layers", "model.num_hidden_layers"},
    {"model", "depth", "model.num_hidden_layers"},
    {"", "nhead", "model.num_attention_heads"},
    {"", "nheads", "model.num_attention_heads"},
    {"", "numheads", "model.num_attention_heads"},
    {"model", "heads", "model.num_attention_heads"},
    {"", "nkvheads", "model.num_key_value_heads"},
    {"", "numkvheads", "model.num_key_value_heads"},
    {"", "kvheads", "model.num_key_value_heads"},
    {"", "nkvhead", "model.num_key_value_heads"},
    {"", "headsize", "model.head_dim"},
    {"", "dhead", "model.head_dim"},
    {"", "kvchannels", "model.head_dim"},
    {"", "dff", "model.intermediate_size"},
    {"", "ffndim", "model.intermediate_size"},
    {"", "ffdim", "model.intermediate_size"},
    {"", "mlpdim", "model.intermediate_size"},
    {"", "ffnhiddensize", "model.intermediate_size"},
    {"", "intermediatedim", "model.intermediate_size"},
    {"", "moeffnhiddensize", "model.moe_intermediate_size"},
    {"", "moeintermediatedim", "model.moe_intermediate_size"},
    {"", "expertdim", "model.moe_intermediate_size"},
    {"", "expertintermediatesize", "model.moe_intermediate_size"},
    {"", "vocab", "model.vocab_size"},
    {"", "nvocab", "model.vocab_size"},
    {"", "vocabularysize", "model.vocab_size"},
    {"", "paddedvocabsize", "model.vocab_size"},
    {"model", "normeps", "model.rms_norm_eps"},
    {"model", "layernormeps", "model.rms_norm_eps"},
    {"model", "layernormepsilon", "model.rms_norm_eps"},
    {"model", "eps", "model.rms_norm_eps"},
    {"model", "ropebase", "model.rope_theta"},
    {"model", "rotarybase", "model.rope_theta"},
    {"model", "rotaryembbase", "model.rope_theta"},
    {"model", "theta", "model.rope_theta"},
    {"", "tieembeddings", "model.tie_word_embeddings"},
    {"", "tiedembeddings", "model.tie_word_embeddings"},
    {"", "tieweights", "model.tie_word_embeddings"},
    {"", "weighttying", "model.tie_word_embeddings"},
    {"", "shareembeddings", "model.tie_word_embeddings"},
    {"", "initstd", "model.initializer_range"},
    {"", "initializerstd", "model.initializer_range"},
    {"", "normtopk", "model.norm_topk_prob"},
    {"", "normalizetopk", "model.norm_topk_prob"},
    {"", "renormalize", "model.norm_topk_prob"},
    {"", "normalizeexpertweights", "model.norm_topk_prob"},
    {"", "moerenormalize", "model.norm_topk_prob"},
    {"model", "windowsize", "model.sliding_window"},
    {"model", "slidingwindowsize", "model.sliding_window"},
    {"model", "attentionwindow", "model.sliding_window"},
    {"model", "numdenselayers", "model.first_k_dense_replace"},
    {"model", "ndenselayers", "model.first_k_dense_replace"},
    {"model", "firstkdense", "model.first_k_dense_replace"},
    {"model", "numsharedexperts", "model.n_shared_experts"},
    {"model", "moenumsharedexperts", "model.n_shared_experts"},
};

}  // namespace

std::string letters_of(std::string_view word) {
  std::string letters;
  for (const char c : word)
    if (c != '_' && c != '-') letters += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return letters;
}

std::string_view meant_by(std::string_view section, std::string_view key,
                          const std::function<bool(std::string_view path)>& has, bool unsure) {
  const auto singular = [](std::string_view word) {
    return word.ends_with('s') ? word.substr(0, word.size() - 1) : word;
  };
  if (key.size() > kLongestWord) return {};
  const std::string letters = letters_of(key);
  for (const bool here : {true, false})  // a meaning within the section goes before one that holds anywhere
    for (const OtherName& other : kOtherNames)
      if (other.unsure <= unsure && other.section == (here ? section : "") &&
          singular(other.name) == singular(letters) && has(other.path))
        return other.path;
  return {};
}

std::string_view nearest(std::string_view word, std::span<const std::string_view> words) {
  if (word.size() > kLongestWord) return {};
  const Word asked(word);
  std::string_view best;
  std::optional<std::size_t> best_distance;
  for (const std::string_view candidate : words) {
    const auto distance = distance_of(asked, Word(candidate));
    if (distance && (!best_distance || *distance < *best_distance)) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace switchyard::config
