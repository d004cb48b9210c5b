// A thread a position.
#include "ops/shift_tokens.h"

#include "core/shifted_target.h"
#include "for_each_pack.h"

namespace switchyard::ops::cuda {

namespace {

struct Shift {
  std::int32_t *next_T, *next_target_T;
  const std::int32_t *token_T, *target_T, *kv_begin_T;
  std::int64_t seq_len, ahead;

  __device__ void operator()(std::int64_t, std::int64_t t) const {
    const bool has_target = has_shifted_target(token_T, target_T, kv_begin_T, t, seq_len, ahead);
    next_T[t] = has_target ? token_T[t + ahead] : -1;
    next_target_T[t] = has_target ? target_T[t + ahead] : -1;
  }
};

}  // namespace

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead, Context& ctx) {
  const auto ids = [](const Tensor& tensor) { return tensor.as<std::int32_t>(); };
  for_each_pack<1>(
      "shift_tokens", 1, token_T.rows(), ctx,
      Shift{ids(next_T), ids(next_target_T), ids(token_T), ids(target_T), ids(kv_begin_T), seq_len, ahead});
}

}  // namespace switchyard::ops::cuda
