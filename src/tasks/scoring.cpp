#include "tasks/scoring.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>
#include <string>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/json.h"
#include "core/progress.h"
#include "tasks/python_text.h"

namespace switchyard::tasks {

namespace {

// Sequences of one batch on the host.
class HostBatch {
 public:
  HostBatch(std::int64_t n_seq, std::int64_t seq_len, std::int64_t sliding_window)
      : seq_len_(seq_len),
        token_T_(static_cast<std::size_t>(n_seq * seq_len), -1),
        target_T_(token_T_.size(), -1),
        kv_begin_T_(token_T_.size(), 0),
        tokens_B_(static_cast<std::size_t>(n_seq), 0) {
    if (sliding_window == 0) return;
    for (std::size_t t = 0; t < kv_begin_T_.size(); ++t) {
      const std::int64_t position = static_cast<std::int64_t>(t) % seq_len;
      kv_begin_T_[t] = static_cast<std::int32_t>(std::max<std::int64_t>(0, position - sliding_window + 1));
    }
  }

  // Sequence b predicts the continuation's tokens, each from all that is before it.
  void set(std::int64_t b, const Continuation& c) {
    const auto at = static_cast<std::size_t>(b * seq_len_);
    const std::size_t whole = c.context.size() + c.tokens.size();
    const std::size_t inputs = std::min(whole - 1, static_cast<std::size_t>(seq_len_)),
                      cut = whole - 1 - inputs;
    const auto token = [&](std::size_t i) {
      return i < c.context.size() ? c.context[i] : c.tokens[i - c.context.size()];
    };
    for (std::size_t i = 0; i < inputs; ++i) {
      token_T_[at + i] = token(cut + i);
      if (cut + i + 1 >= c.context.size()) target_T_[at + i] = token(cut + i + 1);
    }
    tokens_B_[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(inputs);
  }

  Tensor tokens() { return view(token_T_); }
  Tensor targets() { return view(target_T_); }
  Tensor kv_begins() { return view(kv_begin_T_); }
  Tensor lengths() { return view(tokens_B_); }

 private:
  static Tensor view(std::vector<std::int32_t>& values) {
    return {values.data(), Shape{static_cast<std::int64_t>(values.size())}, DType::i32};
  }

  std::int64_t seq_len_;
  std::vector<std::int32_t> token_T_, target_T_, kv_begin_T_, tokens_B_;
};

std::optional<std::int32_t> token_before_text(const checkpoint::ModelTokenizer& text) {
  if (text.begin_token) return text.begin_token;
  if (const auto begin = text.tokenizer->encode("", true); !begin.empty()) return begin.front();
  if (!text.end_tokens.empty()) return text.end_tokens.front();
  return std::nullopt;
}

}  // namespace

std::vector<std::int32_t> encode_prompt(const checkpoint::ModelTokenizer& text, std::string_view prompt) {
  std::vector<std::int32_t> tokens = text.tokenizer->encode(prompt, !text.begin_token);
  if (text.begin_token) tokens.insert(tokens.begin(), *text.begin_token);
  return tokens;
}

Continuation encode_pair(const checkpoint::ModelTokenizer& text, std::string_view context,
                         std::string_view continuation, std::string_view place) {
  const std::string both = std::string(context) + std::string(continuation);
  context = right_stripped(context);
  Continuation pair;
  if (!context.empty()) pair.context = encode_prompt(text, context);
  if (pair.context.empty()) {
    const auto before = token_before_text(text);
    if (!before)
      throw_input("{}: the context is empty, and the model has no token that begins or ends a text", place);
    pair.context = {*before};
    pair.tokens = text.tokenizer->encode(both, false);
    if (pair.tokens.size() > 1 && pair.tokens.front() == *before) pair.tokens.erase(pair.tokens.begin());
  } else {
    pair.tokens = encode_prompt(text, both);
    pair.tokens.erase(pair.tokens.begin(), pair.tokens.begin() + static_cast<std::ptrdiff_t>(std::min(
                                                                     pair.context.size(), pair.tokens.size())));
  }
  if (pair.tokens.empty())
    throw_input("{}: {} adds no token to its context; the tokenizer merges it with what is before it", place,
                in_quotes(continuation));
  return pair;
}

std::vector<double> log_probabilities(const std::vector<Continuation>& continuations, const Passes& passes) {
  model::Transformer& model = passes.model;
  Context& ctx = passes.ctx;
  const std::int64_t n = std::ssize(continuations), n_seq = passes.n_seq;
  const auto inputs_of = [&](std::size_t i) {
    const Continuation& c = continuations[i];
    return std::min(std::ssize(c.context) + std::ssize(c.tokens) - 1, passes.most_tokens);
  };
  for (const Continuation& c : continuations)
    SY_CHECK(!c.context.empty() && !c.tokens.empty() && std::ssize(c.tokens) <= passes.most_tokens);
  // The longest first: neighbours are about as long, and memory is short at the beginning or never.
  std::vector<std::size_t> order(continuations.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return inputs_of(a) > inputs_of(b); });

  std::vector<double> sums(continuations.size());
  std::int64_t seq_len = passes.may_plan ? 0 : passes.most_tokens;
  const std::int64_t batches = (n + n_seq - 1) / n_seq;
  for (std::int64_t round = 0; round * passes.all.size() < batches; ++round) {
    mark("batch of continuations", round);
    const std::int64_t first = (round * passes.all.size() + passes.all.place()) * n_seq;
    if (passes.may_plan) {
      if (first >= n) break;
      constexpr std::int64_t kGrain = 32;  // so that the model is not planned anew for each batch
      const std::int64_t longest = inputs_of(order[static_cast<std::size_t>(first)]);
      const std::int64_t needed = std::min((longest + kGrain - 1) / kGrain * kGrain, passes.most_tokens);
      if (needed != seq_len) model.plan(n_seq, seq_len = needed, ctx);
    }
    HostBatch host(n_seq, seq_len, model.config().sliding_window);
    const auto in_batch =
        std::span(order).subspan(static_cast<std::size_t>(std::min(first, n)),
                                 static_cast<std::size_t>(std::clamp<std::int64_t>(n - first, 0, n_seq)));
    for (std::size_t b = 0; b < in_batch.size(); ++b)
      host.set(static_cast<std::int64_t>(b), continuations[in_batch[b]]);
    const CopyOn token_T(ctx.device, host.tokens()), target_T(ctx.device, host.targets()),
        kv_begin_T(ctx.device, host.kv_begins()), tokens_B(ctx.device, host.lengths());
    const model::Batch batch{.token_T = token_T.tensor(),
                             .target_T = target_T.tensor(),
                             .kv_begin_T = kv_begin_T.tensor(),
                             .n_seq = n_seq,
                             .seq_len = seq_len,
                             .tokens_B = tokens_B.tensor()};
    if (passes.forward) {
      passes.forward(batch);
    } else {
      model.forward(batch, ctx);
    }
    std::vector<float> loss_values(static_cast<std::size_t>(n_seq * seq_len));
    const CopyOn loss_T(ctx.device, Tensor(loss_values.data(), Shape{n_seq * seq_len}, DType::f32));
    model.loss(loss_T.tensor(), batch, ctx);
    loss_T.write_back();
    for (std::size_t b = 0; b < in_batch.size(); ++b) {
      const auto of_sequence =
          std::span(loss_values)
              .subspan(b * static_cast<std::size_t>(seq_len), static_cast<std::size_t>(seq_len));
      sums[in_batch[b]] = -std::accumulate(of_sequence.begin(), of_sequence.end(), 0.0);
    }
  }
  passes.all.sum_numbers(sums);  // each was one rank's, and 0 elsewhere
  for (const double sum : sums)
    if (!std::isfinite(sum))
      throw_run("a log-probability is not finite; the weights of this model have diverged");
  return sums;
}

}  // namespace switchyard::tasks
