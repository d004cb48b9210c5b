#include "train/router_fit.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <unordered_map>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/progress.h"
#include "core/rng.h"
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

namespace {

std::unordered_map<std::string, std::size_t> rows_by_name(const ParameterStore& store) {
  std::unordered_map<std::string, std::size_t> row_of;
  for (std::size_t row = 0; row < store.rows().size(); ++row) row_of.emplace(store.rows()[row].name, row);
  return row_of;
}

std::string router_prefix(const model::Transformer& model, std::int64_t l) {
  return model::router_prefix(*model.config().layout, model.routing().layer(l).layer());
}

// Calls `look` with what the router of each layer sees, the l-th of the main model's, and the tokens; on the
// host. Returns the tokens.
std::int64_t for_each_router_input(
    model::Transformer& model, const std::vector<Domain>& domains, const CalibrationSettings& settings,
    Context& ctx, const std::function<void(std::int64_t l, const Tensor& x_TD, const Tensor& token_T)>& look) {
  const router::RoutingStep& routing = model.routing();
  model.keep_activations(true);
  model.plan(settings.batch, settings.seq_len, ctx);
  return for_each_batch(domains, settings, model.config().sliding_window, ctx, [&](model::Batch batch) {
    model.forward(batch, ctx);
    std::int64_t l = 0;  // of the layers with a router
    model.visit_activations([&](std::int64_t layer, const std::string& name, const Tensor& x_TD) {
      if (name != "post_attention_layernorm output" || l >= routing.n_main_layers() ||
          layer != routing.layer(l).layer())
        return;
      const HostCopy x(x_TD), tokens(batch.token_T);
      look(l++, x.tensor(), tokens.tensor());
    });
    SY_CHECK(l == routing.n_main_layers(), "{} layers of {} have shown what their router sees", l,
             routing.n_main_layers());
  });
}

}  // namespace

std::int64_t fit_to_gates(model::Transformer& own, const std::vector<Domain>& domains,
                          const CalibrationSettings& settings, ParameterStore& store, Context& ctx) {
  const config::Model& config = own.config();
  const auto own_row = rows_by_name(own.parameters()), row = rows_by_name(store);
  const std::int64_t n_layers = own.routing().n_main_layers();
  std::vector<GateSums> sums_L(static_cast<std::size_t>(n_layers),
                               GateSums(config.hidden_size, config.num_experts));
  const std::int64_t read = for_each_router_input(
      own, domains, settings, ctx, [&](std::int64_t l, const Tensor& x_TD, const Tensor& token_T) {
        const HostCopy gate(own.parameters().value(own_row.at(router_prefix(own, l) + "weight")));
        sums_L[static_cast<std::size_t>(l)].add(x_TD, token_T, gate.tensor());
      });
  for (std::int64_t l = 0; l < n_layers; ++l) {
    mark("fit of layer", l);
    const auto value = [&](const char* name) { return store.value(row.at(router_prefix(own, l) + name)); };
    const HostCopy weight(value("encoder.weight")), bias(value("encoder.bias")), key(value("expert_keys"));
    const std::int64_t d = key.tensor().row_size();
    sums_L[static_cast<std::size_t>(l)].fit(weight.tensor().slice(0, d), bias.tensor().slice(0, d),
                                            key.tensor());
    for (const HostCopy* copy : {&weight, &bias, &key}) copy->write_back();
    // Not there without router.prototype_addend.
    if (row.contains(router_prefix(own, l) + "out_proj.weight")) ops::fill_zero(value("out_proj.weight"), ctx);
  }
  return read;
}

void cluster_directions(Tensor centre_CD, Tensor x_TD) {
  const std::int64_t T = x_TD.rows(), D = x_TD.row_size(), C = centre_CD.rows();
  SY_CHECK(T >= C, "{} clusters of {} rows", C, T);
  std::vector<double> mean(static_cast<std::size_t>(D));
  Matrix way(T, D), centre(C, D);  // way: directions from the mean
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t i = 0; i < D; ++i)
      mean[static_cast<std::size_t>(i)] += static_cast<double>(x_TD.row<float>(t)[i]) / static_cast<double>(T);
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t i = 0; i < D; ++i)
      way(t, i) = static_cast<double>(x_TD.row<float>(t)[i]) - mean[static_cast<std::size_t>(i)];
  scale_rows_to(way, 1);
  // Each next centre is a row, drawn by its squared distance from those before (k-means++).
  const Rng rng(0, RngPurpose::router_noise, 0);
  std::vector<double> distance_T(static_cast<std::size_t>(T), 2);
  for (std::int64_t c = 0, chosen = 0; c < C; ++c) {
    double left =
        rng.uniform(static_cast<std::uint64_t>(c)) * std::accumulate(distance_T.begin(), distance_T.end(), 0.0);
    for (chosen = 0; chosen < T - 1; ++chosen)
      if ((left -= distance_T[static_cast<std::size_t>(chosen)]) < 0) break;
    for (std::int64_t i = 0; i < D; ++i) centre(c, i) = way(chosen, i);
    for (std::int64_t t = 0; t < T; ++t) {
      double near = 0;
      for (std::int64_t i = 0; i < D; ++i) near += way(t, i) * centre(c, i);
      double& distance = distance_T[static_cast<std::size_t>(t)];
      distance = std::min(distance, std::max(0.0, 2 - 2 * near));
    }
  }
  constexpr int kIterations = 10;
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    const Matrix near = product(way, transposed(centre));  // [T, C]
    Matrix sum(C, D);
    std::vector<std::int64_t> count(static_cast<std::size_t>(C));
    for (std::int64_t t = 0; t < T; ++t) {
      std::int64_t best = 0;
      for (std::int64_t c = 1; c < C; ++c)
        if (near(t, c) > near(t, best)) best = c;
      ++count[static_cast<std::size_t>(best)];
      for (std::int64_t i = 0; i < D; ++i) sum(best, i) += way(t, i);
    }
    for (std::int64_t c = 0; c < C; ++c)  // one that no row is nearest to stays
      if (count[static_cast<std::size_t>(c)] > 0)
        for (std::int64_t i = 0; i < D; ++i) centre(c, i) = sum(c, i);
    scale_rows_to(centre, 1);
  }
  // What all rows have in common chooses no cluster.
  double length = 0;
  for (const double m : mean) length += m * m;
  for (std::int64_t c = 0; c < C && length > 0; ++c) {
    double along = 0;
    for (std::int64_t i = 0; i < D; ++i) along += centre(c, i) * mean[static_cast<std::size_t>(i)] / length;
    for (std::int64_t i = 0; i < D; ++i) centre(c, i) -= along * mean[static_cast<std::size_t>(i)];
  }
  double squares = 0;
  for (std::int64_t t = 0; t < T; ++t) {
    double sum = 0, sum2 = 0;
    for (std::int64_t c = 0; c < C; ++c) {
      double logit = 0;
      for (std::int64_t i = 0; i < D; ++i) logit += centre(c, i) * static_cast<double>(x_TD.row<float>(t)[i]);
      sum += logit;
      sum2 += logit * logit;
    }
    squares += (sum2 - sum * sum / static_cast<double>(C)) / static_cast<double>(C * T);
  }
  const double scale = squares > 0 ? 1 / std::sqrt(squares) : 1;
  for (std::int64_t c = 0; c < C; ++c)
    for (std::int64_t i = 0; i < D; ++i) centre_CD.row<float>(c)[i] = static_cast<float>(scale * centre(c, i));
}

std::int64_t cluster_gates(model::Transformer& own, const std::vector<Domain>& domains,
                           const CalibrationSettings& settings, std::int64_t n_together, ParameterStore& store,
                           Context& ctx) {
  constexpr std::int64_t kOfACluster = 128;  // tokens that are kept, in all layers
  const config::Model& config = own.config();
  const std::int64_t C = config.num_experts / n_together, D = config.hidden_size;
  const std::int64_t all = calibration_steps(domains, settings) * settings.batch * settings.seq_len;
  const std::int64_t apart = std::max<std::int64_t>(1, all / (kOfACluster * C));
  const std::int64_t n_layers = own.routing().n_main_layers();
  std::vector<std::vector<float>> x_L(static_cast<std::size_t>(n_layers));
  std::vector<std::int64_t> seen_L(static_cast<std::size_t>(n_layers));
  const std::int64_t read = for_each_router_input(
      own, domains, settings, ctx, [&](std::int64_t l, const Tensor& x_TD, const Tensor& token_T) {
        const auto at = static_cast<std::size_t>(l);
        for (std::int64_t t = 0; t < x_TD.rows(); ++t)
          if (token_T.as<std::int32_t>()[t] >= 0 && seen_L[at]++ % apart == 0)
            x_L[at].insert(x_L[at].end(), x_TD.row<float>(t), x_TD.row<float>(t) + D);
      });
  const auto row = rows_by_name(store);
  std::vector<float> centres(static_cast<std::size_t>(C * D));
  for (std::int64_t l = 0; l < n_layers; ++l) {
    mark("clusters of layer", l);
    std::vector<float>& x = x_L[static_cast<std::size_t>(l)];
    const std::int64_t T = static_cast<std::int64_t>(x.size()) / D;
    if (T < C) throw_input("--fit-router: {} tokens for {} clusters; give more", T, C);
    const Tensor centre_CD(centres.data(), Shape{C, D}, DType::f32);
    cluster_directions(centre_CD, Tensor(x.data(), Shape{T, D}, DType::f32));
    const HostCopy gate_ED(store.value(row.at(router_prefix(own, l) + "weight")));
    for (std::int64_t e = 0; e < config.num_experts; ++e)
      copy(gate_ED->slice(e, 1), centre_CD.slice(e / n_together, 1));
    gate_ED.write_back();
  }
  return read;
}

}  // namespace switchyard::train
