#include "ops/shift_tokens.h"

#include "core/shifted_target.h"

namespace switchyard::ops {

namespace {

void shift_tokens_on_cpu(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T,
                         Tensor kv_begin_T, std::int64_t seq_len, std::int64_t ahead) {
  const auto* token = token_T.as<std::int32_t>();
  const auto* target = target_T.as<std::int32_t>();
  const auto* kv_begin = kv_begin_T.as<std::int32_t>();
  for (std::int64_t t = 0; t < token_T.rows(); ++t) {
    const bool has_target = has_shifted_target(token, target, kv_begin, t, seq_len, ahead);
    next_T.as<std::int32_t>()[t] = has_target ? token[t + ahead] : -1;
    next_target_T.as<std::int32_t>()[t] = has_target ? target[t + ahead] : -1;
  }
}

}  // namespace

void shift_tokens(Tensor next_T, Tensor next_target_T, Tensor token_T, Tensor target_T, Tensor kv_begin_T,
                  std::int64_t seq_len, std::int64_t ahead, Context& ctx) {
  const DType i32 = DType::i32;
  Signature args(ctx);
  args(SY_ARG(token_T), i32)(SY_ARG(target_T), i32)(SY_ARG(kv_begin_T), i32)(SY_ARG(next_T), i32)(
      SY_ARG(next_target_T), i32);
  SY_CHECK(seq_len >= 1 && args['T'] % seq_len == 0 && ahead >= 1,
           "token_T is {}, for sequences of {} and {} ahead", token_T.shape().to_string(), seq_len, ahead);
  run<&cuda::shift_tokens>(ctx, shift_tokens_on_cpu, next_T, next_target_T, token_T, target_T, kv_begin_T,
                           seq_len, ahead);
}

}  // namespace switchyard::ops
