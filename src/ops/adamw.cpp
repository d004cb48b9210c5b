#include "ops/adamw.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

void clip_factor_on_cpu(Tensor grad_scale_1, Tensor sum_of_squares_1, double clip_norm) {
  const double sum_of_squares = *sum_of_squares_1.as<double>();
  double& scale = *grad_scale_1.as<double>();
  if (!std::isfinite(sum_of_squares))
    scale = std::numeric_limits<double>::quiet_NaN();
  else
    scale = clip_norm > 0 ? std::min(1.0, clip_norm / (std::sqrt(sum_of_squares) + 1e-6)) : 1.0;
}

template <class T>
void adamw_update_on_cpu(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, Tensor grad_scale_1,
                         const AdamWStep& step, Tensor weight_P) {
  SY_CHECK(!weight_P.defined(), "weights are rounded on a device alone");
  const double scale = *grad_scale_1.as<double>();
  if (std::isnan(scale)) return;
  // What does not change from element to element, made in double and rounded once.
  const T grad_scale = static_cast<T>(scale);
  const T beta1 = static_cast<T>(step.beta1), rest1 = static_cast<T>(1 - step.beta1);
  const T beta2 = static_cast<T>(step.beta2), rest2 = static_cast<T>(1 - step.beta2);
  const auto t = static_cast<double>(step.step);
  const T correction1 = static_cast<T>(1 / (1 - std::pow(step.beta1, t)));
  const T correction2 = static_cast<T>(1 / (1 - std::pow(step.beta2, t)));
  const T lr = static_cast<T>(step.lr), eps = static_cast<T>(step.eps);
  const T decay = static_cast<T>(step.weight_decay);

  T* param = param_P.as<T>();
  T* m = m_P.as<T>();
  T* v = v_P.as<T>();
  const T* grad = grad_P.as<T>();
  // One pass, bound by memory: four streams read, three written. Blocks of a fixed size: which elements form a
  // vector does not depend on the number of threads.
  constexpr std::int64_t kBlock = 1 << 13;
  const std::int64_t n = param_P.numel();
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
  for (std::int64_t first = 0; first < n; first += kBlock) {
    const std::int64_t last = std::min(first + kBlock, n);
#pragma omp simd
    for (std::int64_t i = first; i < last; ++i) {
      const T g = grad_scale * grad[i];
      m[i] = beta1 * m[i] + rest1 * g;
      v[i] = beta2 * v[i] + rest2 * (g * g);
      const T update = (m[i] * correction1) / (std::sqrt(v[i] * correction2) + eps);
      param[i] -= lr * (update + decay * param[i]);
    }
  }
}

}  // namespace

void clip_factor(Tensor grad_scale_1, Tensor sum_of_squares_1, double clip_norm, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(grad_scale_1), DType::f64)(SY_ARG(sum_of_squares_1), DType::f64);
  run<&cuda::clip_factor>(ctx, clip_factor_on_cpu, grad_scale_1, sum_of_squares_1, clip_norm);
}

void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, Tensor grad_scale_1,
                  const AdamWStep& step, Tensor weight_P, Context& ctx) {
  const DType real = param_P.dtype();
  Signature args(ctx);
  args.like(param_P, SY_ARG(param_P), kContiguous)
      .like(param_P, SY_ARG(m_P), kContiguous)
      .like(param_P, SY_ARG(v_P), kContiguous)
      .like(param_P, SY_ARG(grad_P), kContiguous);
  args(SY_ARG(weight_P), param_P.shape(), DType::bf16, kOptional)(SY_ARG(grad_scale_1), DType::f64);
  args.also_moves([&] { return 3 * param_P.nbytes(); });  // the gradient alone is only read
  SY_CHECK(step.step >= 1, "step {}: the first update is step 1", step.step);
  run<&cuda::adamw_update>(ctx, real, SY_CPU(adamw_update_on_cpu), param_P, m_P, v_P, grad_P, grad_scale_1,
                           step, weight_P);
}

}  // namespace switchyard::ops
