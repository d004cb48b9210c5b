// One pass, bound by memory: four streams read, three or four written, in packs of four elements. A range of
// parameters may begin and end anywhere, at the same place in all arrays: packs are cut from the last multiple
// of 16 bytes before it, and only the first and the last of them go element by element. All f32 but weight_P,
// which is bf16.
#include "ops/adamw.h"

#include <cmath>

#include "elements.h"
#include "launch.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256;

// What does not change from element to element, made in double and rounded once, as on the CPU.
struct Factors {
  float beta1, rest1, beta2, rest2, correction1, correction2, lr, eps, decay;

  explicit Factors(const AdamWStep& step)
      : beta1(static_cast<float>(step.beta1)),
        rest1(static_cast<float>(1 - step.beta1)),
        beta2(static_cast<float>(step.beta2)),
        rest2(static_cast<float>(1 - step.beta2)),
        correction1(static_cast<float>(1 / (1 - std::pow(step.beta1, static_cast<double>(step.step))))),
        correction2(static_cast<float>(1 / (1 - std::pow(step.beta2, static_cast<double>(step.step))))),
        lr(static_cast<float>(step.lr)),
        eps(static_cast<float>(step.eps)),
        decay(static_cast<float>(step.weight_decay)) {}
};

struct Arrays {
  float *param, *m, *v;
  const float* grad;
  bf16* weight;  // null: none
};

template <int kSize>
__device__ __forceinline__ void update(const Arrays& at, std::int64_t i, float grad_scale, const Factors& f) {
  auto param = load<kSize>(at.param + i), m = load<kSize>(at.m + i), v = load<kSize>(at.v + i);
  const auto grad = load<kSize>(at.grad + i);
  for (int j = 0; j < kSize; ++j) {
    const float g = grad_scale * grad.element[j];
    m.element[j] = f.beta1 * m.element[j] + f.rest1 * g;
    v.element[j] = f.beta2 * v.element[j] + f.rest2 * (g * g);
    const float step = (m.element[j] * f.correction1) / (sqrtf(v.element[j] * f.correction2) + f.eps);
    param.element[j] -= f.lr * (step + f.decay * param.element[j]);
  }
  store<kSize>(at.param + i, param);
  if (at.weight != nullptr) {
    Elements<bf16, kSize> weight;
    for (int j = 0; j < kSize; ++j) weight.element[j] = from_float<bf16>(param.element[j]);
    store<kSize>(at.weight + i, weight);
  }
  store<kSize>(at.m + i, m);
  store<kSize>(at.v + i, v);
}

// Pack p holds elements [p * kSize - before, (p + 1) * kSize - before), as far as they are in [0, count).
template <int kSize>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Arrays arrays, const double* grad_scale_1, std::int64_t count, int before, Factors factors) {
  const auto grad_scale = static_cast<float>(*grad_scale_1);
  if (grad_scale != grad_scale) return;  // NaN
  const std::int64_t pack = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, first = pack * kSize - before;
  if (first >= 0 && first + kSize <= count) return update<kSize>(arrays, first, grad_scale, factors);
  SY_UNROLL_BY(1)
  for (std::int64_t i = first; i < first + kSize; ++i) {
    if (i >= 0 && i < count) update<1>(arrays, i, grad_scale, factors);
  }
}

// How many elements lie between the last multiple of a pack and the tensor's first.
int elements_before(const Tensor& tensor) {
  const auto size = static_cast<std::uintptr_t>(size_of(tensor.dtype()));
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(tensor.raw()) / size % kPack<float>);
}

__global__ void __launch_bounds__(1)
    clip_kernel(double* grad_scale_1, const double* sum_of_squares_1, double clip_norm) {
  const double sum = *sum_of_squares_1, norm = sqrt(sum);
  double scale = clip_norm > 0 && clip_norm < norm + 1e-6 ? clip_norm / (norm + 1e-6) : 1.0;
  if (sum - sum != 0) scale = sum - sum;  // NaN, as infinity minus infinity is
  *grad_scale_1 = scale;
}

}  // namespace

void clip_factor(Tensor grad_scale_1, Tensor sum_of_squares_1, double clip_norm, Context& ctx) {
  launch("clip_factor", clip_kernel, {1, 1}, ctx, grad_scale_1.as<double>(), sum_of_squares_1.as<double>(),
         clip_norm);
}

void adamw_update(Tensor param_P, Tensor m_P, Tensor v_P, Tensor grad_P, Tensor grad_scale_1,
                  const AdamWStep& step, Tensor weight_P, Context& ctx) {
  const std::int64_t count = param_P.numel();
  const int before = elements_before(param_P);
  const bool has_weight = weight_P.defined();
  const bool alike = elements_before(m_P) == before && elements_before(v_P) == before &&
                     elements_before(grad_P) == before && (!has_weight || elements_before(weight_P) == before);
  with_pack<float>(alike, [&]<int kSize>() {
    launch("adamw_update", update_kernel<kSize>,
           {blocks(ceil_div(ceil_div(count + before, kSize), kThreads)), kThreads}, ctx,
           Arrays{param_P.as<float>(), m_P.as<float>(), v_P.as<float>(), grad_P.as<float>(),
                  has_weight ? weight_P.as<bf16>() : nullptr},
           grad_scale_1.as<double>(), count, kSize > 1 ? before : 0, Factors(step));
  });
}

}  // namespace switchyard::ops::cuda
