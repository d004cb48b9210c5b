// Dense products go to cuBLASLt, which knows each device best. Grouped ones are one launch for all experts
// (gemm_tile.h): blocks find their expert and rows in offset_Ep themselves, so that the host need not know the
// counts. The grid has room for the worst split of the rows; blocks without a tile leave at once. Operands f32,
// or all bf16; outputs and gradients of inputs are of the operands' type or f32, gradients of weights and
// weight_R always f32. Sums are in f32. f32 operands are multiplied as they are (MatmulType::f32, no TF32) or
// rounded to bf16 on the way (MatmulType::bf16).
#include "ops/linear.h"

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

// A matrix of a product; what each expert has one of its own of is [E, rows, columns].
struct Matrix {
  std::int64_t rows, columns, stride, expert_stride;
  Tensor tensor;

  Matrix(const Tensor& t) : tensor(t) {
    const bool of_experts = t.shape().rank() == 3;
    rows = t.dim(of_experts ? 1 : 0);
    columns = t.dim(of_experts ? 2 : 1);
    stride = of_experts ? columns : t.row_stride();
    expert_stride = of_experts ? t.row_stride() : 0;
  }
  template <class T>
  Rows<T> rows_of() const {
    return {tensor.as<std::remove_const_t<T>>(), stride};
  }
  bool packs() const {
    const std::int64_t pack = 16 / size_of(tensor.dtype());
    return reinterpret_cast<std::uintptr_t>(tensor.raw()) % 16 == 0 && columns % pack == 0 &&
           stride % pack == 0;
  }
};

struct Groups {
  const int* offset_Ep = nullptr;  // null: no groups
  std::int64_t n_experts = 0;
};

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
    expert_stride = a_along_k(layout) ? b.expert_stride : c.expert_stride;
  }
  const std::int64_t tiles_n = ceil_div(c.columns, kTile);
  Product<T, Out> product{.a = a.rows_of<const T>(),
                          .b = b.rows_of<const T>(),
                          .c_MN = c.rows_of<Out>(),
                          .m = int_of(c.rows),
                          .n = int_of(c.columns),
                          .k = int_of(k),
                          .tiles_m = int_of(tiles_m),
                          .tiles_n = int_of(tiles_n),
                          .offset_Ep = groups.offset_Ep,
                          .n_experts = int_of(groups.n_experts),
                          .expert_stride = expert_stride};
  if (addend.defined()) product.addend_MN = Matrix(addend).rows_of<const Out>();
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
    if (a.packs() && b.packs() && c.packs() && (!addend.defined() || Matrix(addend).packs())) {
      launch(op, mma_kernel<T, Out, kLayout, true>, {grid, kMmaThreads, kMmaSharedBytes}, ctx, product);
    } else {
      launch(op, mma_kernel<T, Out, kLayout, false>, {grid, kMmaThreads, kMmaSharedBytes}, ctx, product);
    }
  });
}

void multiply_in_tiles(const char* op, GemmLayout layout, const Matrix& c, const Matrix& a, const Matrix& b,
                       const Tensor& addend, const Groups& groups, Context& ctx) {
  const bool in_place = addend.defined() && addend.raw() == c.tensor.raw();
  if ((in_place || !addend.defined()) &&
      wgmma_multiply(op, layout, c.tensor, a.tensor, b.tensor, in_place, groups.offset_Ep, ctx))
    return;
  with_element(a.tensor.dtype(), [&]<class T>() {
    if (c.tensor.dtype() == DType::f32) {
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
  const bool as_they_are = a.dtype() == DType::bf16 || ctx.matmul == MatmulType::f32;
  if (as_they_are && a.numel() > 0 && b.numel() > 0 && cublaslt_multiply(op, layout, c_MN, a, b, addend, ctx))
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
  if (act_RF.dtype() != DType::bf16 || !(a.packs() && b.packs() && c.packs() && act.packs())) {
    grouped_linear_forward(gate_up_R2F, in_RK, weight_E2FK, offset_Ep, ctx);
    return expert_swiglu_forward(act_RF, gate_up_R2F, weight_R, offset_Ep, ctx);
  }
  const Groups groups = groups_of(offset_Ep);
  constexpr const char* kOp = "grouped_gate_up_forward";
  if (wgmma_gate_up(kOp, act_RF, gate_up_R2F, in_RK, weight_E2FK, weight_R, groups.offset_Ep, ctx)) return;
  const auto product = make_product<bf16, bf16>(GemmLayout::nt, c, a, b, {}, groups);
  launch(kOp, gate_up_kernel<bf16>, {grid_of(product), kMmaThreads, kMmaSharedBytes}, ctx, product,
         act.rows_of<bf16>(), weight_R.as<float>());
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
  if (dout_RN.dtype() != DType::bf16 ||
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
