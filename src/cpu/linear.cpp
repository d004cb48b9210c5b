#include "cpu/linear.h"

#include <algorithm>

#include "ops/cpu/gemm.h"
#include "ops/cpu/skinny.h"

// Legend: T rows, K inputs, N outputs, E experts, R routed rows.

namespace switchyard::ops::cpu {

template <class T>
void linear_forward(Tensor out_TN, Tensor in_TK, Tensor weight_NK, bool add, MatmulType type) {
  multiply<T>(type, Trans::no, Trans::yes, out_TN.rows(), out_TN.dim(1), in_TK.dim(1), in_TK.as<T>(),
              in_TK.row_stride(), weight_NK.as<T>(), weight_NK.row_stride(), add, out_TN.as<T>(),
              out_TN.row_stride());
}

template <class T>
void linear_backward_input(Tensor din_TK, Tensor dout_TN, Tensor weight_NK, bool add, MatmulType type) {
  multiply<T>(type, Trans::no, Trans::no, din_TK.rows(), din_TK.dim(1), dout_TN.dim(1), dout_TN.as<T>(),
              dout_TN.row_stride(), weight_NK.as<T>(), weight_NK.row_stride(), add, din_TK.as<T>(),
              din_TK.row_stride());
}

template <class T>
void linear_backward_weight(Tensor dweight_NK, Tensor dout_TN, Tensor in_TK, MatmulType type) {
  multiply<T>(type, Trans::yes, Trans::no, dweight_NK.dim(0), dweight_NK.dim(1), in_TK.rows(), dout_TN.as<T>(),
              dout_TN.row_stride(), in_TK.as<T>(), in_TK.row_stride(), true, dweight_NK.as<T>(),
              dweight_NK.row_stride());
}

namespace {

// An expert's product is cut into pieces of this many rows (of the routed tokens, or of the weight's gradient),
// so that one popular expert does not keep a single thread busy. Pieces write disjoint outputs: the schedule
// does not show in the result. Every piece rounds its weight anew to bfloat16, so there pieces are longer.
std::int64_t piece_rows(MatmulType type) { return type == MatmulType::bf16 ? 512 : 128; }

// The pieces of all experts' row ranges, as (expert, first row, row count) triples.
Tensor cut_rows(Tensor offset_Ep, std::int64_t* n_pieces, Context& ctx) {
  const std::int32_t* offset = offset_Ep.as<std::int32_t>();
  const std::int64_t n_experts = offset_Ep.rows() - 1;
  const auto most = static_cast<std::int32_t>(piece_rows(ctx.matmul));
  Tensor piece_P3 = ctx.scratch.take(Shape{offset[n_experts] / most + n_experts, 3}, DType::i32);
  std::int64_t n = 0;
  for (std::int64_t e = 0; e < n_experts; ++e) {
    for (std::int32_t first = offset[e]; first < offset[e + 1]; first += most) {
      std::int32_t* piece = piece_P3.row<std::int32_t>(n++);
      piece[0] = static_cast<std::int32_t>(e);
      piece[1] = first;
      piece[2] = std::min(most, offset[e + 1] - first);
    }
  }
  *n_pieces = n;
  return piece_P3;
}

// out rows of every piece = in rows op(weight of the piece's expert)
template <class T>
void multiply_pieces(Tensor out, Tensor in, Tensor weight_ENK, Trans trans_weight, Tensor offset_Ep,
                     Context& ctx) {
  ScratchScope scope(ctx.scratch);
  std::int64_t n_pieces = 0;
  const Tensor piece_P3 = cut_rows(offset_Ep, &n_pieces, ctx);
  // Few rows (a token that is generated): the pieces are cut in columns too, so that every thread has some.
  const std::int64_t n_rows = offset_Ep.as<std::int32_t>()[offset_Ep.rows() - 1];
  const std::int64_t width = n_rows <= kSkinnyRows ? kSkinnyColumns : out.dim(1);
  const std::int64_t pieces_across = (out.dim(1) + width - 1) / width;
  const std::int64_t weight_column = trans_weight == Trans::yes ? weight_ENK.dim(2) : 1;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (std::int64_t p = 0; p < n_pieces; ++p) {
    for (std::int64_t across = 0; across < pieces_across; ++across) {
      const std::int32_t* piece = piece_P3.row<std::int32_t>(p);
      const std::int64_t first = across * width;
      multiply<T>(ctx.matmul, Trans::no, trans_weight, piece[2], std::min(width, out.dim(1) - first), in.dim(1),
                  in.row<T>(piece[1]), in.row_stride(), weight_ENK.row<T>(piece[0]) + first * weight_column,
                  weight_ENK.dim(2), false, out.row<T>(piece[1]) + first, out.row_stride());
    }
  }
}

}  // namespace

template <class T>
void grouped_linear_forward(Tensor out_RN, Tensor in_RK, Tensor weight_ENK, Tensor offset_Ep, Context& ctx) {
  multiply_pieces<T>(out_RN, in_RK, weight_ENK, Trans::yes, offset_Ep, ctx);
}

template <class T>
void grouped_linear_backward_input(Tensor din_RK, Tensor dout_RN, Tensor weight_ENK, Tensor offset_Ep,
                                   Context& ctx) {
  multiply_pieces<T>(din_RK, dout_RN, weight_ENK, Trans::no, offset_Ep, ctx);
}

template <class T>
void grouped_linear_backward_weight(Tensor dweight_ENK, Tensor dout_RN, Tensor in_RK, Tensor offset_Ep,
                                    Context& ctx) {
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

#define INSTANTIATE(T)                                                                      \
  template void linear_forward<T>(Tensor, Tensor, Tensor, bool, MatmulType);                \
  template void linear_backward_input<T>(Tensor, Tensor, Tensor, bool, MatmulType);         \
  template void linear_backward_weight<T>(Tensor, Tensor, Tensor, MatmulType);              \
  template void grouped_linear_forward<T>(Tensor, Tensor, Tensor, Tensor, Context&);        \
  template void grouped_linear_backward_input<T>(Tensor, Tensor, Tensor, Tensor, Context&); \
  template void grouped_linear_backward_weight<T>(Tensor, Tensor, Tensor, Tensor, Context&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace switchyard::ops::cpu
