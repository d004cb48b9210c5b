// Rows of tokens that go to the ranks that hold the tokens' experts and come home from them, where each rank's
// device reaches the memory of all others. Nobody is waited for here (parallel/token_windows.h).
//   N places of a group, T tokens of each, S = N T: the tokens of all places, place after place; K slots of a
//   token, D width
#pragma once

#include <span>

#include "ops/operator.h"

namespace switchyard::ops {

constexpr int kMostPlaces = 32;  // a bit each

// Who holds what: place p has experts p * experts_each and on, so many.
struct ExpertPlaces {
  int place = 0;                  // the own one
  std::int64_t experts_each = 1;  // of each place
};

// Below, x_TD, expert_TK (i32; negative: a free slot) and what to_N and from_N hold, [S, D], are contiguous.
// bytes_1 (f64) += the bytes of rows that other places get or give.

// Row place * T + t of to_N[p] := row t of x_TD, for every place p that has an expert of the token. All other
// rows are left alone.
SY_OPERATOR(spread_rows, std::span<const Tensor> to_N, Tensor bytes_1, Tensor x_TD, Tensor expert_TK,
            ExpertPlaces places, Context& ctx);
// out_TD = addend_TD + the sum of the rows place * T + t of from_N by halves of the places (elementwise.h),
// zeros in the place of those that have no expert of the token, which are not read. Sums in float32 where rows
// are bf16, rounded once. addend_TD may be undefined; out_TD may be it.
SY_OPERATOR(collect_rows, Tensor out_TD, Tensor bytes_1, Tensor addend_TD, std::span<const Tensor> from_N,
            Tensor expert_TK, ExpertPlaces places, Context& ctx);

}  // namespace switchyard::ops
