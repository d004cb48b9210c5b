#include "ops/capacity.h"

#include "cpu/capacity.h"
#include "cuda/capacity.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

std::int64_t limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor expert_TK, Tensor weight_TK,
                            Tensor skip_T, std::int64_t n_experts, double factor, Context& ctx) {
  check_like(kept_expert_TK, expert_TK, "kept_expert_TK");
  check_like(kept_weight_TK, weight_TK, "kept_weight_TK");
  check_shape(weight_TK, expert_TK.shape(), "weight_TK");
  check_shape(skip_T, Shape{expert_TK.rows()}, "skip_T");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  check_dtype(skip_T, DType::i32, "skip_T");
  SY_CHECK(factor > 0 && n_experts > 0, "a capacity factor of {} for {} experts", factor, n_experts);
  SY_ON_CUDA(ctx, cuda::limit_capacity(kept_expert_TK, kept_weight_TK, expert_TK, weight_TK, skip_T, n_experts,
                                       factor, ctx));
  std::int64_t dropped = 0;
  with_scalar(weight_TK.dtype(), [&]<class T>() {
    dropped = cpu::limit_capacity<T>(kept_expert_TK, kept_weight_TK, expert_TK, weight_TK, skip_T, n_experts,
                                     factor, ctx);
  });
  return dropped;
}

}  // namespace switchyard::ops
