#include "generate/generator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/error.h"
#include "core/rng.h"

namespace switchyard::generate {

namespace {

std::int32_t largest(std::span<const float> logits_V) {
  std::size_t best = 0;
  for (std::size_t v = 0; v < logits_V.size(); ++v) {
    if (std::isnan(logits_V[v])) throw_run("the logit of token {} is not a number; the weights are damaged", v);
    if (logits_V[v] > logits_V[best]) best = v;
  }
  return static_cast<std::int32_t>(best);
}

}  // namespace

std::int32_t Sampler::choose(std::span<const float> logits_V, std::uint64_t position) {
  const std::int32_t best = largest(logits_V);
  if (options_.temperature == 0) return best;
  const double most = logits_V[static_cast<std::size_t>(best)];
  // The likelier first; the smaller token of equal ones first.
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.token < b.token;
  };
  const auto behind = [&](const Candidate& a, const Candidate& b) { return before(b, a); };  // for heaps
  candidates_.clear();
  for (std::size_t v = 0; v < logits_V.size(); ++v)
    candidates_.push_back({static_cast<double>(logits_V[v]), static_cast<std::int32_t>(v)});

  if (const auto k = static_cast<std::size_t>(options_.top_k); k > 0 && k < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k - 1),
                     candidates_.end(), before);
    const double smallest = candidates_[k - 1].value;  // equal ones stay, as in transformers
    std::erase_if(candidates_, [&](const Candidate& c) { return c.value < smallest; });
  }
  double sum = 0;
  for (Candidate& c : candidates_) sum += c.value = std::exp((c.value - most) / options_.temperature);
  if (options_.top_p < 1) {
    // A token stays while those before it have less than top_p. The heap hands them out likeliest first.
    std::make_heap(candidates_.begin(), candidates_.end(), behind);
    double kept = 0;
    auto end = candidates_.end();
    while (end != candidates_.begin() && (end == candidates_.end() || kept < options_.top_p * sum)) {
      std::pop_heap(candidates_.begin(), end, behind);
      kept += (--end)->value;
    }
    candidates_.erase(candidates_.begin(), end);
    sum = kept;
  }
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  double rest = Rng(options_.seed, RngPurpose::sampling, 0).uniform(position) * sum;
  for (const Candidate& c : candidates_)
    if ((rest -= c.value) < 0) return c.token;
  return best;  // rounding alone leads here
}

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

model::Transformer::Generation Generator::plan_of(std::int64_t n_positions, std::int64_t n_seq) {
  const std::int64_t of_each = std::max<std::int64_t>(1, kChunk / n_seq);
  return {.n_seq = n_seq, .n_positions = n_positions, .most_tokens = std::min(n_positions, of_each)};
}

Generator::Generator(model::Transformer& model, std::int64_t n_positions, Context& ctx, std::int64_t n_seq)
    : model_(model),
      ctx_(ctx),
      n_positions_(n_positions),
      n_seq_(n_seq),
      chunk_(plan_of(n_positions, n_seq).most_tokens),
      token_T_(static_cast<std::size_t>(n_seq * chunk_)),
      kv_begin_T_(token_T_.size()),
      logits_BV_(static_cast<std::size_t>(n_seq * model.config().vocab_size)) {
  model_.plan_generation(plan_of(n_positions, n_seq), ctx);
}

std::span<const float> Generator::append(std::span<const std::int32_t> token_Bn) {
  const std::int64_t n_tokens = static_cast<std::int64_t>(token_Bn.size()) / n_seq_;
  SY_CHECK(n_tokens > 0 && n_tokens * n_seq_ == static_cast<std::int64_t>(token_Bn.size()) &&
               size_ + n_tokens <= n_positions_,
           "{} tokens of {} sequences after {} of {}", token_Bn.size(), n_seq_, size_, n_positions_);
  const std::int64_t window = model_.config().sliding_window;
  for (std::int64_t first = 0, n = 0; first < n_tokens; first += n) {
    n = std::min(n_tokens - first, chunk_);
    for (std::int64_t b = 0; b < n_seq_; ++b)
      for (std::int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(b * n + i);
        const std::int64_t position = size_ + i;
        token_T_[at] = token_Bn[static_cast<std::size_t>(b * n_tokens + first + i)];
        kv_begin_T_[at] =
            static_cast<std::int32_t>(window > 0 ? std::max<std::int64_t>(0, position - window + 1) : 0);
      }
    const Shape shape{n_seq_ * n};
    const CopyOn token_T(ctx_.device, Tensor(token_T_.data(), shape, DType::i32)),
        kv_begin_T(ctx_.device, Tensor(kv_begin_T_.data(), shape, DType::i32));
    model_.forward({.token_T = token_T.tensor(),
                    .target_T = {},
                    .kv_begin_T = kv_begin_T.tensor(),
                    .n_seq = n_seq_,
                    .seq_len = n,
                    .n_past = size_},
                   ctx_);
    size_ += n;
  }
  const CopyOn logits_BV(ctx_.device,
                         Tensor(logits_BV_.data(), Shape{n_seq_, model_.config().vocab_size}, DType::f32));
  model_.logits_of_last(logits_BV.tensor(), ctx_);
  logits_BV.write_back();
  return logits_BV_;
}

Continuation continue_prompt(Generator& generator, Sampler& sampler, std::span<const std::int32_t> prompt,
                             std::int64_t max_tokens, std::span<const std::int32_t> end_tokens,
                             const std::function<bool(std::int32_t)>& take) {
  Continuation result;
  auto start = Clock::now();
  std::span<const float> logits_V = generator.append(prompt);
  result.prompt_seconds = seconds_since(start);
  start = Clock::now();
  std::vector<std::int32_t>& tokens = result.tokens;
  while (static_cast<std::int64_t>(tokens.size()) < max_tokens) {
    tokens.push_back(sampler.choose(logits_V, static_cast<std::uint64_t>(generator.size())));
    if (std::find(end_tokens.begin(), end_tokens.end(), tokens.back()) != end_tokens.end()) {
      result.stop = Stop::end_of_text;
      break;
    }
    if (!take(tokens.back())) {
      result.stop = Stop::interrupted;
      break;
    }
    if (static_cast<std::int64_t>(tokens.size()) < max_tokens)
      logits_V = generator.append(std::span(tokens).last(1));
  }
  result.seconds = seconds_since(start);
  return result;
}

std::vector<Continuation> continue_prompts(Generator& generator, Sampler& sampler,
                                           std::span<const std::vector<std::int32_t>> prompt_B,
                                           std::int64_t max_tokens, std::span<const std::int32_t> end_tokens,
                                           const std::function<bool(std::size_t, std::int32_t)>& take) {
  const std::size_t B = prompt_B.size();
  std::vector<Continuation> result_B(B);
  std::size_t shortest = prompt_B[0].size();
  for (const auto& prompt : prompt_B) shortest = std::min(shortest, prompt.size());
  std::vector<std::int32_t> token_Bn;
  for (const auto& prompt : prompt_B)
    token_Bn.insert(token_Bn.end(), prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(shortest));
  const auto start = Clock::now();
  std::span<const float> logits_BV = generator.append(token_Bn);
  const double prompt_seconds = seconds_since(start);
  std::vector<bool> is_done_B(B, max_tokens == 0);
  token_Bn.assign(B, -1);
  const std::size_t V = logits_BV.size() / B;
  const auto choose = [&](std::size_t b) {
    Continuation& result = result_B[b];
    const std::int32_t token =
        sampler.choose(logits_BV.subspan(b * V, V), static_cast<std::uint64_t>(generator.size()));
    result.tokens.push_back(token);
    if (std::find(end_tokens.begin(), end_tokens.end(), token) != end_tokens.end())
      result.stop = Stop::end_of_text;
    else if (!take(b, token))
      result.stop = Stop::interrupted;
    is_done_B[b] = result.stop != Stop::full || static_cast<std::int64_t>(result.tokens.size()) == max_tokens;
    if (is_done_B[b]) result.seconds = seconds_since(start) - prompt_seconds;
    return is_done_B[b] ? -1 : token;
  };
  for (;;) {
    bool all_done = true;
    for (std::size_t b = 0; b < B; ++b) {
      const auto at = static_cast<std::size_t>(generator.size());
      token_Bn[b] = is_done_B[b] ? -1 : at < prompt_B[b].size() ? prompt_B[b][at] : choose(b);
      all_done = all_done && is_done_B[b];
    }
    if (all_done) break;
    logits_BV = generator.append(token_Bn);
  }
  for (Continuation& result : result_B) result.prompt_seconds = prompt_seconds;
  return result_B;
}

}  // namespace switchyard::generate
