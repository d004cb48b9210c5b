#include "ops/latent_losses.h"

#include "cpu/latent_losses.h"
#include "cuda/latent_losses.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_rows(Diversity kind, const RowSums& rows) {
  if (rows.n_1.defined()) check_f64(rows.n_1, Shape{1}, "n_1");
  if (kind == Diversity::euclidean) return check_f64(rows.distance_1, Shape{1}, "distance_1");
  const std::int64_t d = rows.sum_d.rows();
  check_f64(rows.gram_dd, Shape{d, d}, "gram_dd");
  check_f64(rows.sum_d, Shape{d}, "sum_d");
}

void check_factor(const TermFactor& factor) {
  if (factor.tokens_1.defined()) check_f64(factor.tokens_1, Shape{1}, "tokens_1");
}

void check_alignment(const Tensor& key_Ed, const Tensor& target_Ed, const TermFactor& factor) {
  check_f64(target_Ed, Shape{key_Ed.rows(), key_Ed.dim(1)}, "target_Ed");
  check_factor(factor);
}

}  // namespace

void add_diversity_loss(Tensor loss_1, Diversity kind, const RowSums& rows, const TermFactor& factor,
                        Context& ctx) {
  check_f64(loss_1, Shape{1}, "loss_1");
  check_rows(kind, rows);
  check_factor(factor);
  SY_ON_CUDA(ctx, cuda::add_diversity_loss(loss_1, kind, rows, factor, ctx));
  cpu::add_diversity_loss(loss_1, kind, rows, factor);
}

void diversity_gradient(Tensor matrix_dd, Tensor offset_d, Tensor scale_1, Diversity kind, const RowSums& rows,
                        const TermFactor& factor, Context& ctx) {
  check_rows(kind, rows);
  check_factor(factor);
  if (kind == Diversity::euclidean) {
    check_f64(scale_1, Shape{1}, "scale_1");
  } else {
    check_f64(matrix_dd, rows.gram_dd.shape(), "matrix_dd");
    check_f64(offset_d, rows.sum_d.shape(), "offset_d");
  }
  SY_ON_CUDA(ctx, cuda::diversity_gradient(matrix_dd, offset_d, scale_1, kind, rows, factor, ctx));
  cpu::diversity_gradient(matrix_dd, offset_d, scale_1, kind, rows, factor);
}

void add_alignment_loss(Tensor loss_1, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx) {
  check_f64(loss_1, Shape{1}, "loss_1");
  check_alignment(key_Ed, target_Ed, factor);
  SY_ON_CUDA(ctx, cuda::add_alignment_loss(loss_1, key_Ed, target_Ed, factor, ctx));
  with_scalar(key_Ed.dtype(),
              [&]<class T>() { cpu::add_alignment_loss<T>(loss_1, key_Ed, target_Ed, factor); });
}

void alignment_backward(Tensor dkey_Ed, Tensor key_Ed, Tensor target_Ed, const TermFactor& factor,
                        Context& ctx) {
  check_like(dkey_Ed, key_Ed, "dkey_Ed");
  check_alignment(key_Ed, target_Ed, factor);
  SY_ON_CUDA(ctx, cuda::alignment_backward(dkey_Ed, key_Ed, target_Ed, factor, ctx));
  with_scalar(key_Ed.dtype(),
              [&]<class T>() { cpu::alignment_backward<T>(dkey_Ed, key_Ed, target_Ed, factor); });
}

}  // namespace switchyard::ops
