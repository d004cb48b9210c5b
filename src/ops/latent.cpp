#include "ops/latent.h"

#include "cpu/latent.h"
#include "cuda/latent.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_matrix_like(const Tensor& tensor_Rd, const Tensor& other_Rd, const char* name) {
  check_shape(other_Rd, Shape{other_Rd.rows(), other_Rd.dim(1)}, "the [R, d] rows");
  check_like(tensor_Rd, other_Rd, name);
}

void check_skip(const Tensor& skip_R, const Tensor& in_Rd) {
  if (!skip_R.defined()) return;
  check_shape(skip_R, Shape{in_Rd.rows()}, "skip_R");
  check_dtype(skip_R, DType::i32, "skip_R");
}

}  // namespace

void unit_rows_forward(Tensor unit_Rd, Tensor norm_R, Tensor in_Rd, Context& ctx) {
  check_matrix_like(unit_Rd, in_Rd, "unit_Rd");
  check_shape(norm_R, Shape{in_Rd.rows()}, "norm_R");
  check_dtype(norm_R, in_Rd.dtype(), "norm_R");
  SY_ON_CUDA(ctx, cuda::unit_rows_forward(unit_Rd, norm_R, in_Rd, ctx));
  with_scalar(in_Rd.dtype(), [&]<class T>() { cpu::unit_rows_forward<T>(unit_Rd, norm_R, in_Rd); });
}

void unit_rows_backward(Tensor din_Rd, Tensor dunit_Rd, Tensor unit_Rd, Tensor norm_R, Context& ctx) {
  check_matrix_like(din_Rd, unit_Rd, "din_Rd");
  check_matrix_like(dunit_Rd, unit_Rd, "dunit_Rd");
  check_shape(norm_R, Shape{unit_Rd.rows()}, "norm_R");
  check_dtype(norm_R, unit_Rd.dtype(), "norm_R");
  SY_ON_CUDA(ctx, cuda::unit_rows_backward(din_Rd, dunit_Rd, unit_Rd, norm_R, ctx));
  with_scalar(unit_Rd.dtype(),
              [&]<class T>() { cpu::unit_rows_backward<T>(din_Rd, dunit_Rd, unit_Rd, norm_R); });
}

void row_moments(Tensor gram_dd, Tensor sum_d, Tensor unit_Rd, Tensor skip_R, Context& ctx) {
  check_skip(skip_R, unit_Rd);
  check_f64(gram_dd, Shape{unit_Rd.dim(1), unit_Rd.dim(1)}, "gram_dd");
  check_f64(sum_d, Shape{unit_Rd.dim(1)}, "sum_d");
  SY_ON_CUDA(ctx, cuda::row_moments(gram_dd, sum_d, unit_Rd, skip_R, ctx));
  with_scalar(unit_Rd.dtype(),
              [&]<class T>() { cpu::row_moments<T>(gram_dd, sum_d, unit_Rd, skip_R, ctx.scratch); });
}

void add_affine_rows(Tensor dunit_Rd, Tensor unit_Rd, Tensor matrix_dd, Tensor offset_d, Tensor skip_R,
                     Context& ctx) {
  check_matrix_like(dunit_Rd, unit_Rd, "dunit_Rd");
  check_skip(skip_R, unit_Rd);
  check_f64(matrix_dd, Shape{unit_Rd.dim(1), unit_Rd.dim(1)}, "matrix_dd");
  check_f64(offset_d, Shape{unit_Rd.dim(1)}, "offset_d");
  SY_ON_CUDA(ctx, cuda::add_affine_rows(dunit_Rd, unit_Rd, matrix_dd, offset_d, skip_R, ctx));
  with_scalar(unit_Rd.dtype(),
              [&]<class T>() { cpu::add_affine_rows<T>(dunit_Rd, unit_Rd, matrix_dd, offset_d, skip_R); });
}

void count_rows(Tensor count_1, Tensor skip_R, Context& ctx) {
  check_f64(count_1, Shape{1}, "count_1");
  check_shape(skip_R, Shape{skip_R.rows()}, "skip_R");
  check_dtype(skip_R, DType::i32, "skip_R");
  SY_ON_CUDA(ctx, cuda::count_rows(count_1, skip_R, ctx));
  *count_1.as<double>() = static_cast<double>(cpu::count_rows(skip_R));
}

void pair_distance_sum(Tensor sum_1, Tensor Y_Rd, Tensor skip_R, Context& ctx) {
  check_f64(sum_1, Shape{1}, "sum_1");
  check_skip(skip_R, Y_Rd);
  SY_ON_CUDA(ctx, cuda::pair_distance_sum(sum_1, Y_Rd, skip_R, ctx));
  with_scalar(Y_Rd.dtype(),
              [&]<class T>() { *sum_1.as<double>() = cpu::pair_distance_sum<T>(Y_Rd, skip_R, ctx.scratch); });
}

void pair_distance_backward(Tensor dY_Rd, Tensor Y_Rd, Tensor skip_R, Tensor scale_1, Context& ctx) {
  check_matrix_like(dY_Rd, Y_Rd, "dY_Rd");
  check_skip(skip_R, Y_Rd);
  check_f64(scale_1, Shape{1}, "scale_1");
  SY_ON_CUDA(ctx, cuda::pair_distance_backward(dY_Rd, Y_Rd, skip_R, scale_1, ctx));
  with_scalar(Y_Rd.dtype(), [&]<class T>() {
    cpu::pair_distance_backward<T>(dY_Rd, Y_Rd, skip_R, *scale_1.as<double>(), ctx.scratch);
  });
}

void sample_latent(Tensor z_Td, Tensor mean_Td, Tensor log_var_Td, Tensor epsilon_Td, Context& ctx) {
  check_matrix_like(z_Td, mean_Td, "z_Td");
  check_matrix_like(log_var_Td, mean_Td, "log_var_Td");
  check_matrix_like(epsilon_Td, mean_Td, "epsilon_Td");
  SY_ON_CUDA(ctx, cuda::sample_latent(z_Td, mean_Td, log_var_Td, epsilon_Td, ctx));
  with_scalar(mean_Td.dtype(),
              [&]<class T>() { cpu::sample_latent<T>(z_Td, mean_Td, log_var_Td, epsilon_Td); });
}

void standard_kl_sum(Tensor sum_1, Tensor mean_Td, Tensor log_var_Td, Tensor skip_T, Context& ctx) {
  check_f64(sum_1, Shape{1}, "sum_1");
  check_matrix_like(log_var_Td, mean_Td, "log_var_Td");
  check_skip(skip_T, mean_Td);
  SY_ON_CUDA(ctx, cuda::standard_kl_sum(sum_1, mean_Td, log_var_Td, skip_T, ctx));
  with_scalar(mean_Td.dtype(), [&]<class T>() {
    *sum_1.as<double>() = cpu::standard_kl_sum<T>(mean_Td, log_var_Td, skip_T, ctx.scratch);
  });
}

void standard_kl_backward(Tensor dmean_Td, Tensor dlog_var_Td, Tensor mean_Td, Tensor log_var_Td, Tensor skip_T,
                          double scale, Context& ctx) {
  check_matrix_like(dmean_Td, mean_Td, "dmean_Td");
  check_matrix_like(dlog_var_Td, mean_Td, "dlog_var_Td");
  check_matrix_like(log_var_Td, mean_Td, "log_var_Td");
  check_skip(skip_T, mean_Td);
  SY_ON_CUDA(ctx, cuda::standard_kl_backward(dmean_Td, dlog_var_Td, mean_Td, log_var_Td, skip_T, scale, ctx));
  with_scalar(mean_Td.dtype(), [&]<class T>() {
    cpu::standard_kl_backward<T>(dmean_Td, dlog_var_Td, mean_Td, log_var_Td, skip_T, scale);
  });
}

void routed_sums(Tensor sum_Ed, Tensor count_E, Tensor z_Td, Tensor chosen_TK, Tensor expert_TK, Context& ctx) {
  check_f64(sum_Ed, Shape{count_E.rows(), z_Td.dim(1)}, "sum_Ed");
  check_f64(count_E, Shape{sum_Ed.rows()}, "count_E");
  check_shape(expert_TK, Shape{z_Td.rows(), chosen_TK.dim(1)}, "expert_TK");
  check_shape(chosen_TK, expert_TK.shape(), "chosen_TK");
  check_dtype(expert_TK, DType::i32, "expert_TK");
  check_dtype(chosen_TK, z_Td.dtype(), "chosen_TK");
  SY_ON_CUDA(ctx, cuda::routed_sums(sum_Ed, count_E, z_Td, chosen_TK, expert_TK, ctx));
  with_scalar(z_Td.dtype(), [&]<class T>() {
    cpu::routed_sums<T>(sum_Ed, count_E, z_Td, chosen_TK, expert_TK, ctx.scratch);
  });
}

void clear_skipped_rows(Tensor x_RD, Tensor skip_R, Context& ctx) {
  check_skip(skip_R, x_RD);
  SY_ON_CUDA(ctx, cuda::clear_skipped_rows(x_RD, skip_R, ctx));
  with_scalar(x_RD.dtype(), [&]<class T>() { cpu::clear_skipped_rows<T>(x_RD, skip_R); });
}

void scale_rows(Tensor out_Rd, Tensor in_Rd, double factor, Context& ctx) {
  check_matrix_like(out_Rd, in_Rd, "out_Rd");
  SY_ON_CUDA(ctx, cuda::scale_rows(out_Rd, in_Rd, factor, ctx));
  with_scalar(in_Rd.dtype(), [&]<class T>() { cpu::scale_rows<T>(out_Rd, in_Rd, factor); });
}

}  // namespace switchyard::ops
