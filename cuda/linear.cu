// Dense products go to cuBLASLt, which knows each device best. Grouped ones are one launch for all experts
// (gemm_tile.h): blocks find their expert and rows in offset_Ep themselves, so that the host need not know the
// counts. The grid has room for the worst split of the rows; blocks without a tile leave at once. Operands f32,
// or all bf16; outputs and gradients of inputs are of the operands' type or f32, gradients of weights and
// weight_R always f32. Sums are in f32. f32 operands are multiplied as they are (MatmulType::f32, no TF32) or
// rounded to bf16 on the way (MatmulType::bf16). MatmulType::e4m3 is gemm_e4m3.cu.
#include "ops/linear.h"

#include <fmt/format.h>

#include "gemm_tile.h"
#include "ops/swiglu.h"
#ifndef SWITCHYARD_SIMT
#include "gemm.h"
#endif

namespace switchyard::ops::cuda {

namespace {

int int_of(std::int64_t n) {
  SY_CHECK(n <= 0x7fffffff - kTile, "a product with a dimension of {}", n);
  return static_cast<int>(n);
}

template <class F>
void with_layout(GemmLayout layout, F&& f) {
  switch (layout) {
    case GemmLayout::nt:
      return f.template operator()<GemmLayout::nt>();
    case GemmLayout::nn:
      return f.template operator()<GemmLayout::nn>();
    case GemmLayout::tn:
      return f.template operator()<GemmLayout::tn>();
  }
}

template <class T>
Rows<T> rows_of_matrix(const Matrix& m) {
  SY_CHECK(m.dtype == DTypeOf<std::remove_const_t<T>>::value, "a matrix of {}", name_of(m.dtype));
  return {static_cast<T*>(m.data), m.stride};
}

struct Groups {
  const int* offset_Ep = nullptr;  // null: no groups
  std::int64_t n_experts = 0;
  const int* n_rows() const { return offset_Ep == nullptr ? nullptr : offset_Ep + n_experts; }
};

// to_RC = from_RC, and zeros behind each row, up to the next whole chunk. Of the first *n_rows rows, if n_rows
// is not null.
template <int kSize>
__global__ void __launch_bounds__(kBlockThreads)
    pad_rows_kernel(Rows<bf16> to_RC, Rows<const bf16> from_RC, const int* n_rows, std::int64_t most_rows,
                    int columns) {
  const int chunks = (columns + kChunk - 1) / kChunk;
  const std::int64_t thread = index_of_thread(), r = thread / chunks;
  if (r >= (n_rows != nullptr ? std::int64_t{*n_rows} : most_rows)) return;
  const int first = static_cast<int>(thread % chunks) * kChunk;
  Elements<bf16, kChunk> chunk{};
  SY_UNROLL
  for (int i = 0; i < kChunk; i += kSize) {
    if (first + i >= columns) continue;
    const Elements<bf16, kSize> some = load<kSize>(from_RC[r] + first + i);
    for (int j = 0; j < kSize; ++j) chunk.element[i + j] = some.element[j];
  }
  store<kChunk>(to_RC[r] + first, chunk);
}

// An operand whose rows begin at multiples of 16 bytes, as tensor cores are fed: itself, or a copy in scratch
// space. It costs a pass over the operand; without it each element goes through registers by itself.
Matrix with_aligned_rows(const char* op, const Matrix& m, const int* n_rows, Context& ctx) {
  if (m.dtype != DType::bf16 || m.rows_begin_at(16) || m.matrices * m.rows * m.columns == 0 ||
      (m.matrices > 1 && m.matrix_stride != m.rows * m.stride))
    return m;
  const std::int64_t rows = m.matrices * m.rows, chunks = ceil_div(m.columns, kChunk);
  const Tensor copy_RC = ctx.scratch.take({rows, chunks * kChunk}, DType::bf16);
  const auto copy = [&](auto kernel) {
    launch(op, kernel, one_thread_each(rows * chunks), ctx, rows_of<bf16>(copy_RC),
           rows_of_matrix<const bf16>(m), n_rows, rows, int_of(m.columns));
  };
  m.is_of_pieces(2) ? copy(pad_rows_kernel<2>) : copy(pad_rows_kernel<1>);
  Matrix aligned = m;
  aligned.data = copy_RC.raw();
  aligned.stride = chunks * kChunk;
  aligned.matrix_stride = m.rows * aligned.stride;
  return aligned;
}

// c = a b, plus the addend where it is defined.
template <class T, class Out>
Product<T, Out> make_product(GemmLayout layout, const Matrix& c, const Matrix& a, const Matrix& b,
                             const Tensor& addend, const Groups& groups) {
  const std::int64_t k = a_along_k(layout) ? a.columns : a.rows;
  std::int64_t tiles_m = ceil_div(c.rows, kTile);
  std::int64_t expert_stride = 0;
  if (groups.offset_Ep != nullptr) {
    // Rows of experts: every expert may have a tile that is not full.
    tiles_m =
        a_along_k(layout) ? c.rows / kTile + std::min(c.rows, groups.n_experts) : tiles_m * groups.n_experts;
    expert_stride = a_along_k(layout) ? b.matrix_stride : c.matrix_stride;
  }
  const std::int64_t tiles_n = ceil_div(c.columns, kTile);
  Product<T, Out> product{.a = rows_of_matrix<const T>(a),
                          .b = rows_of_matrix<const T>(b),
                          .c_MN = rows_of_matrix<Out>(c),
                          .m = int_of(c.rows),
                          .n = int_of(c.columns),
                          .k = int_of(k),
                          .tiles_m = int_of(tiles_m),
                          .tiles_n = int_of(tiles_n),
                          .offset_Ep = groups.offset_Ep,
                          .n_experts = int_of(groups.n_experts),
                          .expert_stride = expert_stride};
  if (addend.defined()) product.addend_MN = rows_of_matrix<const Out>(addend);
  return product;
}
template <class T, class Out>
unsigned grid_of(const Product<T, Out>& product) {
  return blocks(std::int64_t{product.tiles_m} * product.tiles_n);
}

template <class T, class Out>
void launch_tiles(const char* op, GemmLayout layout, const Matrix& c, const Matrix& a, const Matrix& b,
                  const Tensor& addend, const Groups& groups, Context& ctx) {
  const auto product = make_product<T, Out>(layout, c, a, b, addend, groups);
  const unsigned grid = grid_of(product);
  with_layout(layout, [&]<GemmLayout kLayout>() {
    if constexpr (std::is_same_v<T, float>) {
      if (ctx.matmul == MatmulType::f32)
        return launch(op, float_kernel<kLayout>, {grid, kFloatThreads}, ctx, product);
    }
    const auto start = [&](auto kernel) {
      launch(op, kernel, {grid, kMmaThreads, kMmaSharedBytes}, ctx, product);
    };
    const auto reads_packs = [](const Matrix& m) {
      return m.rows_begin_at(16) && (m.dtype == DType::bf16 || m.packs());
    };
    const bool writes_packs = c.is_of_pieces(4) && (!addend.defined() || Matrix(addend).is_of_pieces(4));
    if (!reads_packs(a) || !reads_packs(b)) return start(mma_kernel<T, Out, kLayout, false, false>);
    if (!writes_packs) return start(mma_kernel<T, Out, kLayout, true, false>);
    start(mma_kernel<T, Out, kLayout, true, true>);
  });
}

void multiply_in_tiles(const char* op, GemmLayout layout, const Matrix& c, const Matrix& any_a,
                       const Matrix& any_b, const Tensor& addend, const Groups& groups, Context& ctx) {
  // Sums of nothing are the same in any precision.
  const auto has_elements = [](const Matrix& m) { return m.matrices * m.rows * m.columns > 0; };
  if (ctx.matmul == MatmulType::e4m3 && has_elements(c) && has_elements(any_a) && has_elements(any_b))
    return e4m3_multiply(op, layout, c, any_a, any_b, addend, groups.offset_Ep, ctx);
  ScratchScope scope(ctx.scratch);
  const Matrix a = with_aligned_rows(op, any_a, groups.n_rows(), ctx);
  const Matrix b = with_aligned_rows(op, any_b, a_along_k(layout) ? nullptr : groups.n_rows(), ctx);
  const bool in_place = addend.defined() && addend.raw() == c.data;
  if ((in_place || !addend.defined()) && wgmma_multiply(op, layout, c, a, b, in_place, groups.offset_Ep, ctx))
    return;
  with_element(a.dtype, [&]<class T>() {
    if (c.dtype == DType::f32) {
      launch_tiles<T, float>(op, layout, c, a, b, addend, groups, ctx);
    } else {
      launch_tiles<T, T>(op, layout, c, a, b, addend, groups, ctx);
    }
  });
}

void multiply(const char* op, GemmLayout layout, const Tensor& c_MN, const Tensor& a, const Tensor& b,
              const Tensor& addend, Context& ctx) {
#ifndef SWITCHYARD_SIMT
  // Operands to be rounded are rounded by the tile kernel; sums of nothing are left to it too.
  const bool as_they_are =
      ctx.matmul == MatmulType::f32 || (ctx.matmul == MatmulType::bf16 && a.dtype() == DType::bf16);
  ScratchScope scope(ctx.scratch);
  if (as_they_are && a.numel() > 0 && b.numel() > 0 &&
      cublaslt_multiply(op, layout, c_MN, with_aligned_rows(op, a, nullptr, ctx),
                        with_aligned_rows(op, b, nullptr, ctx), addend, ctx))
    return;
#endif
  multiply_in_tiles(op, layout, c_MN, a, b, addend, {}, ctx);
}

// dweight_R[r] = the sum of partial_RP[r], for the rows that there are.
__global__ void __launch_bounds__(kBlockThreads)
    sum_row_kernel(float* dweight_R, Rows<const float> partial_RP, const int* n_rows, int n_partials) {
  const std::int64_t r = index_of_thread();
  if (r >= *n_rows) return;
  float sum = 0;
  for (int i = 0; i < n_partials; ++i) sum += partial_RP[r][i];
  dweight_R[r] = sum;
}

// What is added to a product's output.
Tensor addend_of(const Tensor& c_MN, Write write) { return write == Write::add ? c_MN : Tensor(); }

Groups groups_of(const Tensor& offset_Ep) { return {offset_Ep.as<std::int32_t>(), offset_Ep.dim(0) - 1}; }

}  // namespace

std::string e4m3_unavailable_reason() {
  if (device_has_wgmma()) return "";
  if (is_turned_off("SWITCHYARD_NO_WGMMA"))
    return "its products are kernels of compute capability 9.0, which SWITCHYARD_NO_WGMMA turns off";
  return fmt::format("its products need compute capability 9.0; {} has another", description());
}

void linear_forward(Tensor out_TN, Tensor in_TK, Tensor weight_NK, Write write, Context& ctx) {
  multiply("linear_forward", GemmLayout::nt, out_TN, in_TK, weight_NK, addend_of(out_TN, write), ctx);
}

void linear_forward_add(Tensor out_TN, Tensor addend_TN, Tensor in_TK, Tensor weight_NK, Context& ctx) {
  multiply("linear_forward_add", GemmLayout::nt, out_TN, in_TK, weight_NK, addend_TN, ctx);
}

void linear_backward_input(Tensor din_TK, Tensor dout_TN, Tensor weight_NK, Write write, Context& ctx) {
  multiply("linear_backward_input", GemmLayout::nn, din_TK, dout_TN, weight_NK, addend_of(din_TK, write), ctx);
}

void linear_backward_weight(Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, Context& ctx) {
  multiply("linear_backward_weight", GemmLayout::tn, dweight_NK, dout_TN, in_TK, dweight_NK, ctx);
}

void grouped_linear_forward(Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep, Context& ctx) {
  multiply_in_tiles("grouped_linear_forward", GemmLayout::nt, out_RN, in_RK, weight_ENK, {},
                    groups_of(offset_Ep), ctx);
}

void grouped_gate_up_forward(Tensor act_RF, Tensor gate_up_R2F, Tensor in_RK, Tensor weight_E2FK,
                             Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const Matrix c(gate_up_R2F), a(in_RK), b(weight_E2FK), act(act_RF);
  if (ctx.matmul == MatmulType::e4m3 || act_RF.dtype() != DType::bf16 ||
      !(a.packs() && b.packs() && c.packs() && act.packs())) {
    grouped_linear_forward(gate_up_R2F, in_RK, weight_E2FK, offset_Ep, ctx);
    return expert_swiglu_forward(act_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
  }
  const Groups groups = groups_of(offset_Ep);
  constexpr const char* kOp = "grouped_gate_up_forward";
  if (wgmma_gate_up(kOp, act_RF, gate_up_R2F, in_RK, weight_E2FK, weight_R, groups.offset_Ep, ctx)) return;
  const auto product = make_product<bf16, bf16>(GemmLayout::nt, c, a, b, {}, groups);
  launch(kOp, gate_up_kernel<bf16>, {grid_of(product), kMmaThreads, kMmaSharedBytes}, ctx, product,
         rows_of<bf16>(act_RF), weight_R.as<float>());
}

void grouped_linear_backward_input(Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
                                   Context& ctx) {
  multiply_in_tiles("grouped_linear_backward_input", GemmLayout::nn, din_RK, dout_RN, weight_ENK, {},
                    groups_of(offset_Ep), ctx);
}

void grouped_down_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RN, Tensor weight_ENF,
                           Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  const std::int64_t n_rows = dout_RN.rows(), width = weight_ENF.dim(2);
  const Matrix dgate(dgate_up_R2F.columns(0, width)), a(dout_RN), b(weight_ENF);
  ScratchScope scope(ctx.scratch);
  if (ctx.matmul == MatmulType::e4m3 || dout_RN.dtype() != DType::bf16 ||
      !(dgate.packs() && Matrix(gate_up_R2F).packs() && a.packs() && b.packs())) {
    const Tensor dact_RF = ctx.scratch.take({n_rows, width}, dout_RN.dtype());
    grouped_linear_backward_input(dact_RF, dout_RN, weight_ENF, offset_Ep, ctx);
    return expert_swiglu_backward(dgate_up_R2F, dweight_R, dact_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
  }
  const Groups groups = groups_of(offset_Ep);
  if (const Tensor dact_RF = ctx.scratch.take({n_rows, width}, DType::bf16); wgmma_multiply(
          "grouped_down_backward", GemmLayout::nn, dact_RF, dout_RN, weight_ENF, false, groups.offset_Ep, ctx))
    return expert_swiglu_backward(dgate_up_R2F, dweight_R, dact_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
  const auto product = make_product<bf16, bf16>(GemmLayout::nn, dgate, a, b, {}, groups);
  const Tensor partial_RP = ctx.scratch.take({n_rows, ceil_div(width, kWarpTile)}, DType::f32);
  launch("grouped_down_backward", down_backward_kernel<bf16>, {grid_of(product), kMmaThreads, kMmaSharedBytes},
         ctx, product, rows_of<const bf16>(gate_up_R2F), weight_R.as<float>(), rows_of<float>(partial_RP));
  launch("grouped_down_backward: weights", sum_row_kernel, one_thread_each(n_rows), ctx, dweight_R.as<float>(),
         rows_of<const float>(partial_RP), offset_Ep.as<int>() + offset_Ep.rows() - 1, partial_RP.dim(1));
}

void grouped_linear_backward_weight(Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
                                    Context& ctx) {
  multiply_in_tiles("grouped_linear_backward_weight", GemmLayout::tn, dweight_ENK, dout_RN, in_RK, dweight_ENK,
                    groups_of(offset_Ep), ctx);
}

}  // namespace switchyard::ops::cuda
