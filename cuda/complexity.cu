// One number a token: a thread each, element by element as on the CPU. All f32 but counts and moments.
#include "ops/complexity.h"

#include <cmath>

#include "elements.h"
#include "for_each_pack.h"
#include "launch.h"
#include "partials.h"

namespace switchyard::ops::cuda {

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

void slot_count(Tensor count_T, Tensor c_T, std::int64_t least, std::int64_t most, Context& ctx) {
  for_each_pack<1>("slot_count", c_T.rows(), 1, ctx,
                   SlotCount{rows_of<std::int32_t>(count_T), rows_of<const float>(c_T),
                             static_cast<float>(least), static_cast<float>(most - least)});
}

void token_moments(Tensor moments_3, Tensor raw_T, Tensor token_T, Context& ctx) {
  sum_rows<3>("token_moments", moments_3, raw_T.rows(), ctx,
              AddMoments{rows_of<const float>(raw_T), rows_of<const std::int32_t>(token_T)});
}

}  // namespace switchyard::ops::cuda
