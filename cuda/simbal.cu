// E * E numbers of a layer: one block sums them, in an order that only their number decides. The gram matrix is
// f32; nobody waits.
#include "ops/simbal.h"

#include "elements.h"
#include "for_each_pack.h"
#include "launch.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

namespace {

constexpr int kThreads = 256;

// A few numbers: every thread that wants the sum makes it.
struct Tokens {
  const std::int32_t* tokens_B;
  int n_seq;

  __device__ double sum() const {
    std::int64_t n = 0;
    for (int b = 0; b < n_seq; ++b) n += tokens_B[b];
    return static_cast<double>(n);
  }
};
Tokens tokens_of(const Tensor& tokens_B) {
  return {tokens_B.as<std::int32_t>(), static_cast<int>(tokens_B.rows())};
}

__device__ __forceinline__ float from_identity(const Rows<const float>& gram_EE, std::int64_t i,
                                               std::int64_t j) {
  return gram_EE[i][j] - (i == j ? 1.0f : 0.0f);
}

__global__ void __launch_bounds__(kThreads)
    simbal_loss_kernel(double* loss_1, Rows<const float> gram_EE, int n_experts, Tokens tokens, double coef) {
  double sum = 0;
  const std::int64_t n = static_cast<std::int64_t>(n_experts) * n_experts;
  for (std::int64_t at = threadIdx.x; at < n; at += kThreads) {
    const std::int64_t i = at / n_experts, j = at % n_experts;
    const double value = static_cast<double>(gram_EE[i][j]) - (i == j ? 1 : 0);
    sum += value < 0 ? -value : value;
  }
  sum = reduce_block<Sum, kThreads>(sum);
  if (threadIdx.x == 0) *loss_1 += coef * tokens.sum() * sum;
}

struct Slope {
  Rows<float> slope_EE;
  Rows<const float> gram_EE;
  Tokens tokens;
  double coef;

  __device__ void operator()(std::int64_t i, std::int64_t j) const {
    const auto step = static_cast<float>(2 * coef * tokens.sum());
    const float difference = from_identity(gram_EE, i, j);
    slope_EE[i][j] = difference > 0 ? step : difference < 0 ? -step : 0;
  }
};

}  // namespace

void add_simbal_loss(Tensor loss_1, Tensor gram_EE, Tensor tokens_B, double coef, Context& ctx) {
  launch("add_simbal_loss", simbal_loss_kernel, {1, kThreads}, ctx, loss_1.as<double>(),
         rows_of<const float>(gram_EE), gram_EE.rows(), tokens_of(tokens_B), coef);
}

void simbal_slope(Tensor slope_EE, Tensor gram_EE, Tensor tokens_B, double coef, Context& ctx) {
  for_each_pack<1>("simbal_slope", gram_EE.rows(), gram_EE.rows(), ctx,
                   Slope{rows_of<float>(slope_EE), rows_of<const float>(gram_EE), tokens_of(tokens_B), coef});
}

}  // namespace switchyard::ops::cuda
