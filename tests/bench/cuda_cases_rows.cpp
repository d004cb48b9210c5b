// Norms, rotary embedding, latent attention's keys and values, SwiGLU, biases: one pass over rows.
#include <fmt/core.h>

#include "cuda_bench.h"
#include "ops/elementwise.h"
#include "ops/mla.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace switchyard::bench {

namespace {

constexpr std::int64_t kHead = 128;
constexpr double kEps = 1e-6;

// Over whole rows, or over each head of a row.
std::vector<Case> rmsnorm(std::int64_t tokens, std::int64_t groups, std::int64_t width, DType dtype) {
  const Shape rows{tokens, groups * width};
  const auto forward = [=](Workspace& w) {
    const Tensor in = w.normal(rows, dtype), weight = w.normal({width}, dtype), out = w.take(rows, dtype),
                 rstd = w.take({tokens, groups}, DType::f32);
    return Work{.shape = fmt::format("{} of {}", text(in), width),
                .bytes = bytes_of({in, out, rstd}),
                .call = [=](Context& ctx) { ops::cuda::rmsnorm_forward(out, rstd, in, weight, kEps, ctx); }};
  };
  const auto backward = [=](Workspace& w) {
    const Tensor in = w.normal(rows, dtype), weight = w.normal({width}, dtype), dout = w.normal(rows, dtype),
                 din = w.zeros(rows, dtype), dweight = w.zeros({width}, DType::f32),
                 rstd = w.take({tokens, groups}, DType::f32);
    ops::cuda::rmsnorm_forward(din, rstd, in, weight, kEps, w.ctx());
    return Work{
        .shape = fmt::format("{} of {}", text(in), width),
        .bytes = bytes_of({in, dout, rstd, din, din}),
        .call = [=](Context& ctx) { ops::cuda::rmsnorm_backward(din, dweight, dout, in, rstd, weight, ctx); }};
  };
  return {{"rmsnorm_forward", kMoveBar, forward}, {"rmsnorm_backward", kMoveBar, backward}};
}

std::vector<Case> rope(const Sizes& s, std::int64_t head_dim, std::int64_t rotated, ops::RopePairs pairs) {
  const auto rows = [=](Workspace& w) { return w.normal({s.tokens, s.heads * head_dim}, DType::bf16); };
  const auto tables = [=](Workspace& w) {
    return std::pair(w.normal({s.seq_len, rotated / 2}, DType::f32),
                     w.normal({s.seq_len, rotated / 2}, DType::f32, 0.02));
  };
  const auto work = [=](const Tensor& x, std::function<void(Context&)> call) {
    return Work{.shape = fmt::format("{}, {} of {}", text(x), rotated, head_dim),
                .bytes = 2 * bytes_of({x}) * static_cast<double>(rotated) / static_cast<double>(head_dim),
                .call = std::move(call)};
  };
  const ops::RopeLayout layout{head_dim, pairs};
  const char* kind = pairs == ops::RopePairs::halves ? "halves" : "neighbours";
  return {{fmt::format("rope_forward, {}", kind), kMoveBar,
           [=](Workspace& w) {
             const Tensor x = rows(w);
             const auto [cosine, sine] = tables(w);
             return work(x, [=, cosine = cosine, sine = sine](Context& ctx) {
               ops::cuda::rope_forward(x, cosine, sine, s.seq_len, layout, ctx);
             });
           }},
          {fmt::format("rope_backward, {}", kind), kMoveBar, [=](Workspace& w) {
             const Tensor dx = rows(w);
             const auto [cosine, sine] = tables(w);
             return work(dx, [=, cosine = cosine, sine = sine](Context& ctx) {
               ops::cuda::rope_backward(dx, cosine, sine, s.seq_len, layout, ctx);
             });
           }}};
}

std::vector<Case> mla(const Sizes& s) {
  const ops::MlaWidths widths{.heads = s.heads, .nope = 128, .rope = 64, .value = 128};
  const std::int64_t T = s.tokens, H = s.heads;
  struct Tensors {
    Tensor kv, k_rope, k, v;
  };
  const auto tensors = [=](Workspace& w) {
    return Tensors{w.normal({T, H * (widths.nope + widths.value)}, DType::bf16),
                   w.normal({T, widths.rope}, DType::bf16),
                   w.normal({T, H * (widths.nope + widths.rope)}, DType::bf16),
                   w.normal({T, H * widths.value}, DType::bf16)};
  };
  return {{"mla_split_forward", 0,
           [=](Workspace& w) {
             const Tensors x = tensors(w);
             return Work{
                 .shape = text(x.kv), .bytes = bytes_of({x.kv, x.k_rope, x.k, x.v}), .call = [=](Context& ctx) {
                   ops::cuda::mla_split_forward(x.k, x.v, x.kv, x.k_rope, widths, ctx);
                 }};
           }},
          {"mla_split_backward", 0, [=](Workspace& w) {
             const Tensors x = tensors(w);
             return Work{
                 .shape = text(x.kv), .bytes = bytes_of({x.kv, x.k_rope, x.k, x.v}), .call = [=](Context& ctx) {
                   ops::cuda::mla_split_backward(x.kv, x.k_rope, x.k, x.v, widths, ctx);
                 }};
           }}};
}

std::vector<Case> swiglu(const Sizes& s) {
  const std::int64_t R = s.routed_tokens * s.slots, F = s.expert_width;
  return {{"swiglu_forward", 0,
           [=](Workspace& w) {
             const Tensor gate_up = w.normal({R, 2 * F}, DType::bf16), out = w.take({R, F}, DType::bf16);
             return Work{.shape = text(gate_up), .bytes = bytes_of({gate_up, out}), .call = [=](Context& ctx) {
                           ops::cuda::swiglu_forward(out, gate_up, ctx);
                         }};
           }},
          {"swiglu_backward", 0, [=](Workspace& w) {
             const Tensor gate_up = w.normal({R, 2 * F}, DType::bf16), dout = w.normal({R, F}, DType::bf16),
                          dgate_up = w.take({R, 2 * F}, DType::bf16);
             return Work{
                 .shape = text(gate_up),
                 .bytes = bytes_of({gate_up, dout, dgate_up}),
                 .call = [=](Context& ctx) { ops::cuda::swiglu_backward(dgate_up, dout, gate_up, ctx); }};
           }}};
}

std::vector<Case> bias(const Sizes& s) {
  return {{"bias_forward", 0,
           [=](Workspace& w) {
             const Tensor out = w.normal({s.tokens, s.hidden}, DType::bf16),
                          bias_N = w.normal({s.hidden}, DType::bf16, 0.02);
             return Work{.shape = text(out), .bytes = bytes_of({out, out}), .call = [=](Context& ctx) {
                           ops::cuda::bias_forward(out, bias_N, ctx);
                         }};
           }},
          {"bias_backward", 0, [=](Workspace& w) {
             const Tensor dout = w.normal({s.tokens, s.hidden}, DType::bf16),
                          dbias = w.zeros({s.hidden}, DType::f32);
             return Work{.shape = text(dout), .bytes = bytes_of({dout}), .call = [=](Context& ctx) {
                           ops::cuda::bias_backward(dbias, dout, ctx);
                         }};
           }}};
}

}  // namespace

std::vector<Case> row_cases(const Sizes& s) {
  std::vector<Case> all;
  for (const auto& family :
       {rmsnorm(s.tokens, 1, s.hidden, DType::bf16), rmsnorm(s.tokens, 1, s.hidden, DType::f32),
        rmsnorm(s.tokens, s.heads, kHead, DType::bf16), rope(s, kHead, kHead, ops::RopePairs::halves),
        rope(s, kHead, kHead, ops::RopePairs::neighbours), rope(s, 192, 64, ops::RopePairs::neighbours), mla(s),
        swiglu(s), bias(s)})
    all.insert(all.end(), family.begin(), family.end());
  return all;
}

}  // namespace switchyard::bench
