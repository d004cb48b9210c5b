#include "ops/moe.h"

#include <algorithm>
#include <limits>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// One thread: T*K integers are a thousandth of the layer's work, and a serial counting sort is stable by
// nature.
void moe_permutation_on_cpu(Tensor count_E, Tensor offset_Ep, Tensor slot_row_TK, Tensor expert_TK,
                            Context& ctx) {
  SY_CHECK(expert_TK.contiguous() && slot_row_TK.contiguous(), "slots are walked as one run of elements");
  const std::int64_t n_slots = expert_TK.numel(), n_experts = count_E.rows();
  const std::int32_t* expert = expert_TK.as<std::int32_t>();
  std::int32_t* count = count_E.as<std::int32_t>();
  std::int32_t* offset = offset_Ep.as<std::int32_t>();
  std::fill_n(count, n_experts, 0);
  for (std::int64_t s = 0; s < n_slots; ++s) {
    SY_CHECK(expert[s] < n_experts, "slot {} names expert {} of {}", s, expert[s], n_experts);
    if (expert[s] >= 0) ++count[expert[s]];
  }
  offset[0] = 0;
  for (std::int64_t e = 0; e < n_experts; ++e) offset[e + 1] = offset[e] + count[e];

  ScratchScope scope(ctx.scratch);
  std::int32_t* next_row = ctx.scratch.take(Shape{n_experts}, DType::i32).as<std::int32_t>();
  std::copy_n(offset, n_experts, next_row);
  for (std::int64_t s = 0; s < n_slots; ++s) {
    slot_row_TK.as<std::int32_t>()[s] = expert[s] >= 0 ? next_row[expert[s]]++ : -1;
  }
}

// Both by one thread, as the sort.
void keep_experts_on_cpu(Tensor expert_TK, std::int64_t first, std::int64_t n) {
  std::int32_t* expert = expert_TK.as<std::int32_t>();
  for (std::int64_t s = 0; s < expert_TK.numel(); ++s) {
    const std::int64_t local = expert[s] - first;
    expert[s] = local >= 0 && local < n ? static_cast<std::int32_t>(local) : -1;
  }
}

void limit_rows_on_cpu(Tensor offset_Ep, Tensor slot_row_TK, Tensor need_1, std::int64_t room) {
  std::int32_t *offset = offset_Ep.as<std::int32_t>(), *need = need_1.as<std::int32_t>();
  const std::int32_t rows = offset[offset_Ep.rows() - 1];
  *need = std::max(*need, rows);
  if (rows <= room) return;
  for (std::int64_t e = 0; e < offset_Ep.rows(); ++e)
    offset[e] = static_cast<std::int32_t>(std::min<std::int64_t>(offset[e], room));
  std::int32_t* slot_row = slot_row_TK.as<std::int32_t>();
  for (std::int64_t s = 0; s < slot_row_TK.numel(); ++s)
    if (slot_row[s] >= room) slot_row[s] = -1;
}

// row_RD[slot_row_TK[t,k]] = x_TD[t]
template <class T>
void copy_to_rows(Tensor row_RD, Tensor x_TD, Tensor slot_row_TK) {
  const std::int64_t n_tokens = x_TD.rows(), K = slot_row_TK.dim(1), D = x_TD.dim(1);
#pragma omp parallel for schedule(static) if (row_RD.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    const std::int32_t* slot_row = slot_row_TK.row<std::int32_t>(t);
    for (std::int64_t k = 0; k < K; ++k)
      if (slot_row[k] >= 0) std::copy_n(x_TD.row<T>(t), D, row_RD.row<T>(slot_row[k]));
  }
}

// out_TD[t] = residual_TD[t] + sum_k row_RD[slot_row_TK[t,k]]
template <class T>
void add_rows(Tensor out_TD, Tensor residual_TD, Tensor row_RD, Tensor slot_row_TK) {
  const std::int64_t n_tokens = out_TD.rows(), K = slot_row_TK.dim(1), D = out_TD.dim(1);
#pragma omp parallel for schedule(static) if (row_RD.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    T* out = out_TD.row<T>(t);
    if (const T* addend = residual_TD.row<T>(t); addend != out) std::copy_n(addend, D, out);
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int32_t r = slot_row_TK.row<std::int32_t>(t)[k];
      if (r < 0) continue;
      const T* row = row_RD.row<T>(r);
#pragma omp simd
      for (std::int64_t d = 0; d < D; ++d) out[d] += row[d];
    }
  }
}

// f(t, k, the slot's row, negative where it is free). By one thread: a number a slot.
template <class F>
void for_each_slot(Tensor slot_row_TK, F&& f) {
  for (std::int64_t t = 0; t < slot_row_TK.rows(); ++t)
    for (std::int64_t k = 0; k < slot_row_TK.dim(1); ++k) f(t, k, slot_row_TK.row<std::int32_t>(t)[k]);
}

template <class T>
void moe_dispatch_forward_on_cpu(Tensor row_RD, Tensor weight_R, Tensor x_TD, Tensor weight_TK,
                                 Tensor slot_row_TK) {
  copy_to_rows<T>(row_RD, x_TD, slot_row_TK);
  for_each_slot(slot_row_TK, [&](std::int64_t t, std::int64_t k, std::int32_t r) {
    if (r >= 0) *weight_R.row<T>(r) = weight_TK.row<T>(t)[k];
  });
}

template <class T>
void moe_dispatch_backward_on_cpu(Tensor dx_TD, Tensor dweight_TK, Tensor drow_RD, Tensor dweight_R,
                                  Tensor slot_row_TK) {
  add_rows<T>(dx_TD, dx_TD, drow_RD, slot_row_TK);
  for_each_slot(slot_row_TK, [&](std::int64_t t, std::int64_t k, std::int32_t r) {
    dweight_TK.row<T>(t)[k] = r >= 0 ? *dweight_R.row<T>(r) : T(0);
  });
}

template <class T>
void moe_combine_forward_on_cpu(Tensor out_TD, Tensor residual_TD, Tensor row_RD, Tensor slot_row_TK) {
  add_rows<T>(out_TD, residual_TD, row_RD, slot_row_TK);
}

template <class T>
void moe_combine_backward_on_cpu(Tensor drow_RD, Tensor dout_TD, Tensor slot_row_TK) {
  copy_to_rows<T>(drow_RD, dout_TD, slot_row_TK);
}

// Tokens, their slots, and rows, as many as there is room for: where the host can look and there is something
// to see, no slot's is beyond.
void check_rows(Signature& args, const Tensor& token_TD, const Tensor& slot_row_TK, const Tensor& row_RD) {
  const DType real = token_TD.dtype();
  args(SY_ARG(token_TD), real)(SY_ARG(slot_row_TK), DType::i32)(SY_ARG(row_RD), real);
  if (slot_row_TK.device() != Device::cpu || slot_row_TK.raw() == nullptr) return;
  for_each_slot(slot_row_TK, [&](std::int64_t t, std::int64_t k, std::int32_t r) {
    SY_CHECK(r < row_RD.rows(), "slot {} of token {} has row {} of {}", k, t, r, row_RD.rows());
  });
}

}  // namespace

void moe_permutation(Tensor count_E, Tensor offset_Ep, Tensor slot_row_TK, Tensor expert_TK, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(count_E), DType::i32)(SY_ARG(offset_Ep), DType::i32);
  args(SY_ARG(expert_TK), DType::i32)(SY_ARG(slot_row_TK), DType::i32);
  SY_CHECK(expert_TK.numel() <= std::numeric_limits<std::int32_t>::max(), "{} slots do not fit 32-bit rows",
           expert_TK.numel());
  run<&cuda::moe_permutation>(ctx, moe_permutation_on_cpu, count_E, offset_Ep, slot_row_TK, expert_TK);
}

void keep_experts(Tensor expert_TK, std::int64_t first, std::int64_t n, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(expert_TK), DType::i32, kContiguous);
  SY_CHECK(first >= 0 && n >= 0, "experts {} to {}", first, first + n);
  run<&cuda::keep_experts>(ctx, keep_experts_on_cpu, expert_TK, first, n);
}

void limit_rows(Tensor offset_Ep, Tensor slot_row_TK, Tensor need_1, std::int64_t room, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(offset_Ep), DType::i32, kContiguous)(SY_ARG(slot_row_TK), DType::i32, kContiguous);
  args(SY_ARG(need_1), DType::i32);
  SY_CHECK(room >= 0 && room <= std::numeric_limits<std::int32_t>::max(), "room for {} rows", room);
  run<&cuda::limit_rows>(ctx, limit_rows_on_cpu, offset_Ep, slot_row_TK, need_1, room);
}

void moe_dispatch_forward(Tensor row_RD, Tensor weight_R, Tensor x_TD, Tensor weight_TK, Tensor slot_row_TK,
                          Context& ctx) {
  const DType statistic = accumulation_dtype(x_TD.dtype());
  Signature args(ctx);
  check_rows(args, x_TD, slot_row_TK, row_RD);
  args(SY_ARG(weight_R), statistic)(SY_ARG(weight_TK), statistic);
  run<&cuda::moe_dispatch_forward>(ctx, x_TD.dtype(), SY_CPU(moe_dispatch_forward_on_cpu), row_RD, weight_R,
                                   x_TD, weight_TK, slot_row_TK);
}

void moe_dispatch_backward(Tensor dx_TD, Tensor dweight_TK, Tensor drow_RD, Tensor dweight_R,
                           Tensor slot_row_TK, Context& ctx) {
  const DType statistic = accumulation_dtype(dx_TD.dtype());
  Signature args(ctx);
  check_rows(args, dx_TD, slot_row_TK, drow_RD);
  args(SY_ARG(dweight_R), statistic)(SY_ARG(dweight_TK), statistic);
  run<&cuda::moe_dispatch_backward>(ctx, dx_TD.dtype(), SY_CPU(moe_dispatch_backward_on_cpu), dx_TD, dweight_TK,
                                    drow_RD, dweight_R, slot_row_TK);
}

void moe_combine_forward(Tensor out_TD, Tensor residual_TD, Tensor row_RD, Tensor slot_row_TK, Context& ctx) {
  Signature args(ctx);
  check_rows(args, out_TD, slot_row_TK, row_RD);
  args(SY_ARG(residual_TD), out_TD.dtype());
  run<&cuda::moe_combine_forward>(ctx, out_TD.dtype(), SY_CPU(moe_combine_forward_on_cpu), out_TD, residual_TD,
                                  row_RD, slot_row_TK);
}

void moe_combine_backward(Tensor drow_RD, Tensor dout_TD, Tensor slot_row_TK, Context& ctx) {
  Signature args(ctx);
  check_rows(args, dout_TD, slot_row_TK, drow_RD);
  run<&cuda::moe_combine_backward>(ctx, dout_TD.dtype(), SY_CPU(moe_combine_backward_on_cpu), drow_RD, dout_TD,
                                   slot_row_TK);
}

}  // namespace switchyard::ops
