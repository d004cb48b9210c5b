// A thread a position; those that got a target are counted in the same pass, as a sum over positions.
#include "shift_tokens.h"

#include "partials.h"

namespace switchyard::cuda {

namespace {

struct Shift {
  std::int32_t *next_T, *next_target_T;
  const std::int32_t *token_T, *target_T, *kv_begin_T;
  std::int64_t seq_len, ahead;

  __device__ void operator()(std::int64_t t, double (&count)[1]) const {
    const std::int64_t i = t % seq_len, source = t + ahead;
    const bool has_target =
        i + ahead < seq_len && token_T[source] >= 0 && target_T[source] >= 0 && kv_begin_T[source] <= i;
    next_T[t] = has_target ? token_T[source] : -1;
    next_target_T[t] = has_target ? target_T[source] : -1;
    count[0] += has_target ? 1 : 0;
  }
};

}  // namespace

std::int64_t shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T,
                          Tensor kv_begin_T, std::int64_t seq_len, std::int64_t ahead, Context& ctx) {
  const auto ids = [](const Tensor& tensor) { return tensor.as<std::int32_t>(); };
  const Shift shift{ids(next_T), ids(next_target_T), ids(token_T), ids(target_T), ids(kv_begin_T), seq_len,
                    ahead};
  return static_cast<std::int64_t>(sum_rows<1>("shift_tokens", token_T.rows(), ctx, shift)[0]);
}

}  // namespace switchyard::cuda
