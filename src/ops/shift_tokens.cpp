#include "ops/shift_tokens.h"

#include "cpu/shift_tokens.h"
#include "cuda/shift_tokens.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead, Context& ctx) {
  check_dtype(token_T, DType::i32, "token_T");
  check_like(target_T, token_T, "target_T");
  check_like(kv_begin_T, token_T, "kv_begin_T");
  check_like(next_T, token_T, "next_T");
  check_like(next_target_T, token_T, "next_target_T");
  SY_CHECK(token_T.shape().rank() == 1 && seq_len >= 1 && token_T.rows() % seq_len == 0 && ahead >= 1,
           "token_T is {}, for sequences of {} and {} ahead", token_T.shape().to_string(), seq_len, ahead);
  SY_ON_CUDA(ctx,
             cuda::shift_tokens(next_T, next_target_T, token_T, target_T, kv_begin_T, seq_len, ahead, ctx));
  cpu::shift_tokens(next_T, next_target_T, token_T, target_T, kv_begin_T, seq_len, ahead);
}

}  // namespace switchyard::ops
