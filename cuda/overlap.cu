// A warp a token, which goes through the pairs of its rows one after the other: the option costs a share of the
// experts' products, and few use it. Rows are f32 or bf16, all else is f32 but for the sum, which is f64.
#include "ops/overlap.h"

#include "elements.h"
#include "warp_per_row.h"

// Legend: T tokens, K slots a token, R routed rows, D width.

namespace switchyard::ops::cuda {

namespace {

template <class T>
struct Outputs {
  Rows<const T> row_RD;
  const int* slot_row_K;
  int n_slots, width;

  __device__ bool has(int k) const { return slot_row_K[k] >= 0; }
  __device__ int count() const {
    return sum_over_lanes(n_slots, [&](int k) { return has(k) ? 1 : 0; });
  }
  // The same for all lanes.
  __device__ float dot(int j, int k) const {
    const T *const a = row_RD[slot_row_K[j]], *const b = row_RD[slot_row_K[k]];
    return sum_over_lanes(width, [&](int d) { return to_float(a[d]) * to_float(b[d]); });
  }
  // norm_K of the slots that have a row; by all lanes.
  __device__ void norms(float* norm_K) const {
    for (int k = 0; k < n_slots; ++k) {
      if (!has(k)) continue;
      const float squares = dot(k, k);
      if (lane_of_warp() == 0) norm_K[k] = sqrtf(squares + static_cast<float>(kOverlapEps));
    }
    __syncwarp();
  }
};

template <class T>
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    overlap_kernel(double* overlap_T, Rows<const T> row_RD, Rows<const int> slot_row_TK, std::int64_t n_tokens,
                   int K, int width) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  float* const norm_K = static_cast<float*>(dynamic_shared()) + static_cast<int>(threadIdx.x) / kWarp * K;
  const Outputs<T> outputs{row_RD, slot_row_TK[t], K, width};
  const int n = outputs.count();
  outputs.norms(norm_K);
  float sum = 0;
  for (int j = 0; j < K; ++j) {
    if (!outputs.has(j)) continue;
    for (int k = 0; k < j; ++k) {
      if (!outputs.has(k)) continue;
      const float cosine = outputs.dot(j, k) / (norm_K[j] * norm_K[k]);
      sum += 2 * cosine * cosine;
    }
  }
  if (lane_of_warp() == 0) overlap_T[t] = n > 1 ? sum / static_cast<float>(n * (n - 1)) : 0;
}

__global__ void __launch_bounds__(kBlockThreads)
    sum_kernel(double* sum_1, const double* overlap_T, std::int64_t n_tokens) {
  double sum = 0;
  for (std::int64_t t = threadIdx.x; t < n_tokens; t += kBlockThreads) sum += overlap_T[t];
  sum = reduce_block<Sum, kBlockThreads>(sum);
  if (threadIdx.x == 0) sum_1[0] = sum;
}

template <class T>
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    overlap_backward_kernel(Rows<T> drow_RD, Rows<const T> row_RD, Rows<const int> slot_row_TK,
                            std::int64_t n_tokens, int K, int width, float scale) {
  const std::int64_t t = index_of_warp();
  if (t >= n_tokens) return;
  float* const norm_K = static_cast<float*>(dynamic_shared()) + static_cast<int>(threadIdx.x) / kWarp * 2 * K;
  float* const share_K = norm_K + K;  // what slot j's gradient has of each row
  const Outputs<T> outputs{row_RD, slot_row_TK[t], K, width};
  const int n = outputs.count();
  if (n < 2) return;
  outputs.norms(norm_K);
  const float factor = 4 * scale / static_cast<float>(n * (n - 1));
  for (int j = 0; j < K; ++j) {
    if (!outputs.has(j)) continue;
    float squares = 0;
    for (int k = 0; k < K; ++k) {
      if (k == j || !outputs.has(k)) continue;
      const float norms = norm_K[j] * norm_K[k], cosine = outputs.dot(j, k) / norms;
      squares += cosine * cosine;
      if (lane_of_warp() == 0) share_K[k] = factor * cosine / norms;
    }
    if (lane_of_warp() == 0) share_K[j] = -factor * squares / (norm_K[j] * norm_K[j]);
    __syncwarp();
    T* const drow = drow_RD[outputs.slot_row_K[j]];
    for (int d = lane_of_warp(); d < width; d += kWarp) {
      float sum = to_float(drow[d]);
      for (int k = 0; k < K; ++k)
        if (outputs.has(k)) sum += share_K[k] * to_float(row_RD[outputs.slot_row_K[k]][d]);
      drow[d] = from_float<T>(sum);
    }
    __syncwarp();  // all have read the shares
  }
}

Launch with_numbers(Launch launch, std::int64_t numbers_a_warp) {
  launch.shared_bytes = static_cast<std::size_t>(kTokenWarps * numbers_a_warp) * sizeof(float);
  return launch;
}

}  // namespace

void expert_overlap_forward(Tensor sum_1, Tensor row_RD, Tensor slot_row_TK, Context& ctx) {
  const std::int64_t T_ = slot_row_TK.rows(), K = slot_row_TK.dim(1);
  ScratchScope scope(ctx.scratch);
  const Tensor overlap_T = ctx.scratch.take(Shape{T_}, DType::f64);
  with_element(row_RD.dtype(), [&]<class T>() {
    launch("expert_overlap_forward", overlap_kernel<T>, with_numbers(one_warp_each(T_), K), ctx,
           overlap_T.as<double>(), rows_of<const T>(row_RD), rows_of<const int>(slot_row_TK), T_, K,
           row_RD.dim(1));
  });
  launch("expert_overlap_forward: sum", sum_kernel, {1, kBlockThreads}, ctx, sum_1.as<double>(),
         overlap_T.as<double>(), T_);
}

void expert_overlap_backward(Tensor drow_RD, Tensor row_RD, Tensor slot_row_TK, double scale, Context& ctx) {
  const std::int64_t T_ = slot_row_TK.rows(), K = slot_row_TK.dim(1);
  with_element(row_RD.dtype(), [&]<class T>() {
    launch("expert_overlap_backward", overlap_backward_kernel<T>, with_numbers(one_warp_each(T_), 2 * K), ctx,
           rows_of<T>(drow_RD), rows_of<const T>(row_RD), rows_of<const int>(slot_row_TK), T_, K, row_RD.dim(1),
           scale);
  });
}

}  // namespace switchyard::ops::cuda
