// How tokens come to the ranks that hold their experts, and what these have made of them comes home: two
// movements, each the other's adjoint,
//   <spread(x), y> = <x, collect(y)>
// Everything is a group's affair: all ranks of it call the same functions in the same order, each with T tokens
// of its own.
//   N ranks of the group, T tokens, K slots a token, S spread tokens: those that have come to this rank, source
//   rank after source rank, of one in ascending order
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "ops/token_rows.h"
#include "parallel/group.h"
#include "parallel/token_windows.h"

namespace switchyard::parallel {

class TokenExchange {
 public:
  // all: every token goes to every rank, whatever its experts; works on any device.
  // rows: a token goes once to each rank that holds one of its experts; asks the host, so that it is of the CPU
  // alone.
  // windows: the same on devices that reach each other's memory, of wide rows; small ones go to every rank.
  // All give the same sums, bit for bit: what a rank has no part in adds nothing.
  enum class Way { all, rows, windows };

  // `windows`, of the same group, outlive this; none but for that way.
  TokenExchange(const Group& group, Way way, const TokenWindows* windows = nullptr)
      : group_(group), way_(way), windows_(windows) {}

  int place() const { return group_.place(); }
  int size() const { return group_.size(); }
  // The most S that route() returns for T tokens.
  std::int64_t most_tokens(std::int64_t n_tokens) const { return group_.size() * n_tokens; }

  // Where the tokens go, until the next call: expert_TK (i32, contiguous, not changed until then; negative: a
  // free slot), of which place p of the group holds experts p * experts_each and on, so many. Returns S.
  std::int64_t route(Tensor expert_TK, std::int64_t experts_each, Context& ctx);

  // Of scratch, or of a window: S rows like those of token_TX, T of which are at most most_T. Of wide rows
  // there are arrivals, which spread() sets, and departures, which collect() takes, one of each at a time, and
  // a spread() between two collects.
  Tensor room(const Tensor& token_TX, std::int64_t most_T, Context& ctx) const {
    return room_for(token_TX, most_T, n_spread_, ctx);
  }
  Tensor arrivals(const Tensor& token_TX, std::int64_t most_T, Context& ctx) const;
  Tensor departures(const Tensor& token_TX, std::int64_t most_T, Context& ctx) const;

  // to_SX := the rows of from_TX that have come; of any type, contiguous. By windows to_SX is of arrivals(),
  // and the rows of tokens that have no expert here are left as they were. What is small comes along with it:
  // to_SX may lie anywhere.
  struct Spread {
    Tensor to_SX, from_TX;
  };
  void spread(Tensor to_SX, Tensor from_TX, Context& ctx) const { spread({to_SX, from_TX}, {}, ctx); }
  void spread(const Spread& wide, std::initializer_list<Spread> small, Context& ctx) const;
  // out_TX := addend_TX + the sum over ranks of their rows of from_SX, by halves of the places. out_TX may be
  // addend_TX, which may be undefined: nothing is added. On a CPU f32 or f64; contiguous. By windows from_SX is
  // of departures(). The same with what is small.
  struct Collect {
    Tensor out_TX, addend_TX, from_SX;
  };
  void collect(Tensor out_TX, Tensor addend_TX, Tensor from_SX, Context& ctx) const {
    collect({out_TX, addend_TX, from_SX}, {}, ctx);
  }
  void collect(const Collect& wide, std::initializer_list<Collect> small, Context& ctx) const;

 private:
  std::int64_t route_rows(Context& ctx);
  // The first `rows` of scratch for all the tokens that may go or come, so that it is as large in every step:
  // how many do differs from step to step.
  Tensor room_for(const Tensor& token_TX, std::int64_t most_T, std::int64_t rows, Context& ctx) const;
  void spread_one(const Spread& rows, Context& ctx) const;
  void collect_one(const Collect& rows, Context& ctx) const;
  void collect_all(const Collect& rows, Context& ctx) const;
  void collect_rows(const Collect& rows, Context& ctx) const;
  ops::ExpertPlaces places() const;

  const Group& group_;
  Way way_;
  const TokenWindows* windows_;
  // As route() has got them, and S.
  Tensor expert_TK_;
  std::int64_t experts_each_ = 0, n_spread_ = 0;
  // Of rows: tokens that this rank sends, place after place; where among them token t of place p is, -1 where
  // it does not go there (at t * N + p); how many go to and come from each place.
  std::vector<std::int32_t> sent_, place_TN_;
  std::vector<std::int64_t> send_N_, receive_N_;
};

}  // namespace switchyard::parallel
