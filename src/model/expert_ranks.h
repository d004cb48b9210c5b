// The ranks that share a model's experts, as all of its MoE layers see them. One a model (Transformer).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "core/tensor.h"
#include "parallel/token_exchange.h"

namespace switchyard::model {

struct ExpertRanks {
  // The ranks that hold the experts once, in equal parts; null: this rank has all of them.
  const parallel::Group* group = nullptr;
  parallel::TokenExchange::Way way = parallel::TokenExchange::Way::all;
  std::shared_ptr<const parallel::TokenWindows> windows = nullptr;  // for that way, once memory is planned
  // Rows that the experts of a rank can take, as a multiple of an even load.
  double room = std::numeric_limits<double>::infinity();
  bool overlap = false;  // exchanges go on beside what does not need them, where the device can
  // Above 1: tokens go to the experts in so many turns, which share one turn's memory.
  std::int64_t n_rounds = 1;
  // i32: the most rows that a layer has had for this rank at once. Defined where ranks share.
  Tensor largest_need_1{};

  bool share() const { return group != nullptr && group->size() > 1; }
  bool has_windows() const { return share() && way == parallel::TokenExchange::Way::windows; }
  // That come to a rank, of n_tokens of each.
  std::int64_t most_tokens(std::int64_t n_tokens) const { return group->size() * n_tokens; }
  // Rows that there is memory for: at most as many as there can be, at least as many as one token of each rank
  // may need, so that rounds always end. n_tokens: of a rank; n_experts: of all.
  std::int64_t n_rows(std::int64_t n_tokens, std::int64_t n_slots, std::int64_t n_experts) const {
    if (!share()) return n_tokens * n_slots;
    const std::int64_t of_tokens = group->size() * std::min(n_slots, n_experts / group->size());
    const double wanted = std::ceil(room * static_cast<double>(n_tokens * n_slots));
    return std::max(of_tokens,
                    static_cast<std::int64_t>(std::min(wanted, static_cast<double>(of_tokens * n_tokens))));
  }
};

}  // namespace switchyard::model
