// Loss and expert load of a model over token streams. Windows of seq_len inputs follow one another; every token
// of a stream but its first is predicted exactly once, and the last window may be short.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/context.h"
#include "core/error.h"
#include "model/cost.h"
#include "model/transformer.h"
#include "parallel/group.h"
#include "train/expert_load.h"
#include "train/token_data.h"

namespace switchyard::train {

struct EvalSettings {
  std::int64_t seq_len;
  std::int64_t batch;                       // windows at once
  std::int64_t max_tokens = 0;              // predicted tokens of each domain at most; 0: all
  std::optional<std::int64_t> begin_token;  // set: attention stops at document borders
  // Not empty: of max_tokens times the domains a domain has this share, rounded to whole windows (at least one,
  // at most what it has), which are spread evenly over it. Adds up to 1.
  std::vector<double> share_of_domain{};
};

struct DomainLoss {
  std::string name;
  double loss = 0;                     // nats a token
  std::int64_t tokens = 0;             // predicted
  std::optional<data::TextSize> text;  // of these tokens; none where no meta.json beside the shards says it
};

struct EvalResult {
  double loss = 0;                          // nats a token, the mean over the tokens of all domains
  std::int64_t tokens = 0;                  // predicted
  std::optional<data::TextSize> text = {};  // of all domains; none where that of one is not known
  double seconds = 0;
  std::vector<DomainLoss> domains;
  LoadCounts load;
  model::TokenCounts counts{};  // of all windows
};

// Of a loss of so many nats a token; none where the size of the text is not known, or 0.
std::optional<double> bits_per_byte(double loss, std::int64_t tokens,
                                    const std::optional<data::TextSize>& text);

// The loss is not finite: of weights that have diverged.
class DivergedError : public RunError {
 public:
  using RunError::RunError;
};

// The model is planned for settings.batch x settings.seq_len. Batches of windows are divided among the ranks of
// `all`, which evaluate the same number of batches, the last ones of padding; losses are added window by
// window, so that the result does not depend on the number of ranks. Throws DivergedError, on every rank.
EvalResult evaluate(model::Transformer& model, const std::vector<Domain>& domains, const EvalSettings& settings,
                    Context& ctx, const parallel::Group& all);

}  // namespace switchyard::train
