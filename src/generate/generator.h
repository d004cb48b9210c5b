// From a prompt to the text behind it: the next token of some logits, and the sequence that grows.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/transformer.h"

namespace switchyard::generate {

// From logits to the next token.   V vocabulary

struct Sampling {
  double temperature = 1;  // 0: the largest logit, the smallest token of equal ones
  std::int64_t top_k = 0;  // only tokens whose logit is among the k largest; 0: all
  double top_p = 1;        // of those, the likeliest that together have this probability; 1: all
  std::uint64_t seed = 1;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& options) : options_(options) {}
  // Temperature, top-k and top-p in this order, as transformers applies them. A function of the logits, the
  // seed and the position alone. Throws RunError where a logit is NaN.
  std::int32_t choose(std::span<const float> logits_V, std::uint64_t position);

 private:
  struct Candidate {
    double value;  // the logit, then its share
    std::int32_t token;
  };
  Sampling options_;
  std::vector<Candidate> candidates_;
};

// Sequences that grow together: tokens go in, the logits of what follows come out; and a prompt that is gone on
// from. The past stays in the layers' caches.   B sequences, n tokens of each, V vocabulary

class Generator {
 public:
  // Long prompts pass through the model in pieces of this many tokens, those of all sequences together; of each
  // one at least.
  static constexpr std::int64_t kChunk = 256;
  static model::Transformer::Generation plan_of(std::int64_t n_positions, std::int64_t n_seq);

  // `model`: made for evaluation, with its weights; its activations are planned anew. It must outlive this.
  Generator(model::Transformer& model, std::int64_t n_positions, Context& ctx, std::int64_t n_seq = 1);

  // Appends tokens, as many to each sequence, at least one and no more than there are positions left: those of
  // the first sequence, then those of the next one. Returns the logits [B, V] of what follows the last of each,
  // which stay until the next call.
  std::span<const float> append(std::span<const std::int32_t> token_Bn);
  std::int64_t size() const { return size_; }  // tokens of each sequence so far
  void restart() { size_ = 0; }                // forgets them

 private:
  model::Transformer& model_;
  Context& ctx_;
  std::int64_t n_positions_, n_seq_, chunk_, size_ = 0;
  std::vector<std::int32_t> token_T_, kv_begin_T_;
  std::vector<float> logits_BV_;
};

enum class Stop { full, end_of_text, interrupted };

struct Continuation {
  std::vector<std::int32_t> tokens;  // chosen, the one that ends the text included
  Stop stop = Stop::full;
  double prompt_seconds = 0;  // that the prompt took
  double seconds = 0;         // that the tokens took
};

// Appends `prompt`, at least one token, and goes on from it by at most `max_tokens`, until one of `end_tokens`
// is chosen or `take` returns false. `take` is called with every chosen token that does not end the text.
Continuation continue_prompt(Generator& generator, Sampler& sampler, std::span<const std::int32_t> prompt,
                             std::int64_t max_tokens, std::span<const std::int32_t> end_tokens,
                             const std::function<bool(std::int32_t)>& take);

// The same of several prompts at once, one a sequence of the generator, which has room for the longest one and
// max_tokens - 1 more. Every sequence has its tokens in the positions that it has alone: while one is still
// shown its prompt, shorter ones go on from theirs; one that has ended is padding. take(b, token).
std::vector<Continuation> continue_prompts(Generator& generator, Sampler& sampler,
                                           std::span<const std::vector<std::int32_t>> prompt_B,
                                           std::int64_t max_tokens, std::span<const std::int32_t> end_tokens,
                                           const std::function<bool(std::size_t, std::int32_t)>& take);

}  // namespace switchyard::generate
