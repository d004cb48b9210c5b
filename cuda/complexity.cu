#include "ops/complexity.h"

#include <cmath>

#include "elements.h"
#include "for_each_pack.h"
#include "launch.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "partials.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

// One number a token: a thread each, element by element as on the CPU. All f32 but counts and moments.

namespace {

// The second argument of these is the only column, 0.
struct Calibrated {
  Rows<float> c_T;
  Rows<const float> raw_T;
  const float *mean_1, *variance_1;

  __device__ void operator()(std::int64_t t, std::int64_t) const {
    const float center = *mean_1, inverse = *variance_1 > 0 ? 1 / sqrtf(*variance_1) : 0;
    *c_T[t] = 1 / (1 + expf(-(*raw_T[t] - center) * inverse));
  }
};

struct Above {
  Rows<float> c_T;
  Rows<const float> raw_T;
  float threshold;

  __device__ void operator()(std::int64_t t, std::int64_t) const { *c_T[t] = *raw_T[t] > threshold ? 1 : 0; }
};

struct SlotCount {
  Rows<std::int32_t> count_T;
  Rows<const float> c_T;
  float least, range;

  __device__ void operator()(std::int64_t t, std::int64_t) const {
    const float share = *c_T[t] > 0 ? *c_T[t] : 0;  // a NaN, which compares with nothing, has the least
    *count_T[t] = static_cast<std::int32_t>(floorf(least + range * share + 0.5f));
  }
};

struct AddMoments {
  Rows<const float> raw_T;
  Rows<const std::int32_t> token_T;

  __device__ void operator()(std::int64_t t, double* sum) const {
    if (*token_T[t] < 0) return;
    const auto x = static_cast<double>(*raw_T[t]);
    sum[0] += 1;
    sum[1] += x;
    sum[2] += x * x;
  }
};

}  // namespace

void complexity_calibrated(Tensor c_T, Tensor raw_T, Tensor mean_1, Tensor variance_1, Context& ctx) {
  for_each_pack<1>(
      "complexity_calibrated", c_T.rows(), 1, ctx,
      Calibrated{rows_of<float>(c_T), rows_of<const float>(raw_T), mean_1.as<float>(), variance_1.as<float>()});
}

void complexity_above(Tensor c_T, Tensor raw_T, double threshold, Context& ctx) {
  for_each_pack<1>("complexity_above", c_T.rows(), 1, ctx,
                   Above{rows_of<float>(c_T), rows_of<const float>(raw_T), static_cast<float>(threshold)});
}

void slot_count(Tensor count_T, Tensor c_T, double least, std::int64_t most, Context& ctx) {
  for_each_pack<1>("slot_count", c_T.rows(), 1, ctx,
                   SlotCount{rows_of<std::int32_t>(count_T), rows_of<const float>(c_T),
                             static_cast<float>(least), static_cast<float>(static_cast<double>(most) - least)});
}

void token_moments(Tensor moments_3, Tensor raw_T, Tensor token_T, Context& ctx) {
  sum_rows<3>("token_moments", moments_3, raw_T.rows(), ctx,
              AddMoments{rows_of<const float>(raw_T), rows_of<const std::int32_t>(token_T)});
}

// By token: rows of a value and a one are added to a table of f32 as those of an embedding's gradient are, in
// a fixed order and without atomics, and the table is added to the sums.

namespace {

struct Known {
  Rows<float> raw_T;
  Rows<std::int32_t> known_T;
  Rows<const float> value_V;
  const float* mean_1;
  Rows<const std::int32_t> token_T;

  __device__ void operator()(std::int64_t t, std::int64_t) const {
    const std::int32_t v = *token_T[t];
    const bool is_known = v >= 0 && *value_V[v] != 0;
    *raw_T[t] = is_known ? *value_V[v] : *mean_1;
    *known_T[t] = is_known ? v : -1;
  }
};

struct ValueAndOne {
  Rows<float> row_T2;
  Rows<const float> value_T;

  __device__ void operator()(std::int64_t t, std::int64_t) const {
    row_T2[t][0] = *value_T[t];
    row_T2[t][1] = 1;
  }
};

struct AddTable {
  double *sum_V, *count_V;
  Rows<const float> table_V2;
  double scale;

  __device__ void operator()(std::int64_t v, std::int64_t) const {
    sum_V[v] += scale * static_cast<double>(table_V2[v][0]);
    count_V[v] += static_cast<double>(table_V2[v][1]);
  }
};

}  // namespace

void known_values(Tensor raw_T, Tensor known_T, Tensor value_V, Tensor mean_1, Tensor token_T, Context& ctx) {
  for_each_pack<1>("known_values", raw_T.rows(), 1, ctx,
                   Known{rows_of<float>(raw_T), rows_of<std::int32_t>(known_T), rows_of<const float>(value_V),
                         mean_1.as<float>(), rows_of<const std::int32_t>(token_T)});
}

void add_by_token(Tensor sum_2V, Tensor value_T, Tensor token_T, double scale, Context& ctx) {
  if (value_T.rows() == 0) return;
  ScratchScope scope(ctx.scratch);
  const std::int64_t V = sum_2V.numel() / 2;
  const Tensor row_T2 = ctx.scratch.take({value_T.rows(), 2}, DType::f32),
               table_V2 = ctx.scratch.take({V, 2}, DType::f32);
  for_each_pack<1>("add_by_token", value_T.rows(), 1, ctx,
                   ValueAndOne{rows_of<float>(row_T2), rows_of<const float>(value_T)});
  fill_zero(table_V2, ctx);
  embedding_backward(table_V2, row_T2, token_T, ctx);
  double* const sum = sum_2V.as<double>();
  for_each_pack<1>("add_by_token", V, 1, ctx, AddTable{sum, sum + V, rows_of<const float>(table_V2), scale});
}

// Forward: a warp a token, its sum in float32. Backward: element by element. All f32 but the sum of tokens.

namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(kWarps* kWarp)
    entropy_forward_kernel(Rows<float> entropy_T, Rows<const float> logit_TE, Rows<const float> prob_TE,
                           Rows<const float> lse_T, std::int64_t n_tokens, int experts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t t = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (t >= n_tokens) return;  // the whole warp
  float mean = 0;
  for (int e = lane; e < experts; e += kWarp) {
    const float prob = prob_TE[t][e];
    if (prob > 0) mean += prob * logit_TE[t][e];  // one that underflowed may stand beside minus infinity
  }
  mean = reduce_warp<Sum>(mean);
  if (lane == 0) *entropy_T[t] = *lse_T[t] - mean;
}

template <int kSize>
struct Backward {
  Rows<float> dlogit_TE;
  Rows<const float> entropy_T, logit_TE, prob_TE, lse_T;
  Rows<const std::int32_t> token_T;
  float factor;

  __device__ void operator()(std::int64_t t, std::int64_t e) const {
    if (*token_T[t] < 0) return;
    const auto logit = load<kSize>(logit_TE[t] + e), prob = load<kSize>(prob_TE[t] + e);
    auto dlogit = load<kSize>(dlogit_TE[t] + e);
    const float shift = *entropy_T[t] - *lse_T[t];
    for (int i = 0; i < kSize; ++i) {
      if (prob.element[i] > 0) dlogit.element[i] += factor * prob.element[i] * (logit.element[i] + shift);
    }
    store<kSize>(dlogit_TE[t] + e, dlogit);
  }
};

struct AddToken {
  Rows<const float> x_T;
  Rows<const std::int32_t> token_T;

  __device__ void operator()(std::int64_t t, double* sum) const {
    if (*token_T[t] >= 0) *sum += static_cast<double>(*x_T[t]);
  }
};

}  // namespace

void softmax_entropy_forward(Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T, Context& ctx) {
  launch("softmax_entropy_forward", entropy_forward_kernel,
         {blocks(ceil_div(logit_TE.rows(), kWarps)), kWarps * kWarp}, ctx, rows_of<float>(entropy_T),
         rows_of<const float>(logit_TE), rows_of<const float>(prob_TE), rows_of<const float>(lse_T),
         logit_TE.rows(), logit_TE.dim(1));
}

void softmax_entropy_backward(Tensor dlogit_TE, Tensor entropy_T, Tensor logit_TE, Tensor prob_TE, Tensor lse_T,
                              Tensor token_T, double dentropy, Context& ctx) {
  const bool packs =
      rows_are_packs<float>(dlogit_TE) && rows_are_packs<float>(logit_TE) && rows_are_packs<float>(prob_TE);
  with_pack<float>(packs, [&]<int kSize>() {
    for_each_pack<kSize>("softmax_entropy_backward", logit_TE.rows(), logit_TE.dim(1), ctx,
                         Backward<kSize>{rows_of<float>(dlogit_TE), rows_of<const float>(entropy_T),
                                         rows_of<const float>(logit_TE), rows_of<const float>(prob_TE),
                                         rows_of<const float>(lse_T), rows_of<const std::int32_t>(token_T),
                                         static_cast<float>(-dentropy)});
  });
}

void sum_of_tokens(Tensor sum_1, Tensor x_T, Tensor token_T, Context& ctx) {
  sum_rows<1>("sum_of_tokens", sum_1, x_T.rows(), ctx,
              AddToken{rows_of<const float>(x_T), rows_of<const std::int32_t>(token_T)});
}

}  // namespace switchyard::ops::cuda
