#include "ops/capacity.h"

#include "cpu/capacity.h"
#include "cuda/capacity.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

void limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                    Tensor weight_TK, Tensor skip_T, std::int64_t n_experts, double factor, Context& ctx) {
  check_like(kept_expert_TK, expert_TK, "kept_expert_TK");
  check_like(kept_weight_TK, weight_TK, "kept_weight_TK");
  check_shape(weight_TK, expert_TK.shape(), "weight_TK");
  check_shape(skip_T, Shape{expert_TK.rows()}, "skip_T");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  check_dtype(skip_T, DType::i32, "skip_T");
  check_shape(dropped_1, Shape{1}, "dropped_1");
  check_dtype(dropped_1, DType::i32, "dropped_1");
  SY_CHECK(factor > 0 && n_experts > 0, "a capacity factor of {} for {} experts", factor, n_experts);
  SY_ON_CUDA(ctx, cuda::limit_capacity(kept_expert_TK, kept_weight_TK, dropped_1, expert_TK, weight_TK, skip_T,
                                       n_experts, factor, ctx));
  with_scalar(weight_TK.dtype(), [&]<class T>() {
    cpu::limit_capacity<T>(kept_expert_TK, kept_weight_TK, dropped_1, expert_TK, weight_TK, skip_T, n_experts,
                           factor, ctx);
  });
}

}  // namespace switchyard::ops
