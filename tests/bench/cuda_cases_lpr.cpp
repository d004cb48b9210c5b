// Latent prototype routing: the encoder's norm, the latent rows, their prototypes and what keeps them apart.
// All float32 but the sums; T tokens, E experts, d width of the latent space.
#include <fmt/core.h>

#include "core/rng.h"
#include "cuda_bench.h"
#include "ops/elementwise.h"
#include "ops/latent.h"
#include "ops/latent_losses.h"
#include "ops/norm.h"
#include "ops/prototype.h"

namespace switchyard::bench {

namespace {

constexpr DType f32 = DType::f32;

std::vector<Case> layernorm(const Sizes& s) {
  struct Tensors {
    Tensor x, out, mean, rstd, weight, bias;
    Tensors(Workspace& w, const Sizes& s)
        : x(w.normal({s.tokens, s.hidden}, f32)),
          out(w.take(x.shape(), f32)),
          mean(w.take({s.tokens}, f32)),
          rstd(w.take({s.tokens}, f32)),
          weight(w.normal({s.hidden}, f32)),
          bias(w.normal({s.hidden}, f32)) {}
    void forward(Context& ctx) const {
      ops::cuda::layernorm_silu_forward(out, mean, rstd, x, weight, bias, 1e-5, ctx);
    }
  };
  return {{"layernorm_silu_forward", kMoveBar,
           [=](Workspace& w) {
             const Tensors c(w, s);
             return Work{.shape = text(c.x), .bytes = bytes_of({c.x, c.out}), .call = [=](Context& ctx) {
                           c.forward(ctx);
                         }};
           }},
          {"layernorm_silu_backward", kMoveBar, [=](Workspace& w) {
             const Tensors c(w, s);
             c.forward(w.ctx());
             const Tensor dout = w.normal(c.x.shape(), f32), dx = w.zeros(c.x.shape(), f32),
                          dweight = w.zeros({s.hidden}, f32), dbias = w.zeros({s.hidden}, f32);
             return Work{.shape = text(c.x), .bytes = bytes_of({c.x, dout, dx, dx}), .call = [=](Context& ctx) {
                           ops::cuda::layernorm_silu_backward(dx, dweight, dbias, dout, c.x, c.mean, c.rstd,
                                                              c.weight, c.bias, ctx);
                         }};
           }}};
}

// Rows of the latent space, as many as tokens.
struct LatentTensors {
  Tensor a_Td, b_Td, c_Td, norm_T, token_T, sum_1, rng_offset_2;
};
using RowsCall = std::function<void(const LatentTensors&, Context&)>;
Case on_rows(const Sizes& s, const char* kernel, int passes, const RowsCall& call) {
  return {kernel, 0, [=](Workspace& w) {
            const Shape rows{s.router_tokens, s.latent}, tokens{s.router_tokens};
            const LatentTensors t{.a_Td = w.normal(rows, f32),
                                  .b_Td = w.normal(rows, f32),
                                  .c_Td = w.normal(rows, f32),
                                  .norm_T = w.normal(tokens, f32),
                                  .token_T = w.zeros(tokens, DType::i32),
                                  .sum_1 = w.zeros({1}, DType::f64),
                                  .rng_offset_2 = w.zeros({2}, DType::i32)};
            return Work{.shape = text(t.a_Td), .bytes = passes * bytes_of({t.a_Td}), .call = [=](Context& ctx) {
                          call(t, ctx);
                        }};
          }};
}

std::vector<Case> latent(const Sizes& s) {
  using T = LatentTensors;
  return {
      on_rows(s, "unit_rows_forward", 2,
              [](const T& t, Context& ctx) { ops::cuda::unit_rows_forward(t.a_Td, t.norm_T, t.b_Td, ctx); }),
      on_rows(s, "unit_rows_backward", 4,
              [](const T& t, Context& ctx) {
                ops::cuda::unit_rows_backward(t.a_Td, t.b_Td, t.c_Td, t.norm_T, ctx);
              }),
      on_rows(s, "sample_latent", 3,
              [](const T& t, Context& ctx) { ops::cuda::sample_latent(t.a_Td, t.b_Td, t.c_Td, t.b_Td, ctx); }),
      on_rows(s, "standard_kl_sum", 2,
              [](const T& t, Context& ctx) {
                ops::cuda::standard_kl_sum(t.sum_1, t.a_Td, t.b_Td, t.token_T, ctx);
              }),
      on_rows(s, "standard_kl_backward", 6,
              [](const T& t, Context& ctx) {
                ops::cuda::standard_kl_backward(t.a_Td, t.b_Td, t.c_Td, t.c_Td, t.token_T, 1e-6, ctx);
              }),
      on_rows(s, "scale_rows", 2,
              [](const T& t, Context& ctx) { ops::cuda::scale_rows(t.a_Td, t.b_Td, 0.5, ctx); }),
      on_rows(s, "clear_skipped_rows", 1,
              [](const T& t, Context& ctx) { ops::cuda::clear_skipped_rows(t.a_Td, t.token_T, ctx); }),
      on_rows(s, "add_normal", 2, [](const T& t, Context& ctx) {
        ops::cuda::add_normal(t.a_Td, Rng(1, RngPurpose::router_noise, 0), {t.rng_offset_2, 1, 1}, 0.1, ctx);
      })};
}

std::vector<Case> regularisation(const Sizes& s) {
  const std::int64_t T = s.router_tokens, d = s.latent, E = s.experts, K = s.slots;
  const auto moments = [=](Workspace& w) {
    const Tensor unit = w.normal({T, d}, f32), gram = w.take({d, d}, DType::f64), sum = w.take({d}, DType::f64);
    return Work{.shape = text(unit), .bytes = bytes_of({unit}), .call = [=](Context& ctx) {
                  ops::cuda::row_moments(gram, sum, unit, {}, ctx);
                }};
  };
  const auto affine = [=](Workspace& w) {
    const Tensor unit = w.normal({T, d}, f32), dunit = w.normal({T, d}, f32),
                 matrix = w.zeros({d, d}, DType::f64), offset = w.zeros({d}, DType::f64);
    return Work{.shape = text(unit), .bytes = bytes_of({unit, dunit, dunit}), .call = [=](Context& ctx) {
                  ops::cuda::add_affine_rows(dunit, unit, matrix, offset, {}, ctx);
                }};
  };
  const auto pairs = [=](Workspace& w) {
    const Tensor key = w.normal({E, d}, f32), dkey = w.zeros({E, d}, f32), scale = w.zeros({1}, DType::f64);
    return Work{.shape = text(key), .bytes = bytes_of({key, dkey, dkey}), .call = [=](Context& ctx) {
                  ops::cuda::pair_distance_backward(dkey, key, {}, scale, ctx);
                }};
  };
  // The gradient of the default diversity of tokens, and the loss of alignment with the tokens sent to them.
  const auto diversity = [=](Workspace& w) {
    const Tensor gram = w.zeros({d, d}, DType::f64), sum = w.zeros({d}, DType::f64),
                 matrix = w.take({d, d}, DType::f64), offset = w.take({d}, DType::f64);
    return Work{.shape = text(gram), .bytes = bytes_of({gram, sum, matrix, offset}), .call = [=](Context& ctx) {
                  ops::cuda::diversity_gradient(matrix, offset, {}, ops::Diversity::orthogonal,
                                                {.gram_dd = gram, .sum_d = sum, .n = static_cast<double>(T)},
                                                {1e-6}, ctx);
                }};
  };
  const auto align = [=](Workspace& w) {
    const Tensor key = w.normal({E, d}, f32), target = w.zeros({E, d}, DType::f64),
                 loss = w.zeros({1}, DType::f64);
    return Work{.shape = text(key), .bytes = bytes_of({key, target}), .call = [=](Context& ctx) {
                  ops::cuda::add_alignment_loss(loss, key, target, {1e-6}, ctx);
                }};
  };
  const auto alignment = [=](Workspace& w) {
    std::vector<std::int32_t> choice;
    for (std::int64_t i = 0; i < T * K; ++i) choice.push_back(static_cast<std::int32_t>(i * 7 % E));
    const Tensor z = w.normal({T, d}, f32), chosen = w.normal({T, K}, f32), expert = w.ints({T, K}, choice),
                 sum = w.take({E, d}, DType::f64), count = w.take({E}, DType::f64);
    return Work{.shape = fmt::format("{}, {} slots", text(z), K),
                .bytes = bytes_of({z, chosen, expert}),
                .call = [=](Context& ctx) { ops::cuda::routed_sums(sum, count, z, chosen, expert, ctx); }};
  };
  return {{"row_moments", 0, moments},          {"add_affine_rows", 0, affine},
          {"pair_distance_backward", 0, pairs}, {"diversity_gradient", 0, diversity},
          {"add_alignment_loss", 0, align},     {"routed_sums", 0, alignment}};
}

std::vector<Case> prototypes(const Sizes& s, ops::PrototypeSimilarity similarity, const char* name) {
  struct Tensors {
    ops::GaussianRows token, key, dtoken, dkey;
    Tensor score, dscore;
    ops::PrototypeMetric metric;
    Tensors(Workspace& w, const Sizes& s, ops::PrototypeSimilarity similarity) : metric{similarity} {
      const Shape tokens{s.router_tokens, s.latent}, keys{s.experts, s.latent},
          scores{s.router_tokens, s.experts};
      token = {w.normal(tokens, f32), w.normal(tokens, f32, 0.02)};
      key = {w.normal(keys, f32), w.normal(keys, f32, 0.02)};
      dtoken = {w.zeros(tokens, f32), w.zeros(tokens, f32)};
      dkey = {w.zeros(keys, f32), w.zeros(keys, f32)};
      score = w.take(scores, f32);
      dscore = w.normal(scores, f32);
    }
    void forward(Context& ctx) const {
      ops::cuda::prototype_similarity_forward(score, token, key, metric, ctx);
    }
  };
  return {{fmt::format("prototype_similarity_forward, {}", name), 0,
           [=](Workspace& w) {
             const Tensors c(w, s, similarity);
             return Work{.shape = fmt::format("{} of {}", text(c.score), s.latent),
                         .bytes = bytes_of({c.token.mean, c.score}),
                         .call = [=](Context& ctx) { c.forward(ctx); }};
           }},
          {fmt::format("prototype_similarity_backward, {}", name), 0, [=](Workspace& w) {
             const Tensors c(w, s, similarity);
             c.forward(w.ctx());
             return Work{.shape = fmt::format("{} of {}", text(c.score), s.latent),
                         .bytes = bytes_of({c.token.mean, c.dtoken.mean, c.dtoken.mean, c.score, c.dscore}),
                         .call = [=](Context& ctx) {
                           ops::cuda::prototype_similarity_backward(c.dtoken, c.dkey, c.dscore, c.score,
                                                                    c.token, c.key, c.metric, ctx);
                         }};
           }}};
}

}  // namespace

std::vector<Case> lpr_cases(const Sizes& s) {
  std::vector<Case> all;
  for (const auto& family : {layernorm(s), latent(s), regularisation(s),
                             prototypes(s, ops::PrototypeSimilarity::gaussian, "gaussian"),
                             prototypes(s, ops::PrototypeSimilarity::hellinger, "hellinger")})
    all.insert(all.end(), family.begin(), family.end());
  return all;
}

}  // namespace switchyard::bench
