#include "ops/prototype.h"

#include "cpu/prototype.h"
#include "cuda/prototype.h"
#include "ops/dispatch.h"

namespace switchyard::ops {

namespace {

void check_rows(const GaussianRows& rows, std::int64_t count, std::int64_t width, const Tensor& score_TE,
                bool of_distributions, const char* name) {
  check_shape(rows.mean, Shape{count, width}, name);
  check_dtype(rows.mean, score_TE.dtype(), name);
  if (of_distributions) check_like(rows.log_var, rows.mean, name);
}

void check_metric(const Tensor& log_sigma_d, const Tensor& mean_Td, const PrototypeMetric& metric) {
  if (metric.similarity != PrototypeSimilarity::mahalanobis) return;
  check_shape(log_sigma_d, Shape{mean_Td.dim(1)}, "log_sigma_d");
  check_dtype(log_sigma_d, mean_Td.dtype(), "log_sigma_d");
  check_contiguous(log_sigma_d, "log_sigma_d");
}

}  // namespace

void prototype_similarity_forward(Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                  const PrototypeMetric& metric, Context& ctx) {
  const std::int64_t d = token_Td.mean.dim(1);
  check_rows(token_Td, score_TE.rows(), d, score_TE, metric.of_distributions(), "token_Td");
  check_rows(key_Ed, score_TE.dim(1), d, score_TE, metric.of_distributions(), "key_Ed");
  check_metric(metric.log_sigma_d, token_Td.mean, metric);
  SY_ON_CUDA(ctx, cuda::prototype_similarity_forward(score_TE, token_Td, key_Ed, metric, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() {
    cpu::prototype_similarity_forward<T>(score_TE, token_Td, key_Ed, metric, ctx.scratch);
  });
}

void prototype_similarity_backward(GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
                                   Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                   const PrototypeMetric& metric, Context& ctx) {
  const std::int64_t d = token_Td.mean.dim(1);
  check_like(dscore_TE, score_TE, "dscore_TE");
  for (const GaussianRows& rows : {token_Td, dtoken_Td})
    check_rows(rows, score_TE.rows(), d, score_TE, metric.of_distributions(), "token_Td");
  for (const GaussianRows& rows : {key_Ed, dkey_Ed})
    check_rows(rows, score_TE.dim(1), d, score_TE, metric.of_distributions(), "key_Ed");
  check_metric(metric.log_sigma_d, token_Td.mean, metric);
  check_metric(metric.dlog_sigma_d, token_Td.mean, metric);
  SY_ON_CUDA(ctx, cuda::prototype_similarity_backward(dtoken_Td, dkey_Ed, dscore_TE, score_TE, token_Td, key_Ed,
                                                      metric, ctx));
  with_scalar(score_TE.dtype(), [&]<class T>() {
    cpu::prototype_similarity_backward<T>(dtoken_Td, dkey_Ed, dscore_TE, score_TE, token_Td, key_Ed, metric,
                                          ctx.scratch);
  });
}

}  // namespace switchyard::ops
