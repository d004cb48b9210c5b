#include "ops/linear.h"

#include <omp.h>

#include <algorithm>
#include <span>

#include "core/device_memory.h"
#include "ops/cpu/e4m3.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/swiglu_row.h"
#include "ops/elementwise.h"
#include "ops/swiglu.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// Where only memory is measured: the copies of operands that E4M3 products make.
void measure_rounded(Context& ctx, const Tensor& a, const Tensor& b) {
  if (!ctx.measures() || ctx.matmul != MatmulType::e4m3) return;
  const ScratchScope scope(ctx.scratch);
  for (const Tensor& operand : {a, b}) (void)ctx.scratch.take(operand.shape(), operand.dtype());
}

// Where products are in E4M3: product() of operands that have been rounded to it, in float or double.
template <class F>
bool multiply_rounded(Context& ctx, F&& product) {
  if (ctx.matmul != MatmulType::e4m3) return false;
  ScratchScope scope(ctx.scratch);
  const Float32Products products(ctx);
  product();
  return true;
}

template <class T>
void linear_forward_on_cpu(Tensor out_TN, Tensor in_TK, Tensor weight_NK, Write write, Context& ctx) {
  if (multiply_rounded(ctx, [&] {
        linear_forward_on_cpu<T>(out_TN, e4m3_along_rows<T>(in_TK, ctx), e4m3_blocks<T>(weight_NK, ctx), write,
                                 ctx);
      }))
    return;
  multiply<T>(ctx.matmul, Trans::no, Trans::yes, out_TN.rows(), out_TN.dim(1), in_TK.dim(1), in_TK.as<T>(),
              in_TK.row_stride(), weight_NK.as<T>(), weight_NK.row_stride(), write == Write::add,
              out_TN.as<T>(), out_TN.row_stride());
}

template <class T>
void linear_backward_input_on_cpu(Tensor din_TK, Tensor dout_TN, Tensor weight_NK, Write write, Context& ctx) {
  if (multiply_rounded(ctx, [&] {
        linear_backward_input_on_cpu<T>(din_TK, e4m3_along_rows<T>(dout_TN, ctx),
                                        e4m3_blocks<T>(weight_NK, ctx), write, ctx);
      }))
    return;
  multiply<T>(ctx.matmul, Trans::no, Trans::no, din_TK.rows(), din_TK.dim(1), dout_TN.dim(1), dout_TN.as<T>(),
              dout_TN.row_stride(), weight_NK.as<T>(), weight_NK.row_stride(), write == Write::add,
              din_TK.as<T>(), din_TK.row_stride());
}

template <class T>
void linear_backward_weight_on_cpu(Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, Context& ctx) {
  if (multiply_rounded(ctx, [&] {
        linear_backward_weight_on_cpu<T>(dweight_NK, e4m3_along_columns<T>(dout_TN, {}, ctx),
                                         e4m3_along_columns<T>(in_TK, {}, ctx), ctx);
      }))
    return;
  multiply<T>(ctx.matmul, Trans::yes, Trans::no, dweight_NK.dim(0), dweight_NK.dim(1), in_TK.rows(),
              dout_TN.as<T>(), dout_TN.row_stride(), in_TK.as<T>(), in_TK.row_stride(), true,
              dweight_NK.as<T>(), dweight_NK.row_stride());
}

// An expert's product is cut into pieces of this many rows (of the routed tokens, or of the weight's gradient),
// so that one popular expert does not keep a single thread busy. Pieces write disjoint outputs: the schedule
// does not show in the result. Every piece rounds its weight anew to bfloat16, so there pieces are longer.
std::int64_t piece_rows(MatmulType type) { return type == MatmulType::bf16 ? bf16_piece_rows() : 128; }

// Rows [first, first + count) of an expert.
struct RowPiece {
  std::int32_t expert, first, count;
};

// The pieces of all experts' row ranges.
std::span<const RowPiece> cut_rows(Tensor offset_Ep, Context& ctx) {
  const std::int32_t* offset = offset_Ep.as<std::int32_t>();
  const std::int64_t n_experts = offset_Ep.rows() - 1;
  const auto most = static_cast<std::int32_t>(piece_rows(ctx.matmul));
  auto* const piece = reinterpret_cast<RowPiece*>(
      ctx.scratch.take(Shape{offset[n_experts] / most + n_experts, 3}, DType::i32).raw());
  std::size_t n = 0;
  for (std::int32_t e = 0; e < n_experts; ++e)
    for (std::int32_t first = offset[e]; first < offset[e + 1]; first += most)
      piece[n++] = {e, first, std::min(most, offset[e + 1] - first)};
  return {piece, n};
}

std::int64_t routed_rows(const Tensor& offset_Ep) { return offset_Ep.as<std::int32_t>()[offset_Ep.rows() - 1]; }

// out rows of every piece = in rows op(weight of the piece's expert)
template <class T>
void multiply_pieces(Tensor out, Tensor in, Tensor weight_ENK, Trans trans_weight, Tensor offset_Ep,
                     Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const std::span<const RowPiece> pieces = cut_rows(offset_Ep, ctx);
  // Few rows (a token that is generated): the pieces are cut in columns too, so that every thread has some.
  const std::int64_t width = routed_rows(offset_Ep) <= kSkinnyRows ? kSkinnyColumns : out.dim(1);
  const std::int64_t pieces_across = (out.dim(1) + width - 1) / width;
  const std::int64_t weight_column = trans_weight == Trans::yes ? weight_ENK.dim(2) : 1;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    for (std::int64_t across = 0; across < pieces_across; ++across) {
      const auto [expert, row, rows] = pieces[p];
      const std::int64_t first = across * width;
      multiply<T>(ctx.matmul, Trans::no, trans_weight, rows, std::min(width, out.dim(1) - first), in.dim(1),
                  in.row<T>(row), in.row_stride(), weight_ENK.row<T>(expert) + first * weight_column,
                  weight_ENK.dim(2), false, out.row<T>(row) + first, out.row_stride());
    }
  }
}

// The experts' rows, without those behind them.
template <class T>
Tensor e4m3_of_experts(const Tensor& x_RK, const Tensor& offset_Ep, Context& ctx) {
  return e4m3_along_rows<T>(x_RK.slice(0, routed_rows(offset_Ep)), ctx);
}

template <class T>
void grouped_linear_forward_on_cpu(Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep,
                                   Context& ctx) {
  if (multiply_rounded(ctx, [&] {
        multiply_pieces<T>(out_RN, e4m3_of_experts<T>(in_RK, offset_Ep, ctx), e4m3_blocks<T>(weight_ENK, ctx),
                           Trans::yes, offset_Ep, ctx);
      }))
    return;
  multiply_pieces<T>(out_RN, in_RK, weight_ENK, Trans::yes, offset_Ep, ctx);
}

template <class T>
void grouped_linear_backward_input_on_cpu(Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
                                          Context& ctx) {
  if (multiply_rounded(ctx, [&] {
        multiply_pieces<T>(din_RK, e4m3_of_experts<T>(dout_RN, offset_Ep, ctx), e4m3_blocks<T>(weight_ENK, ctx),
                           Trans::no, offset_Ep, ctx);
      }))
    return;
  multiply_pieces<T>(din_RK, dout_RN, weight_ENK, Trans::no, offset_Ep, ctx);
}

template <class T>
void grouped_linear_backward_weight_on_cpu(Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
                                           Context& ctx) {
  if (multiply_rounded(ctx, [&] {
        grouped_linear_backward_weight_on_cpu<T>(dweight_ENK, e4m3_along_columns<T>(dout_RN, offset_Ep, ctx),
                                                 e4m3_along_columns<T>(in_RK, offset_Ep, ctx), offset_Ep, ctx);
      }))
    return;
  const std::int32_t* offset = offset_Ep.as<std::int32_t>();
  const std::int64_t n_experts = dweight_ENK.dim(0), n = dweight_ENK.dim(1), k = dweight_ENK.dim(2);
  const std::int64_t most = piece_rows(ctx.matmul), pieces_each = (n + most - 1) / most;
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int64_t p = 0; p < n_experts * pieces_each; ++p) {
    const std::int64_t e = p / pieces_each, first = p % pieces_each * most;
    const std::int64_t rows = offset[e + 1] - offset[e];
    if (rows == 0) continue;
    multiply<T>(ctx.matmul, Trans::yes, Trans::no, std::min(most, n - first), k, rows,
                dout_RN.row<T>(offset[e]) + first, dout_RN.row_stride(), in_RK.row<T>(offset[e]),
                in_RK.row_stride(), true, dweight_ENK.row<T>(e) + first * k, k);
  }
}

void linear_forward_add_on_cpu(Tensor out_TN, Tensor addend_TN, Tensor in_TK, Tensor weight_NK, Context& ctx) {
  if (addend_TN.raw() != out_TN.raw()) copy(out_TN, addend_TN, ctx);
  linear_forward(out_TN, in_TK, weight_NK, Write::add, ctx);
}

// Whether what follows a product is done piece by piece, while the product is in the cache.
bool works_on_pieces(const Tensor& offset_Ep, const Context& ctx) {
  return ctx.matmul != MatmulType::e4m3 && (ctx.measures() || routed_rows(offset_Ep) > kSkinnyRows);
}

template <class T>
void grouped_gate_up_forward_on_cpu(Tensor act_RF, Tensor gate_up_R2F, Tensor in_RK, Tensor weight_E2FK,
                                    Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  if (!works_on_pieces(offset_Ep, ctx)) {
    grouped_linear_forward(gate_up_R2F, in_RK, weight_E2FK, offset_Ep, ctx);
    return expert_swiglu_forward(act_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
  }
  const ScratchScope scope(ctx.scratch);
  const std::span<const RowPiece> pieces = cut_rows(offset_Ep, ctx);
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    const auto [expert, first, rows] = pieces[p];
    multiply<T>(ctx.matmul, Trans::no, Trans::yes, rows, gate_up_R2F.dim(1), in_RK.dim(1), in_RK.row<T>(first),
                in_RK.row_stride(), weight_E2FK.row<T>(expert), weight_E2FK.dim(2), false,
                gate_up_R2F.row<T>(first), gate_up_R2F.row_stride());
    for (std::int64_t r = first; r < first + rows; ++r)
      swiglu_forward_row(act_RF.row<T>(r), gate_up_R2F.row<T>(r), act_RF.dim(1), *weight_R.row<T>(r));
  }
}

template <class T>
void grouped_down_backward_on_cpu(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RN, Tensor weight_ENF,
                                  Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const ScratchScope scope(ctx.scratch);
  const std::int64_t width = weight_ENF.dim(2);
  if (!works_on_pieces(offset_Ep, ctx)) {
    const Tensor dact_RF = ctx.scratch.take(Shape{dout_RN.rows(), width}, dout_RN.dtype());
    grouped_linear_backward_input(dact_RF, dout_RN, weight_ENF, offset_Ep, ctx);
    return expert_swiglu_backward(dgate_up_R2F, dweight_R, dact_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
  }
  const std::span<const RowPiece> pieces =
      ctx.measures() ? std::span<const RowPiece>() : cut_rows(offset_Ep, ctx);
  const Tensor dact_XPF =
      ctx.scratch.take(Shape{omp_get_max_threads(), piece_rows(ctx.matmul), width}, dout_RN.dtype());
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    const auto [expert, first, rows] = pieces[p];
    T* const dact_PF = dact_XPF.row<T>(omp_get_thread_num());
    multiply<T>(ctx.matmul, Trans::no, Trans::no, rows, width, dout_RN.dim(1), dout_RN.row<T>(first),
                dout_RN.row_stride(), weight_ENF.row<T>(expert), width, false, dact_PF, width);
    for (std::int64_t r = first; r < first + rows; ++r)
      *dweight_R.row<T>(r) = swiglu_backward_row(dgate_up_R2F.row<T>(r), dact_PF + (r - first) * width,
                                                 gate_up_R2F.row<T>(r), width, *weight_R.row<T>(r));
  }
}

// The dtype of a product of operands of `operand`: theirs, or that of their sums.
DType product_type(const Tensor& product, DType operand) {
  SY_CHECK(product.dtype() == operand || product.dtype() == accumulation_dtype(operand),
           "a product of {} is written as {}", name_of(operand), name_of(product.dtype()));
  return product.dtype();
}

// What profiles are told: the FLOPs of so many rows times a matrix of so many elements.
double product_flops(std::int64_t rows, std::int64_t matrix) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(matrix);
}
// Rows that experts have, of those that there is room for. Waits for a device.
std::int64_t rows_of_experts(const Tensor& offset_Ep) {
  return HostCopy(offset_Ep)->as<std::int32_t>()[offset_Ep.rows() - 1];
}
// Bytes of the rows that no expert has: none of them is touched.
std::int64_t unrouted_bytes(const Tensor& x_RK, const Tensor& offset_Ep) {
  return x_RK.slice(rows_of_experts(offset_Ep), x_RK.rows() - rows_of_experts(offset_Ep)).nbytes();
}
// Bytes of the weights of experts without rows: nor are these.
std::int64_t idle_bytes(const Tensor& weight_ENK, const Tensor& offset_Ep) {
  const HostCopy offsets(offset_Ep);
  const std::int32_t* offset = offsets->as<std::int32_t>();
  std::int64_t idle = 0;
  for (std::int64_t e = 0; e < weight_ENK.rows(); ++e) idle += offset[e + 1] == offset[e] ? 1 : 0;
  return idle * weight_ENK.row_size() * size_of(weight_ENK.dtype());
}

}  // namespace

bool has_fast_matmul(MatmulType type, Device device) {
  switch (device) {
    case Device::cpu:
      return type == MatmulType::f32 || (type == MatmulType::bf16 && cpu::has_bf16_products());
    case Device::cuda:
      return true;
  }
  return false;
}

std::string e4m3_unavailable_reason(Device device) {
  if constexpr (kHasCuda) {
    if (device == Device::cuda) return cuda::e4m3_unavailable_reason();
  }
  return "";
}

void linear_forward(Tensor out_TN, Tensor in_TK, Tensor weight_NK, Write write, Context& ctx) {
  const DType operand = in_TK.dtype(), product = product_type(out_TN, operand);
  Signature args(ctx);
  args(SY_ARG(in_TK), operand)(SY_ARG(weight_NK), operand)(SY_ARG(out_TN), product);
  args.multiplies([&] { return product_flops(in_TK.rows(), weight_NK.numel()); });
  args.also_moves([&] { return write == Write::add ? out_TN.nbytes() : 0; });
  measure_rounded(ctx, in_TK, weight_NK);
  run<&cuda::linear_forward>(ctx, product, SY_CPU(linear_forward_on_cpu), out_TN, in_TK, weight_NK, write);
}

void linear_forward_add(Tensor out_TN, Tensor addend_TN, Tensor in_TK, Tensor weight_NK, Context& ctx) {
  const DType operand = in_TK.dtype(), product = product_type(out_TN, operand);
  Signature args(ctx);
  args(SY_ARG(in_TK), operand)(SY_ARG(weight_NK), operand)(SY_ARG(out_TN), product)(SY_ARG(addend_TN), product);
  args.multiplies([&] { return product_flops(in_TK.rows(), weight_NK.numel()); });
  run<&cuda::linear_forward_add>(ctx, linear_forward_add_on_cpu, out_TN, addend_TN, in_TK, weight_NK);
}

void linear_backward_input(Tensor din_TK, Tensor dout_TN, Tensor weight_NK, Write write, Context& ctx) {
  const DType operand = dout_TN.dtype(), product = product_type(din_TK, operand);
  Signature args(ctx);
  args(SY_ARG(dout_TN), operand)(SY_ARG(weight_NK), operand)(SY_ARG(din_TK), product);
  args.multiplies([&] { return product_flops(dout_TN.rows(), weight_NK.numel()); });
  args.also_moves([&] { return write == Write::add ? din_TK.nbytes() : 0; });
  measure_rounded(ctx, dout_TN, weight_NK);
  run<&cuda::linear_backward_input>(ctx, product, SY_CPU(linear_backward_input_on_cpu), din_TK, dout_TN,
                                    weight_NK, write);
}

void linear_backward_weight(Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, Context& ctx) {
  const DType operand = dout_TN.dtype(), sum = accumulation_dtype(operand);
  Signature args(ctx);
  args(SY_ARG(dout_TN), operand)(SY_ARG(in_TK), operand)(SY_ARG(dweight_NK), sum);
  args.multiplies([&] { return product_flops(dout_TN.rows(), dweight_NK.numel()); });
  args.also_moves([&] { return dweight_NK.nbytes(); });
  measure_rounded(ctx, dout_TN, in_TK);
  run<&cuda::linear_backward_weight>(ctx, sum, SY_CPU(linear_backward_weight_on_cpu), dweight_NK, dout_TN,
                                     in_TK);
}

void grouped_linear_forward(Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep, Context& ctx) {
  const DType operand = in_RK.dtype(), product = product_type(out_RN, operand);
  Signature args(ctx);
  args(SY_ARG(in_RK), operand)(SY_ARG(weight_ENK), operand, kContiguous)(SY_ARG(out_RN), product);
  args(SY_ARG(offset_Ep), DType::i32);
  args.multiplies([&] { return product_flops(rows_of_experts(offset_Ep), weight_ENK.row_size()); });
  args.also_moves([&] {
    return -unrouted_bytes(in_RK, offset_Ep) - unrouted_bytes(out_RN, offset_Ep) -
           idle_bytes(weight_ENK, offset_Ep);
  });
  measure_rounded(ctx, in_RK, weight_ENK);
  run<&cuda::grouped_linear_forward>(ctx, product, SY_CPU(grouped_linear_forward_on_cpu), out_RN, in_RK,
                                     weight_ENK, offset_Ep);
}

void grouped_gate_up_forward(Tensor act_RF, Tensor gate_up_R2F, Tensor in_RK, Tensor weight_E2FK,
                             Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const DType operand = in_RK.dtype(), product = product_type(gate_up_R2F, operand);
  Signature args(ctx);
  args(SY_ARG(in_RK), operand)(SY_ARG(act_RF), product)(SY_ARG(gate_up_R2F), product);
  args(SY_ARG(weight_E2FK), operand, kContiguous)(SY_ARG(offset_Ep), DType::i32);
  args(SY_ARG(weight_R), accumulation_dtype(product));
  args.multiplies([&] { return product_flops(rows_of_experts(offset_Ep), weight_E2FK.row_size()); });
  args.also_moves([&] {
    return -unrouted_bytes(in_RK, offset_Ep) - unrouted_bytes(act_RF, offset_Ep) -
           unrouted_bytes(gate_up_R2F, offset_Ep) - idle_bytes(weight_E2FK, offset_Ep);
  });
  run<&cuda::grouped_gate_up_forward>(ctx, product, SY_CPU(grouped_gate_up_forward_on_cpu), act_RF, gate_up_R2F,
                                      in_RK, weight_E2FK, weight_R, offset_Ep);
}

void grouped_linear_backward_input(Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
                                   Context& ctx) {
  const DType operand = dout_RN.dtype(), product = product_type(din_RK, operand);
  Signature args(ctx);
  args(SY_ARG(dout_RN), operand)(SY_ARG(weight_ENK), operand, kContiguous)(SY_ARG(din_RK), product);
  args(SY_ARG(offset_Ep), DType::i32);
  args.multiplies([&] { return product_flops(rows_of_experts(offset_Ep), weight_ENK.row_size()); });
  args.also_moves([&] {
    return -unrouted_bytes(dout_RN, offset_Ep) - unrouted_bytes(din_RK, offset_Ep) -
           idle_bytes(weight_ENK, offset_Ep);
  });
  measure_rounded(ctx, dout_RN, weight_ENK);
  run<&cuda::grouped_linear_backward_input>(ctx, product, SY_CPU(grouped_linear_backward_input_on_cpu), din_RK,
                                            dout_RN, weight_ENK, offset_Ep);
}

void grouped_down_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RN, Tensor weight_ENF,
                           Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const DType real = dout_RN.dtype(), statistic = accumulation_dtype(real);
  Signature args(ctx);
  args(SY_ARG(dout_RN), real)(SY_ARG(weight_ENF), weight_ENF.dtype(), kContiguous)(SY_ARG(offset_Ep),
                                                                                   DType::i32);
  args(SY_ARG(gate_up_R2F), gate_up_R2F.dtype())(SY_ARG(dgate_up_R2F), gate_up_R2F.dtype());
  args(SY_ARG(weight_R), statistic)(SY_ARG(dweight_R), statistic);
  args.multiplies([&] { return product_flops(rows_of_experts(offset_Ep), weight_ENF.row_size()); });
  args.also_moves([&] {
    return -unrouted_bytes(dout_RN, offset_Ep) - unrouted_bytes(gate_up_R2F, offset_Ep) -
           unrouted_bytes(dgate_up_R2F, offset_Ep) - idle_bytes(weight_ENF, offset_Ep);
  });
  measure(ctx, real, SY_CPU(grouped_down_backward_on_cpu), dgate_up_R2F, dweight_R, dout_RN, weight_ENF,
          gate_up_R2F, weight_R, offset_Ep);
  run<&cuda::grouped_down_backward>(ctx, real, SY_CPU(grouped_down_backward_on_cpu), dgate_up_R2F, dweight_R,
                                    dout_RN, weight_ENF, gate_up_R2F, weight_R, offset_Ep);
}

void grouped_linear_backward_weight(Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
                                    Context& ctx) {
  const DType operand = dout_RN.dtype(), sum = accumulation_dtype(operand);
  Signature args(ctx);
  args(SY_ARG(dout_RN), operand)(SY_ARG(in_RK), operand)(SY_ARG(dweight_ENK), sum, kContiguous);
  args(SY_ARG(offset_Ep), DType::i32);
  args.multiplies([&] { return product_flops(rows_of_experts(offset_Ep), dweight_ENK.row_size()); });
  args.also_moves([&] {
    return dweight_ENK.nbytes() - unrouted_bytes(dout_RN, offset_Ep) - unrouted_bytes(in_RK, offset_Ep) -
           2 * idle_bytes(dweight_ENK, offset_Ep);  // neither read nor written
  });
  measure_rounded(ctx, dout_RN, in_RK);
  run<&cuda::grouped_linear_backward_weight>(ctx, sum, SY_CPU(grouped_linear_backward_weight_on_cpu),
                                             dweight_ENK, dout_RN, in_RK, offset_Ep);
}

}  // namespace switchyard::ops
