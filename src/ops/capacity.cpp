#include "ops/capacity.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// A counting sort of the slots by expert; of an expert that has too many, the list of its slots is partitioned
// by (weight, position). Experts are independent of one another.
template <class T>
void limit_capacity_on_cpu(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                           Tensor weight_TK, Tensor token_T, std::int64_t n_experts, double factor,
                           Context& ctx) {
  const Rows<std::int32_t> expert_rows(expert_TK), kept_expert(kept_expert_TK), skip(token_T);
  const Rows<T> weight_rows(weight_TK), kept_weight(kept_weight_TK);
  const std::int64_t n_tokens = expert_TK.rows(), K = expert_TK.dim(1);
  ScratchScope scope(ctx.scratch);
  std::int32_t* slot = ctx.scratch.take(Shape{n_tokens * K}, DType::i32).as<std::int32_t>();
  std::int32_t* offset = ctx.scratch.take(Shape{n_experts + 1}, DType::i32).as<std::int32_t>();
  std::fill_n(offset, n_experts + 1, 0);
  std::int64_t real_tokens = 0;
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    real_tokens += *skip[t] >= 0;
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int32_t expert = expert_rows[t][k];
      SY_CHECK(expert < n_experts, "token {} names expert {} of {}", t, expert, n_experts);
      kept_expert[t][k] = expert;
      kept_weight[t][k] = weight_rows[t][k];
      if (expert >= 0) ++offset[expert + 1];
    }
  }
  // The small step down undoes the rounding of a product that is a whole number in decimals (1.1 * 10).
  const double exact = factor * static_cast<double>(real_tokens * K) / static_cast<double>(n_experts);
  const double most = std::ceil(exact * (1 - 1e-12));
  const std::int64_t capacity =
      most < static_cast<double>(n_tokens) ? static_cast<std::int64_t>(most) : n_tokens;
  for (std::int64_t e = 0; e < n_experts; ++e) offset[e + 1] += offset[e];
  std::int32_t* next = ctx.scratch.take(Shape{n_experts}, DType::i32).as<std::int32_t>();
  std::copy_n(offset, n_experts, next);
  for (std::int64_t s = 0; s < n_tokens * K; ++s)
    if (const std::int32_t expert = expert_rows[s / K][s % K]; expert >= 0)
      slot[next[expert]++] = static_cast<std::int32_t>(s);

  std::int64_t dropped = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : dropped) if (n_tokens * K >= kParallelElements)
  for (std::int64_t e = 0; e < n_experts; ++e) {
    std::int32_t *first = slot + offset[e], *last = slot + offset[e + 1];
    if (last - first <= capacity) continue;
    const auto weight_of = [&](std::int32_t s) {  // a NaN, which has no place in an order, comes last
      const T weight = weight_rows[s / K][s % K];
      return weight == weight ? weight : -std::numeric_limits<T>::infinity();
    };
    std::nth_element(first, first + capacity, last, [&](std::int32_t a, std::int32_t b) {
      const T weight_a = weight_of(a), weight_b = weight_of(b);
      return weight_a > weight_b || (weight_a == weight_b && a < b);
    });
    for (const std::int32_t* s = first + capacity; s < last; ++s) {
      kept_expert[*s / K][*s % K] = -1;
      kept_weight[*s / K][*s % K] = T(0);
    }
    dropped += last - first - capacity;
  }
  dropped_1.as<std::int32_t>()[0] = static_cast<std::int32_t>(dropped);
}

}  // namespace

void limit_capacity(Tensor kept_expert_TK, Tensor kept_weight_TK, Tensor dropped_1, Tensor expert_TK,
                    Tensor weight_TK, Tensor token_T, std::int64_t n_experts, double factor, Context& ctx) {
  const DType real = weight_TK.dtype();
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(weight_TK), real)(SY_ARG(token_T), DType::i32);
  args(SY_ARG(kept_expert_TK), DType::i32)(SY_ARG(kept_weight_TK), real)(SY_ARG(dropped_1), DType::i32);
  SY_CHECK(factor > 0 && n_experts > 0, "a capacity factor of {} for {} experts", factor, n_experts);
  run<&cuda::limit_capacity>(ctx, real, SY_CPU(limit_capacity_on_cpu), kept_expert_TK, kept_weight_TK,
                             dropped_1, expert_TK, weight_TK, token_T, n_experts, factor);
}

}  // namespace switchyard::ops
