#include "ops/simbal.h"

#include <cmath>
#include <numeric>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

double sum_of(const Tensor& tokens_B) {
  const auto* tokens = tokens_B.as<std::int32_t>();
  return static_cast<double>(std::accumulate(tokens, tokens + tokens_B.rows(), std::int64_t{0}));
}

template <class T>
void add_simbal_loss_on_cpu(Tensor loss_1, Tensor gram_EE, Tensor tokens_B, double coef) {
  const Rows<T> gram(gram_EE);
  double sum = 0;
  for (std::int64_t i = 0; i < gram_EE.rows(); ++i)
    for (std::int64_t j = 0; j < gram_EE.rows(); ++j)
      sum += std::abs(static_cast<double>(gram[i][j]) - (i == j ? 1 : 0));
  *loss_1.as<double>() += coef * sum_of(tokens_B) * sum;
}

template <class T>
void simbal_slope_on_cpu(Tensor slope_EE, Tensor gram_EE, Tensor tokens_B, double coef) {
  const Rows<T> slope(slope_EE), gram(gram_EE);
  const auto step = static_cast<T>(2 * coef * sum_of(tokens_B));
  for (std::int64_t i = 0; i < gram_EE.rows(); ++i)
    for (std::int64_t j = 0; j < gram_EE.rows(); ++j) {
      const T difference = gram[i][j] - T(i == j ? 1 : 0);
      slope[i][j] = difference > 0 ? step : difference < 0 ? -step : T(0);
    }
}

}  // namespace

void add_simbal_loss(Tensor loss_1, Tensor gram_EE, Tensor tokens_B, double coef, Context& ctx) {
  const DType real = gram_EE.dtype();
  Signature args(ctx);
  args(SY_ARG(loss_1), DType::f64)(SY_ARG(gram_EE), real)(SY_ARG(tokens_B), DType::i32, kContiguous);
  run<&cuda::add_simbal_loss>(ctx, real, SY_CPU(add_simbal_loss_on_cpu), loss_1, gram_EE, tokens_B, coef);
}

void simbal_slope(Tensor slope_EE, Tensor gram_EE, Tensor tokens_B, double coef, Context& ctx) {
  const DType real = gram_EE.dtype();
  Signature args(ctx);
  args(SY_ARG(slope_EE), real)(SY_ARG(gram_EE), real)(SY_ARG(tokens_B), DType::i32, kContiguous);
  run<&cuda::simbal_slope>(ctx, real, SY_CPU(simbal_slope_on_cpu), slope_EE, gram_EE, tokens_B, coef);
}

}  // namespace switchyard::ops
