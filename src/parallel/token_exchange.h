// How tokens come to the ranks that hold their experts, and what these have made of them comes home: two
// movements, each the other's adjoint,
//   <spread(x), y> = <x, collect(y)>
// Everything is a group's affair: all ranks of it call the same functions in the same order, each with T tokens
// of its own.
//   N ranks of the group, T tokens, K slots a token, S spread tokens: those that have come to this rank, source
//   rank after source rank, of one in ascending order
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/group.h"

namespace switchyard::parallel {

class TokenExchange {
 public:
  // all: every token goes to every rank, whatever its experts; works on any device.
  // rows: a token goes once to each rank that holds one of its experts; asks the host, so that it is of the CPU
  // alone. Both give the same sums, bit for bit: what a rank has no part in adds nothing.
  enum class Way { all, rows };

  TokenExchange(const Group& group, Way way) : group_(group), way_(way) {}

  int place() const { return group_.place(); }
  int size() const { return group_.size(); }
  // The most S that route() returns for T tokens.
  std::int64_t most_tokens(std::int64_t n_tokens) const { return group_.size() * n_tokens; }

  // Where the tokens go, until the next call: expert_TK (i32, contiguous; negative: a free slot), of which
  // place p of the group holds experts p * experts_each and on, so many. Returns S.
  std::int64_t route(Tensor expert_TK, std::int64_t experts_each, Context& ctx);

  // to_SX := the rows of from_TX that have come. Any type; contiguous.
  void spread(Tensor to_SX, Tensor from_TX, Context& ctx) const;
  // out_TX := addend_TX + the sum over ranks of their rows of from_SX, by halves of the places. out_TX may be
  // addend_TX, which may be undefined: nothing is added. On a CPU f32 or f64; contiguous.
  void collect(Tensor out_TX, Tensor addend_TX, Tensor from_SX, Context& ctx) const;

 private:
  // Scratch for rows of all the tokens that may go or come, so that it is as large in every step: how many do
  // differs from step to step.
  Tensor room_for(const Tensor& token_TX, Context& ctx) const;
  void collect_all(Tensor out_TX, Tensor addend_TX, Tensor from_SX, Context& ctx) const;
  void collect_rows(Tensor out_TX, Tensor addend_TX, Tensor from_SX, Context& ctx) const;

  const Group& group_;
  Way way_;
  // Of rows: tokens that this rank sends, place after place; where among them token t of place p is, -1 where
  // it does not go there (at t * N + p); how many go to and come from each place.
  std::vector<std::int32_t> sent_, place_TN_;
  std::vector<std::int64_t> send_N_, receive_N_;
};

}  // namespace switchyard::parallel
