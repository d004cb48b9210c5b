#include "ops/prototype.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

constexpr double kLeastVariance = 1e-6, kRootFloor = 1e-6;

template <class T>
struct Element {  // of one row, at one place of the width
  T mean, var, std, log_var;
};

template <class T>
struct Slopes {  // of a term; the key's mean has the opposite slope of the token's
  T mean, token_log_var, key_log_var;
};

template <class T>
struct SquaredTerm {
  T weight;
  T value(Element<T> t, Element<T> k) const { return weight * (t.mean - k.mean) * (t.mean - k.mean); }
  Slopes<T> slopes(Element<T> t, Element<T> k) const { return {2 * weight * (t.mean - k.mean), 0, 0}; }
};

template <class T>
struct KlTerm {
  T weight;
  T value(Element<T> t, Element<T> k) const {
    const T difference = t.mean - k.mean;
    return T(0.5) * (k.log_var - t.log_var + (t.var - k.var + difference * difference) / k.var);
  }
  Slopes<T> slopes(Element<T> t, Element<T> k) const {
    const T difference = t.mean - k.mean, inverse = 1 / k.var;
    return {difference * inverse, T(0.5) * (t.var - k.var) * inverse,
            T(0.5) * (k.var - t.var - difference * difference) * inverse};
  }
};

template <class T>
struct BhattacharyyaTerm {
  T weight;
  T value(Element<T> t, Element<T> k) const {
    const T difference = t.mean - k.mean, spread = t.std - k.std;
    return T(0.5) * log1p_of(spread * spread / (2 * t.std * k.std)) +
           difference * difference / (4 * (t.var + k.var));
  }
  Slopes<T> slopes(Element<T> t, Element<T> k) const {
    const T difference = t.mean - k.mean, quarter = 1 / (4 * (t.var + k.var));
    const T square = 4 * (difference * quarter) * (difference * quarter);
    return {2 * difference * quarter, (t.var - k.var) * quarter - t.var * square,
            (k.var - t.var) * quarter - k.var * square};
  }
};

template <class T>
struct WassersteinTerm {
  T weight;
  T value(Element<T> t, Element<T> k) const {
    return (t.mean - k.mean) * (t.mean - k.mean) + (t.std - k.std) * (t.std - k.std);
  }
  Slopes<T> slopes(Element<T> t, Element<T> k) const {
    return {2 * (t.mean - k.mean), t.std * (t.std - k.std), k.std * (k.std - t.std)};
  }
};

template <class T>
void to_score(T* score, std::int64_t E, const PrototypeMetric& metric) {
  const T scale = static_cast<T>(-0.5 / (metric.sigma * metric.sigma)), floor = static_cast<T>(kRootFloor);
  switch (metric.similarity) {
    case PrototypeSimilarity::gaussian:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) score[e] = exp_of(scale * score[e]);
      return;
    case PrototypeSimilarity::mahalanobis:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) score[e] = 1 / (1 + score[e]);
      return;
    case PrototypeSimilarity::kl:
    case PrototypeSimilarity::js:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) score[e] = -score[e];
      return;
    case PrototypeSimilarity::hellinger:
      for (std::int64_t e = 0; e < E; ++e) score[e] = -std::sqrt(floor - std::expm1(-score[e]));
      return;
    case PrototypeSimilarity::wasserstein:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) score[e] = -std::sqrt(floor + score[e]);
      return;
  }
}

// The gradient with respect to the distance.
template <class T>
void distance_gradient(T* gradient, const T* dscore, const T* score, std::int64_t E,
                       const PrototypeMetric& metric) {
  const T scale = static_cast<T>(-0.5 / (metric.sigma * metric.sigma));
  const T one = static_cast<T>(1 + kRootFloor);
  const PrototypeSimilarity similarity = metric.similarity;
  switch (similarity) {
    case PrototypeSimilarity::gaussian:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) gradient[e] = dscore[e] * score[e] * scale;
      return;
    case PrototypeSimilarity::mahalanobis:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) gradient[e] = -dscore[e] * score[e] * score[e];
      return;
    case PrototypeSimilarity::kl:
    case PrototypeSimilarity::js:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) gradient[e] = -dscore[e];
      return;
    case PrototypeSimilarity::hellinger:  // exp(-B) is 1 + floor - S^2
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e)
        gradient[e] = dscore[e] * (one - score[e] * score[e]) / (2 * score[e]);
      return;
    case PrototypeSimilarity::wasserstein:
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) gradient[e] = dscore[e] / (2 * score[e]);
      return;
  }
}

template <class T>
Element<T> element(T mean, const T* log_var, std::int64_t j) {
  if (!log_var) return {mean, T(0), T(0), T(0)};
  const T var = std::max(exp_of(log_var[j]), static_cast<T>(kLeastVariance));
  return {mean, var, std::sqrt(var), std::log(var)};
}

// The keys' elements, four [d, E] tables.
template <class T>
class KeyTable {
 public:
  KeyTable(const GaussianRows& key_Ed, bool of_distributions, Context& ctx)
      : E_(key_Ed.mean.rows()), table_(ctx.scratch.take({4, key_Ed.mean.dim(1) * E_}, DTypeOf<T>::value)) {
    const std::int64_t d = key_Ed.mean.dim(1);
    for (std::int64_t e = 0; e < E_; ++e)
      for (std::int64_t j = 0; j < d; ++j) {
        const T* log_var = of_distributions ? key_Ed.log_var.row<T>(e) : nullptr;
        const Element<T> key = element(key_Ed.mean.row<T>(e)[j], log_var, j);
        const T values[4] = {key.mean, key.var, key.std, key.log_var};
        for (std::int64_t i = 0; i < 4; ++i) table_[i][j * E_ + e] = values[i];
      }
  }
  struct Row {
    const T *mean, *var, *std, *log_var;
    Element<T> operator[](std::int64_t e) const { return {mean[e], var[e], std[e], log_var[e]}; }
  };
  Row row(std::int64_t j) const {
    return {table_[0] + j * E_, table_[1] + j * E_, table_[2] + j * E_, table_[3] + j * E_};
  }

 private:
  std::int64_t E_;
  Rows<T> table_;
};

template <class T>
const T* log_var_of(const GaussianRows& rows, std::int64_t row, const PrototypeMetric& metric) {
  return metric.of_distributions() ? rows.log_var.row<T>(row) : nullptr;
}

template <class T>
T weight_of(const PrototypeMetric& metric, std::int64_t j) {
  return metric.similarity == PrototypeSimilarity::mahalanobis ? exp_of(-metric.log_sigma_d.as<T>()[j]) : T(1);
}

template <class T, template <class> class Term>
void forward(Tensor score_TE, const GaussianRows& token, const GaussianRows& key, const PrototypeMetric& metric,
             Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const KeyTable<T> keys(key, metric.of_distributions(), ctx);
  const std::int64_t n_tokens = score_TE.rows(), E = score_TE.dim(1), d = token.mean.dim(1);
#pragma omp parallel for schedule(static) if (score_TE.numel() * d >= kParallelElements)
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    T* score = score_TE.row<T>(t);
    std::fill_n(score, E, T(0));
    for (std::int64_t j = 0; j < d; ++j) {
      const Term<T> term{weight_of<T>(metric, j)};
      const Element<T> from = element(token.mean.row<T>(t)[j], log_var_of<T>(token, t, metric), j);
      const auto row = keys.row(j);
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) score[e] += term.value(from, row[e]);
    }
    to_score(score, E, metric);
  }
}

// Blocks of tokens, a function of their number alone. Each has its own sums for the keys, which are large.
std::int64_t block_rows(std::int64_t n_tokens) { return std::max<std::int64_t>(32, (n_tokens + 15) / 16); }

template <class T, template <class> class Term>
void backward(const GaussianRows& dtoken, const GaussianRows& dkey, Tensor dscore_TE, Tensor score_TE,
              const GaussianRows& token, const GaussianRows& key, const PrototypeMetric& metric, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const bool distributions = metric.of_distributions();
  const KeyTable<T> keys(key, distributions, ctx);
  const std::int64_t n_tokens = score_TE.rows(), E = score_TE.dim(1), d = token.mean.dim(1);
  const std::int64_t per_block = block_rows(n_tokens), n_blocks = (n_tokens + per_block - 1) / per_block;
  // Of each block: sums for the keys' means and log-variances, [d, E] each, for log_sigma, and a row's room.
  const Rows<T> sums(ctx.scratch.take({n_blocks, 2 * d * E + d + E}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (score_TE.numel() * d >= kParallelElements)
  for (std::int64_t block = 0; block < n_blocks; ++block) {
    T *mean_sum = sums[block], *log_var_sum = mean_sum + d * E, *sigma_sum = log_var_sum + d * E;
    T* gradient = sigma_sum + d;
    std::fill_n(mean_sum, 2 * d * E + d, T(0));
    const std::int64_t last = std::min((block + 1) * per_block, n_tokens);
    for (std::int64_t t = block * per_block; t < last; ++t) {
      distance_gradient(gradient, dscore_TE.row<T>(t), score_TE.row<T>(t), E, metric);
      for (std::int64_t j = 0; j < d; ++j) {
        const Term<T> term{weight_of<T>(metric, j)};
        const Element<T> from = element(token.mean.row<T>(t)[j], log_var_of<T>(token, t, metric), j);
        const auto row = keys.row(j);
        T *key_mean = mean_sum + j * E, *key_log_var = log_var_sum + j * E;
        T mean = 0, log_var = 0, value = 0;
#pragma omp simd reduction(+ : mean, log_var, value)
        for (std::int64_t e = 0; e < E; ++e) {
          const Slopes<T> slopes = term.slopes(from, row[e]);
          mean += gradient[e] * slopes.mean;
          log_var += gradient[e] * slopes.token_log_var;
          key_mean[e] -= gradient[e] * slopes.mean;
          key_log_var[e] += gradient[e] * slopes.key_log_var;
          value += gradient[e] * slopes.mean * (from.mean - row[e].mean);
        }
        dtoken.mean.row<T>(t)[j] += mean;
        sigma_sum[j] -= value / 2;  // the term is half its slope times the difference
        if (distributions && from.var > static_cast<T>(kLeastVariance)) dtoken.log_var.row<T>(t)[j] += log_var;
      }
    }
  }
  const auto total = [&](std::int64_t i) {
    double sum = 0;
    for (std::int64_t block = 0; block < n_blocks; ++block) sum += static_cast<double>(sums[block][i]);
    return static_cast<T>(sum);
  };
  for (std::int64_t e = 0; e < E; ++e)
    for (std::int64_t j = 0; j < d; ++j) {
      dkey.mean.row<T>(e)[j] += total(j * E + e);
      if (distributions && keys.row(j)[e].var > static_cast<T>(kLeastVariance))
        dkey.log_var.row<T>(e)[j] += total((d + j) * E + e);
    }
  if (metric.similarity == PrototypeSimilarity::mahalanobis)
    for (std::int64_t j = 0; j < d; ++j) metric.dlog_sigma_d.as<T>()[j] += total(2 * d * E + j);
}

template <class T>
void prototype_similarity_forward_on_cpu(Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                         const PrototypeMetric& metric, Context& ctx) {
  switch (metric.similarity) {
    case PrototypeSimilarity::gaussian:
    case PrototypeSimilarity::mahalanobis:
      return forward<T, SquaredTerm>(score_TE, token_Td, key_Ed, metric, ctx);
    case PrototypeSimilarity::kl:
      return forward<T, KlTerm>(score_TE, token_Td, key_Ed, metric, ctx);
    case PrototypeSimilarity::js:
    case PrototypeSimilarity::hellinger:
      return forward<T, BhattacharyyaTerm>(score_TE, token_Td, key_Ed, metric, ctx);
    case PrototypeSimilarity::wasserstein:
      return forward<T, WassersteinTerm>(score_TE, token_Td, key_Ed, metric, ctx);
  }
}

template <class T>
void prototype_similarity_backward_on_cpu(GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
                                          Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                          const PrototypeMetric& metric, Context& ctx) {
  const auto run = [&]<template <class> class Term>() {
    backward<T, Term>(dtoken_Td, dkey_Ed, dscore_TE, score_TE, token_Td, key_Ed, metric, ctx);
  };
  switch (metric.similarity) {
    case PrototypeSimilarity::gaussian:
    case PrototypeSimilarity::mahalanobis:
      return run.template operator()<SquaredTerm>();
    case PrototypeSimilarity::kl:
      return run.template operator()<KlTerm>();
    case PrototypeSimilarity::js:
    case PrototypeSimilarity::hellinger:
      return run.template operator()<BhattacharyyaTerm>();
    case PrototypeSimilarity::wasserstein:
      return run.template operator()<WassersteinTerm>();
  }
}

void check_metric(Signature& args, const Tensor& log_sigma_d, const PrototypeMetric& metric, DType real) {
  if (metric.similarity == PrototypeSimilarity::mahalanobis) args(SY_ARG(log_sigma_d), real, kContiguous);
}

// Rows of tokens and of keys, or their gradients.
void check_rows(Signature& args, const GaussianRows& token, const GaussianRows& key,
                const PrototypeMetric& metric, DType real) {
  args("token_Td", token.mean, real)("key_Ed", key.mean, real);
  if (metric.of_distributions())
    args("log_var of token_Td", token.log_var, real)("log_var of key_Ed", key.log_var, real);
}

}  // namespace

void prototype_similarity_forward(Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                  const PrototypeMetric& metric, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real);
  check_rows(args, token_Td, key_Ed, metric, real);
  check_metric(args, metric.log_sigma_d, metric, real);
  run<&cuda::prototype_similarity_forward>(ctx, real, SY_CPU(prototype_similarity_forward_on_cpu), score_TE,
                                           token_Td, key_Ed, metric);
}

void prototype_similarity_backward(GaussianRows dtoken_Td, GaussianRows dkey_Ed, Tensor dscore_TE,
                                   Tensor score_TE, GaussianRows token_Td, GaussianRows key_Ed,
                                   const PrototypeMetric& metric, Context& ctx) {
  const DType real = score_TE.dtype();
  Signature args(ctx);
  args(SY_ARG(score_TE), real)(SY_ARG(dscore_TE), real);
  check_rows(args, token_Td, key_Ed, metric, real);
  check_rows(args, dtoken_Td, dkey_Ed, metric, real);
  check_metric(args, metric.log_sigma_d, metric, real);
  check_metric(args, metric.dlog_sigma_d, metric, real);
  run<&cuda::prototype_similarity_backward>(ctx, real, SY_CPU(prototype_similarity_backward_on_cpu), dtoken_Td,
                                            dkey_Ed, dscore_TE, score_TE, token_Td, key_Ed, metric);
}

}  // namespace switchyard::ops
