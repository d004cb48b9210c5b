// How likely a model finds texts that go on from others: sums of the logarithms of their tokens' probabilities.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "checkpoint/tokenizer_record.h"
#include "core/context.h"
#include "model/transformer.h"
#include "parallel/group.h"

namespace switchyard::tasks {

// A context and what follows it; each has a token at least.
struct Continuation {
  std::vector<std::int32_t> context, tokens;
};
// The tokens of both as lm_eval makes them: of the two texts together, cut where those of the context alone
// end; white space that ends the context belongs to what follows. A context without a token is the one that
// begins a text, or else ends one. `place`: for messages. Throws InputError where the text has no tokens of its
// own.
Continuation encode_pair(const checkpoint::ModelTokenizer& text, std::string_view context,
                         std::string_view continuation, std::string_view place);
// The tokens of a text to go on from, what begins a text included.
std::vector<std::int32_t> encode_prompt(const checkpoint::ModelTokenizer& text, std::string_view prompt);

// How batches pass through the model.
struct Passes {
  model::Transformer& model;
  Context& ctx;
  const parallel::Group& all;  // the ranks that share the work
  std::int64_t n_seq;          // sequences at once
  std::int64_t most_tokens;    // inputs of a sequence at most
  // False: the model is planned for n_seq x most_tokens and stays so, and all ranks run as many batches. True:
  // it is planned anew for batches as long as they need to be.
  bool may_plan = true;
  std::function<void(const model::Batch&)> forward;  // not set: the model's own
};

// The sum of the log-probabilities (nats) of each continuation's tokens, each no more than most_tokens. Where
// both parts are longer than most_tokens + 1 the context loses its first tokens. Padding and what else is in a
// batch change nothing but the rounding, unless the router's experts have a capacity (router.capacity_factor),
// which is that of a batch. Throws RunError where a sum is not finite.
std::vector<double> log_probabilities(const std::vector<Continuation>& continuations, const Passes& passes);

}  // namespace switchyard::tasks
