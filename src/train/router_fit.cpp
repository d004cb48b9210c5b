#include "train/router_fit.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_map>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/progress.h"
#include "model/names.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace switchyard::train {

namespace {

constexpr double kNormEps = 1e-5;  // the LayerNorm's of lpr.cpp
constexpr double kRidge = 1e-4;    // of the mean variance of a feature: few tokens fit themselves otherwise

// Matrices on the host, row after row.
struct Matrix {
  Matrix(std::int64_t rows, std::int64_t columns)
      : n_rows(rows), n_columns(columns), values(static_cast<std::size_t>(rows * columns)) {}
  double& operator()(std::int64_t r, std::int64_t c) {
    return values[static_cast<std::size_t>(r * n_columns + c)];
  }
  double operator()(std::int64_t r, std::int64_t c) const {
    return values[static_cast<std::size_t>(r * n_columns + c)];
  }
  std::int64_t n_rows, n_columns;
  std::vector<double> values;
};

Matrix transposed(const Matrix& a) {
  Matrix out(a.n_columns, a.n_rows);
  for (std::int64_t r = 0; r < a.n_rows; ++r)
    for (std::int64_t c = 0; c < a.n_columns; ++c) out(c, r) = a(r, c);
  return out;
}

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix out(a.n_rows, b.n_columns);
  for (std::int64_t r = 0; r < a.n_rows; ++r)
    for (std::int64_t k = 0; k < a.n_columns; ++k)
      for (std::int64_t c = 0; c < b.n_columns; ++c) out(r, c) += a(r, k) * b(k, c);
  return out;
}

// a^-1 b of a symmetric positive definite a, by its Cholesky factor.
Matrix solve(Matrix a, Matrix b) {
  const std::int64_t n = a.n_rows;
  for (std::int64_t i = 0; i < n; ++i) {
    mark("fit to a gate", i);  // of a wide model it takes a while
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = a(i, j);
      for (std::int64_t k = 0; k < j; ++k) sum -= a(i, k) * a(j, k);
      a(i, j) = i == j ? std::sqrt(std::max(sum, 1e-300)) : sum / a(j, j);
    }
  }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t c = 0; c < b.n_columns; ++c) {
      double sum = b(i, c);
      for (std::int64_t k = 0; k < i; ++k) sum -= a(i, k) * b(k, c);
      b(i, c) = sum / a(i, i);
    }
  for (std::int64_t i = n; i-- > 0;)
    for (std::int64_t c = 0; c < b.n_columns; ++c) {
      double sum = b(i, c);
      for (std::int64_t k = i + 1; k < n; ++k) sum -= a(k, i) * b(k, c);
      b(i, c) = sum / a(i, i);
    }
  return b;
}

void add_to_diagonal(Matrix& a, double share) {
  double trace = 0;
  for (std::int64_t i = 0; i < a.n_rows; ++i) trace += a(i, i);
  for (std::int64_t i = 0; i < a.n_rows; ++i) a(i, i) += share * trace / static_cast<double>(a.n_rows) + 1e-30;
}

void scale_rows_to(Matrix& a, double length) {
  for (std::int64_t r = 0; r < a.n_rows; ++r) {
    double squares = 0;
    for (std::int64_t c = 0; c < a.n_columns; ++c) squares += a(r, c) * a(r, c);
    const double factor = length / std::sqrt(std::max(squares, 1e-30));
    for (std::int64_t c = 0; c < a.n_columns; ++c) a(r, c) *= factor;
  }
}

// Columns: the n eigenvectors of the largest eigenvalues of a symmetric matrix, by Jacobi's rotations.
Matrix largest_eigenvectors(Matrix a, std::int64_t n) {
  const std::int64_t size = a.n_rows;
  Matrix vectors(size, size);
  for (std::int64_t i = 0; i < size; ++i) vectors(i, i) = 1;
  constexpr int kMostSweeps = 30;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    double beside = 0, on = 0;
    for (std::int64_t i = 0; i < size; ++i)
      for (std::int64_t j = 0; j < size; ++j) (i == j ? on : beside) += a(i, j) * a(i, j);
    if (beside <= 1e-24 * on) break;
    for (std::int64_t p = 0; p < size; ++p)
      for (std::int64_t q = p + 1; q < size; ++q) {
        if (a(p, q) == 0) continue;
        const double ratio = (a(q, q) - a(p, p)) / (2 * a(p, q));
        const double t = (ratio >= 0 ? 1 : -1) / (std::abs(ratio) + std::sqrt(ratio * ratio + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (std::int64_t k = 0; k < size; ++k) {
          const double kp = a(k, p), kq = a(k, q);
          a(k, p) = c * kp - s * kq;
          a(k, q) = s * kp + c * kq;
        }
        for (std::int64_t k = 0; k < size; ++k) {
          const double pk = a(p, k), qk = a(q, k);
          a(p, k) = c * pk - s * qk;
          a(q, k) = s * pk + c * qk;
        }
        for (std::int64_t k = 0; k < size; ++k) {
          const double kp = vectors(k, p), kq = vectors(k, q);
          vectors(k, p) = c * kp - s * kq;
          vectors(k, q) = s * kp + c * kq;
        }
      }
  }
  std::vector<std::int64_t> order(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i) order[static_cast<std::size_t>(i)] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto i, auto j) { return a(i, i) > a(j, j); });
  Matrix out(size, n);
  for (std::int64_t c = 0; c < n; ++c)
    for (std::int64_t r = 0; r < size; ++r) out(r, c) = vectors(r, order[static_cast<std::size_t>(c)]);
  return out;
}

}  // namespace

GateSums::GateSums(std::int64_t hidden, std::int64_t n_experts)
    : D_(hidden),
      E_(n_experts),
      a_D_(static_cast<std::size_t>(hidden)),
      y_E_(static_cast<std::size_t>(n_experts)),
      aa_DD_(static_cast<std::size_t>(hidden * hidden)),
      ya_ED_(static_cast<std::size_t>(n_experts * hidden)) {}

void GateSums::add(Tensor x_TD, Tensor token_T, Tensor gate_ED) {
  Context ctx;
  const ScratchScope scope(ctx.scratch);
  const std::int64_t T = x_TD.rows();
  const Tensor a_TD = ctx.scratch.take(Shape{T, D_}, DType::f32),
               y_TE = ctx.scratch.take(Shape{T, E_}, DType::f32);
  const Tensor mean_T = ctx.scratch.take(Shape{T}, DType::f32), rstd_T = ctx.scratch.take(Shape{T}, DType::f32);
  const Tensor aa_DD = ctx.scratch.take(Shape{D_, D_}, DType::f32),
               ya_ED = ctx.scratch.take(Shape{E_, D_}, DType::f32);
  const Tensor one_D = ctx.scratch.take(Shape{D_}, DType::f32),
               zero_D = ctx.scratch.take(Shape{D_}, DType::f32);
  std::fill_n(one_D.as<float>(), D_, 1.0f);
  for (const Tensor& sums : {aa_DD, ya_ED, zero_D}) ops::fill_zero(sums, ctx);
  ops::layernorm_silu_forward(a_TD, mean_T, rstd_T, x_TD, one_D, zero_D, kNormEps, ctx);
  ops::linear_forward(y_TE, x_TD, gate_ED, ops::Write::set, ctx);
  for (std::int64_t t = 0; t < T; ++t) {
    float* const a = a_TD.row<float>(t);
    float* const y = y_TE.row<float>(t);
    if (token_T.as<std::int32_t>()[t] < 0) {
      std::fill_n(a, D_, 0.0f);
      std::fill_n(y, E_, 0.0f);
      continue;
    }
    tokens_ += 1;
    double mean = 0;
    for (std::int64_t e = 0; e < E_; ++e) mean += static_cast<double>(y[e]) / static_cast<double>(E_);
    for (std::int64_t e = 0; e < E_; ++e) {
      y[e] -= static_cast<float>(mean);
      y_E_[static_cast<std::size_t>(e)] += static_cast<double>(y[e]);
    }
    for (std::int64_t i = 0; i < D_; ++i) a_D_[static_cast<std::size_t>(i)] += static_cast<double>(a[i]);
  }
  ops::linear_backward_weight(aa_DD, a_TD, a_TD, ctx);
  ops::linear_backward_weight(ya_ED, y_TE, a_TD, ctx);
  for (std::size_t i = 0; i < aa_DD_.size(); ++i) aa_DD_[i] += static_cast<double>(aa_DD.as<float>()[i]);
  for (std::size_t i = 0; i < ya_ED_.size(); ++i) ya_ED_[i] += static_cast<double>(ya_ED.as<float>()[i]);
}

// With a the encoder's features and y the centred logits: B = the regression of y on a; S = the covariance of
// what it predicts. Keys begin as the d main directions of S; then by turns the means that predict y best for
// keys of length 1, and the keys that predict it best for these means, since a cosine does not see a key's
// length.
void GateSums::fit(Tensor encoder_dD, Tensor bias_d, Tensor key_Ed) const {
  SY_CHECK(tokens_ > 0, "a fit of no tokens");
  const std::int64_t d = key_Ed.row_size(), rank = std::min(d, E_);
  Matrix covariance(D_, D_), cross(D_, E_);
  for (std::int64_t i = 0; i < D_; ++i) {
    const double a_i = a_D_[static_cast<std::size_t>(i)] / tokens_;
    for (std::int64_t j = 0; j < D_; ++j)
      covariance(i, j) = aa_DD_[static_cast<std::size_t>(i * D_ + j)] / tokens_ -
                         a_i * a_D_[static_cast<std::size_t>(j)] / tokens_;
    for (std::int64_t e = 0; e < E_; ++e)
      cross(i, e) = ya_ED_[static_cast<std::size_t>(e * D_ + i)] / tokens_ -
                    a_i * y_E_[static_cast<std::size_t>(e)] / tokens_;
  }
  add_to_diagonal(covariance, kRidge);
  const Matrix B = solve(covariance, cross);  // [D, E]
  Matrix S = product(transposed(B), cross);   // [E, E]
  for (std::int64_t i = 0; i < E_; ++i)
    for (std::int64_t j = 0; j < E_; ++j)
      S(i, j) += y_E_[static_cast<std::size_t>(i)] / tokens_ * y_E_[static_cast<std::size_t>(j)] / tokens_;
  for (std::int64_t i = 0; i < E_; ++i)
    for (std::int64_t j = 0; j < i; ++j) S(i, j) = S(j, i) = (S(i, j) + S(j, i)) / 2;

  Matrix key = largest_eigenvectors(S, rank), decode(E_, rank);  // decode: means are y decode
  constexpr int kTurns = 20;
  for (int turn = 0; turn <= kTurns; ++turn) {
    scale_rows_to(key, 1);
    Matrix gram = product(transposed(key), key);
    add_to_diagonal(gram, 1e-9);
    decode = transposed(solve(gram, transposed(key)));
    if (turn == kTurns) break;
    const Matrix decoded_S = product(transposed(decode), S);
    Matrix means = product(decoded_S, decode);
    add_to_diagonal(means, 1e-9);
    key = transposed(solve(means, decoded_S));
  }

  // Means of length sqrt(d) in the mean, as the KL term wants them, and keys as long as random ones.
  const Matrix means = product(product(transposed(decode), S), decode);
  double squares = 0;
  for (std::int64_t c = 0; c < rank; ++c) squares += means(c, c);
  const double scale = std::sqrt(static_cast<double>(rank) / std::max(squares, 1e-30));
  scale_rows_to(key, std::sqrt(static_cast<double>(d)));
  const Matrix weight = product(B, decode);  // [D, rank]
  for (std::int64_t c = 0; c < d; ++c) {
    for (std::int64_t e = 0; e < E_; ++e)
      key_Ed.row<float>(e)[c] = c < rank ? static_cast<float>(key(e, c)) : 0.0f;
    if (c >= rank) continue;
    double bias = 0;
    for (std::int64_t e = 0; e < E_; ++e) bias += y_E_[static_cast<std::size_t>(e)] / tokens_ * decode(e, c);
    for (std::int64_t i = 0; i < D_; ++i) {
      encoder_dD.row<float>(c)[i] = static_cast<float>(scale * weight(i, c));
      bias -= a_D_[static_cast<std::size_t>(i)] / tokens_ * weight(i, c);
    }
    bias_d.as<float>()[c] = static_cast<float>(scale * bias);
  }
}

std::int64_t fit_to_gates(model::Transformer& own, const std::vector<Domain>& domains,
                          const CalibrationSettings& settings, ParameterStore& store, Context& ctx) {
  const config::Model& config = own.config();
  const auto rows_of = [](const ParameterStore& of) {
    std::unordered_map<std::string, std::size_t> row_of;
    for (std::size_t row = 0; row < of.rows().size(); ++row) row_of.emplace(of.rows()[row].name, row);
    return row_of;
  };
  const auto own_row = rows_of(own.parameters()), row = rows_of(store);
  const router::RoutingStep& routing = own.routing();
  std::vector<GateSums> sums_L(static_cast<std::size_t>(routing.n_main_layers()),
                               GateSums(config.hidden_size, config.num_experts));
  const auto prefix = [&](std::int64_t l) {
    return model::router_prefix(*config.layout, routing.layer(l).layer());
  };
  own.plan(settings.batch, settings.seq_len, ctx);
  const std::int64_t read =
      for_each_batch(domains, settings, config.sliding_window, ctx, [&](model::Batch batch) {
        own.forward(batch, ctx);
        std::int64_t l = 0;  // of the layers with a router
        own.visit_activations([&](std::int64_t layer, const std::string& name, const Tensor& x_TD) {
          if (name != "post_attention_layernorm output" || l >= routing.n_main_layers() ||
              layer != routing.layer(l).layer())
            return;
          const HostCopy x(x_TD), tokens(batch.token_T),
              gate(own.parameters().value(own_row.at(prefix(l) + "weight")));
          sums_L[static_cast<std::size_t>(l++)].add(x.tensor(), tokens.tensor(), gate.tensor());
        });
        SY_CHECK(l == routing.n_main_layers(), "{} layers of {} have shown what their router sees", l,
                 routing.n_main_layers());
      });
  for (std::int64_t l = 0; l < routing.n_main_layers(); ++l) {
    mark("fit of layer", l);
    const auto value = [&](const char* name) { return store.value(row.at(prefix(l) + name)); };
    const HostCopy weight(value("encoder.weight")), bias(value("encoder.bias")), key(value("expert_keys"));
    const std::int64_t d = key.tensor().row_size();
    sums_L[static_cast<std::size_t>(l)].fit(weight.tensor().slice(0, d), bias.tensor().slice(0, d),
                                            key.tensor());
    for (const HostCopy* copy : {&weight, &bias, &key}) copy->write_back();
    ops::fill_zero(value("out_proj.weight"), ctx);
  }
  return read;
}

}  // namespace switchyard::train
