// The two ceilings, dense products, embedding and classifier, and what walks over the whole parameter store.
#include <fmt/core.h>

#include <cmath>
#include <set>

#include "core/rng.h"
#include "cuda/error.h"
#include "cuda/launch.h"
#include "cuda_bench.h"
#include "ops/adamw.h"
#include "ops/classifier.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/linear.h"

namespace switchyard::bench {

namespace {

using ops::Write;

// Tokens as frequent as words are: uniform in the logarithm of their number.
std::vector<std::int32_t> word_like_tokens(std::int64_t count, std::int64_t vocab) {
  const Rng rng(2, RngPurpose::init, 1);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    const double rank = std::pow(static_cast<double>(vocab), rng.uniform(static_cast<std::uint64_t>(i)));
    tokens.push_back(static_cast<std::int32_t>(rank) - 1);
  }
  return tokens;
}

double product_flop(std::int64_t m, std::int64_t n, std::int64_t k) {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

// in_TK weight_NK^T: out_TN.
std::vector<Case> linear(std::int64_t T, std::int64_t N, std::int64_t K, DType dtype, MatmulType matmul) {
  const bool rounded = dtype == DType::f32 && matmul == MatmulType::bf16;
  const std::string shape = fmt::format("{} x {} x {} {}{}", T, N, K, name_of(dtype),
                                        matmul == MatmulType::e4m3 ? " in e4m3"
                                        : rounded                  ? " rounded"
                                                                   : "");
  const auto multiply = [=](const Tensor& c, const Tensor& a, const Tensor& b, auto&& call) {
    return Work{
        .shape = shape, .bytes = bytes_of({c, a, b}), .flop = product_flop(T, N, K), .call = [=](Context& ctx) {
          ctx.matmul = matmul;
          call(ctx);
        }};
  };
  return {{"linear_forward", 0,
           [=](Workspace& w) {
             const Tensor in = w.normal({T, K}, dtype), weight = w.normal({N, K}, dtype, 0.02),
                          out = w.take({T, N}, dtype);
             return multiply(out, in, weight, [=](Context& ctx) {
               ops::cuda::linear_forward(out, in, weight, Write::set, ctx);
             });
           }},
          {"linear_backward_input", 0,
           [=](Workspace& w) {
             const Tensor dout = w.normal({T, N}, dtype), weight = w.normal({N, K}, dtype, 0.02),
                          din = w.take({T, K}, dtype);
             return multiply(din, dout, weight, [=](Context& ctx) {
               ops::cuda::linear_backward_input(din, dout, weight, Write::set, ctx);
             });
           }},
          {"linear_backward_weight", 0, [=](Workspace& w) {
             const Tensor dout = w.normal({T, N}, dtype), in = w.normal({T, K}, dtype),
                          dweight = w.zeros({N, K}, DType::f32);
             return multiply(dweight, dout, in,
                             [=](Context& ctx) { ops::cuda::linear_backward_weight(dweight, dout, in, ctx); });
           }}};
}

std::vector<Case> embedding(const Sizes& s) {
  struct Tensors {
    Tensor token, rows;
    double distinct;  // tokens that occur
  };
  const auto tensors = [=](Workspace& w) {
    const std::vector<std::int32_t> tokens = word_like_tokens(s.tokens, s.vocab);
    return Tensors{w.ints({s.tokens}, tokens), w.normal({s.tokens, s.hidden}, DType::bf16),
                   static_cast<double>(std::set(tokens.begin(), tokens.end()).size())};
  };
  return {{"embedding_forward", 0,
           [=](Workspace& w) {
             const Tensors x = tensors(w);
             const Tensor weight = w.normal({s.vocab, s.hidden}, DType::bf16);
             return Work{
                 .shape = fmt::format("{} of {}", text(x.rows), s.vocab),
                 .bytes = bytes_of({x.rows}) + x.distinct * static_cast<double>(s.hidden) * 2,
                 .call = [=](Context& ctx) { ops::cuda::embedding_forward(x.rows, x.token, weight, ctx); }};
           }},
          {"embedding_backward", 0, [=](Workspace& w) {
             const Tensors x = tensors(w);
             const Tensor dweight = w.zeros({s.vocab, s.hidden}, DType::f32);
             return Work{
                 .shape = fmt::format("{} of {}", text(x.rows), s.vocab),
                 .bytes = bytes_of({x.rows}) + x.distinct * static_cast<double>(s.hidden) * 8,
                 .call = [=](Context& ctx) { ops::cuda::embedding_backward(dweight, x.rows, x.token, ctx); }};
           }}};
}

std::vector<Case> classifier(const Sizes& s) {
  const std::int64_t T = s.target_tokens, D = s.hidden, V = s.vocab;
  struct Tensors {
    Tensor x, weight, target, loss;
  };
  const auto tensors = [=](Workspace& w) {
    return Tensors{w.normal({T, D}, DType::bf16), w.normal({V, D}, DType::bf16, 0.02),
                   w.ints({T}, word_like_tokens(T, V)), w.take({T}, DType::f32)};
  };
  const std::string shape = fmt::format("{} x {}, {} words bf16", T, D, V);
  return {{"classifier_forward", 0,
           [=](Workspace& w) {
             const Tensors c = tensors(w);
             return Work{.shape = shape,
                         .bytes = bytes_of({c.x, c.weight}),
                         .flop = product_flop(T, V, D),
                         .call = [=](Context& ctx) {
                           ops::cuda::classifier_forward(c.loss, c.x, c.weight, c.target, ctx);
                         }};
           }},
          {"classifier_forward_backward", 0, [=](Workspace& w) {
             const Tensors c = tensors(w);
             const Tensor dx = w.take({T, D}, DType::bf16), dweight = w.zeros({V, D}, DType::f32);
             return Work{.shape = shape,
                         .bytes = bytes_of({c.x, c.weight, dx, dweight, dweight}),
                         .flop = 3 * product_flop(T, V, D),
                         .call = [=](Context& ctx) {
                           ops::cuda::classifier_forward_backward(c.loss, dx, dweight, c.x, c.weight, c.target,
                                                                  1.0 / static_cast<double>(T), ctx);
                         }};
           }}};
}

std::vector<Case> whole_tensors(const Sizes& s) {
  const std::int64_t P = s.parameters;
  return {
      {"adamw_update", kMoveBar,
       [=](Workspace& w) {
         const Tensor param = w.normal({P}, DType::f32), m = w.zeros({P}, DType::f32),
                      v = w.zeros({P}, DType::f32), grad = w.normal({P}, DType::f32, 0.02),
                      weight = w.take({P}, DType::bf16), squares = w.zeros({1}, DType::f64),
                      scale = w.take({1}, DType::f64);
         ops::cuda::clip_factor(scale, squares, 1.0, w.ctx());
         const ops::AdamWStep step{
             .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .step = 10};
         return Work{.shape = text(param),
                     .bytes = bytes_of({param, param, m, m, v, v, grad, weight}),
                     .call = [=](Context& ctx) {
                       ops::cuda::adamw_update(param, m, v, grad, scale, step, weight, ctx);
                     }};
       }},
      {"sum_of_squares (the global norm)", 0,
       [=](Workspace& w) {
         const Tensor in = w.normal({P}, DType::f32, 0.02), sum = w.take({1}, DType::f64);
         return Work{.shape = text(in), .bytes = bytes_of({in}), .call = [=](Context& ctx) {
                       ops::cuda::sum_of_squares(sum, in, ctx);
                     }};
       }},
      {"fill_zero", 0,
       [=](Workspace& w) {
         const Tensor out = w.take({P}, DType::f32);
         return Work{.shape = text(out), .bytes = bytes_of({out}), .call = [=](Context& ctx) {
                       ops::cuda::fill_zero(out, ctx);
                     }};
       }},
      {"add", 0,
       [=](Workspace& w) {
         const Tensor a = w.normal({s.tokens, s.hidden}, DType::bf16), b = w.normal(a.shape(), DType::bf16),
                      out = w.take(a.shape(), DType::bf16);
         return Work{.shape = text(out), .bytes = bytes_of({a, b, out}), .call = [=](Context& ctx) {
                       ops::cuda::add(out, a, b, ctx);
                     }};
       }},
      {"copy", 0,
       [=](Workspace& w) {
         const Tensor in = w.normal({s.tokens, s.hidden}, DType::bf16), out = w.take(in.shape(), DType::bf16);
         return Work{.shape = text(out), .bytes = bytes_of({in, out}), .call = [=](Context& ctx) {
                       ops::cuda::copy(out, in, ctx);
                     }};
       }},
      {"shift_tokens", 0, [=](Workspace& w) {
         const std::int64_t T = s.n_seq * s.seq_len;
         const Tensor token = w.ints({T}, word_like_tokens(T, s.vocab)),
                      target = w.ints({T}, word_like_tokens(T, s.vocab)), begin = w.zeros({T}, DType::i32),
                      next = w.take({T}, DType::i32), next_target = w.take({T}, DType::i32);
         return Work{.shape = text(token),
                     .bytes = bytes_of({token, target, begin, next, next_target}),
                     .call = [=](Context& ctx) {
                       ops::cuda::shift_tokens(next, next_target, token, target, begin, s.seq_len, 1, ctx);
                     }};
       }}};
}

}  // namespace

Case product_ceiling(const Sizes& s) {
  Case square = linear(s.product, s.product, s.product, DType::bf16, MatmulType::bf16)[0];
  square.kernel = "product (the ceiling)";
  return square;
}

Case copy_ceiling(const Sizes& s) {
  return {"copy of device memory (the ceiling)", 0, [=](Workspace& w) {
            const Tensor from = w.normal({s.copy_bytes / 4}, DType::f32), to = w.take(from.shape(), DType::f32);
            return Work{.shape = text(from), .bytes = bytes_of({from, to}), .call = [=](Context& ctx) {
                          SY_CUDA(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<std::size_t>(from.nbytes()),
                                                  cudaMemcpyDeviceToDevice, ops::cuda::stream_of(ctx)));
                        }};
          }};
}

std::vector<Case> model_cases(const Sizes& s) {
  std::vector<Case> all;
  for (const auto& family : {linear(s.tokens, s.hidden, s.hidden, DType::bf16, MatmulType::bf16),
                             linear(s.tokens, s.hidden, s.hidden, DType::f32, MatmulType::bf16),
                             linear(s.router_tokens, s.experts, s.hidden, DType::f32, MatmulType::f32),
                             embedding(s), classifier(s), whole_tensors(s)})
    all.insert(all.end(), family.begin(), family.end());
  if (ops::e4m3_unavailable_reason(Device::cuda).empty()) {
    const std::vector<Case> e4m3 = linear(s.tokens, s.hidden, s.hidden, DType::bf16, MatmulType::e4m3);
    all.insert(all.end(), e4m3.begin(), e4m3.end());
  }
  return all;
}

}  // namespace switchyard::bench
