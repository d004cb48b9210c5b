// Attention, forward and backward. Products are counted for the keys that are seen: two forward, five backward.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "cuda/attention_cudnn.h"
#include "cuda_bench.h"
#include "ops/attention.h"

namespace switchyard::bench {

namespace {

enum class Mask { causal, window, documents };

struct Heads {
  std::int64_t query, kv, width, value_width;
};

// Tokens that each sees, itself too; 0: all before it.
std::int64_t window_of(Mask mask, std::int64_t seq_len) { return mask == Mask::window ? seq_len / 4 : 0; }

// The first key that each token of a sequence sees.
std::vector<std::int32_t> first_keys(Mask mask, std::int64_t n_seq, std::int64_t seq_len) {
  std::vector<std::int32_t> begin;
  for (std::int64_t t = 0; t < n_seq * seq_len; ++t) {
    const std::int64_t position = t % seq_len;
    std::int64_t first = 0;
    if (mask == Mask::window) first = std::max<std::int64_t>(0, position + 1 - window_of(mask, seq_len));
    if (mask == Mask::documents)  // of unequal lengths, a fifth of the sequence on average
      for (const std::int64_t border : {seq_len / 17, seq_len / 3, seq_len / 2, seq_len * 11 / 13})
        if (position >= border) first = border;
    begin.push_back(static_cast<std::int32_t>(first));
  }
  return begin;
}

struct Call {
  ops::AttentionShape shape;
  Tensor q, k, v, dout, begin, out, lse, dq, dk, dv;
  double keys = 0;  // that all tokens together see

  Call(Workspace& w, const Sizes& s, const Heads& heads, Mask mask, DType dtype)
      : shape{.n_seq = s.n_seq,
              .seq_len = s.seq_len,
              .n_heads = heads.query,
              .n_kv_heads = heads.kv,
              .head_dim = heads.width,
              .v_head_dim = heads.value_width,
              .scale = 1 / std::sqrt(static_cast<double>(heads.width)),
              .window = window_of(mask, s.seq_len)} {
    const std::int64_t T = s.n_seq * s.seq_len;
    q = w.normal({T, heads.query * heads.width}, dtype);
    k = w.normal({T, heads.kv * heads.width}, dtype);
    v = w.normal({T, heads.kv * heads.value_width}, dtype);
    dout = w.normal({T, heads.query * heads.value_width}, dtype);
    out = w.take(dout.shape(), dtype);
    lse = w.take({T, heads.query}, DType::f32);
    dq = w.take(q.shape(), dtype);
    dk = w.take(k.shape(), dtype);
    dv = w.take(v.shape(), dtype);
    const std::vector<std::int32_t> first = first_keys(mask, s.n_seq, s.seq_len);
    begin = w.ints({T}, first);
    for (std::int64_t t = 0; t < T; ++t)
      keys += static_cast<double>(t % s.seq_len + 1 - first[static_cast<std::size_t>(t)]);
  }
  void forward(Context& ctx) const { ops::cuda::attention_forward(out, lse, q, k, v, begin, shape, {}, ctx); }
  void backward(Context& ctx) const {
    ops::cuda::attention_backward(dq, dk, dv, dout, out, lse, q, k, v, begin, shape, ctx);
  }
  // With so many products over query and key widths, and over value widths.
  double flop(int n_key, int n_value) const {
    return 2.0 * keys * static_cast<double>(shape.n_heads) *
           static_cast<double>(n_key * shape.head_dim + n_value * shape.v_head_dim);
  }
};

std::vector<Case> attention(const Sizes& s, const Heads& heads, Mask mask, DType dtype, bool barred) {
  const char* masks[] = {"causal", "window", "documents"};
  const std::string shape = fmt::format(
      "{} x {}, {}/{} heads of {}{} {}", s.n_seq, s.seq_len, heads.query, heads.kv, heads.width,
      heads.value_width == heads.width ? "" : fmt::format("/{}", heads.value_width), name_of(dtype));
  const std::string mask_name = masks[static_cast<int>(mask)];
  return {{"attention_forward, " + mask_name, barred ? kAttentionForwardBar : 0,
           [=](Workspace& w) {
             const Call c(w, s, heads, mask, dtype);
             return Work{.shape = shape,
                         .bytes = bytes_of({c.q, c.k, c.v, c.out, c.lse}),
                         .flop = c.flop(1, 1),
                         .call = [=](Context& ctx) { c.forward(ctx); }};
           }},
          {"attention_backward, " + mask_name, barred ? kAttentionBackwardBar : 0, [=](Workspace& w) {
             const Call c(w, s, heads, mask, dtype);
             c.forward(w.ctx());
             return Work{.shape = shape,
                         .bytes = bytes_of({c.q, c.k, c.v, c.out, c.lse, c.dout, c.dq, c.dk, c.dv}),
                         .flop = c.flop(3, 2),
                         .call = [=](Context& ctx) { c.backward(ctx); }};
           }}};
}

// The same calls by cuDNN.
std::vector<Case> by_cudnn(std::vector<Case> cases) {
  for (Case& each : cases) {
    const std::size_t comma = each.kernel.find(',');
    each.kernel.insert(comma, ", cudnn");
    each.bar = 0;
    each.make = [make = each.make](Workspace& w) {
      Work work = make(w);
      work.call = [call = work.call](Context& ctx) {
        ctx.attention = AttentionBackend::cudnn;
        call(ctx);
        ctx.attention = AttentionBackend::flash;
      };
      return work;
    };
  }
  return cases;
}

}  // namespace

std::vector<Case> attention_cases(const Sizes& s) {
  const std::int64_t H = s.heads, G = s.kv_heads;
  std::vector<Case> all;
  for (const auto& family : {attention(s, {2 * H, 2 * G, 64, 64}, Mask::causal, DType::bf16, true),
                             attention(s, {H, G, 128, 128}, Mask::causal, DType::bf16, true),
                             attention(s, {H / 2, G / 2, 256, 256}, Mask::causal, DType::bf16, true),
                             attention(s, {H, G, 128, 128}, Mask::window, DType::bf16, false),
                             attention(s, {H, G, 128, 128}, Mask::documents, DType::bf16, false),
                             attention(s, {H, H, 192, 128}, Mask::causal, DType::bf16, false),
                             attention(s, {H, G, 128, 128}, Mask::causal, DType::f32, false)})
    all.insert(all.end(), family.begin(), family.end());
  if constexpr (ops::cuda::kHasCudnn) {
    for (const auto& family : {by_cudnn(attention(s, {2 * H, 2 * G, 64, 64}, Mask::causal, DType::bf16, false)),
                               by_cudnn(attention(s, {H, G, 128, 128}, Mask::causal, DType::bf16, false)),
                               by_cudnn(attention(s, {H, G, 128, 128}, Mask::window, DType::bf16, false)),
                               by_cudnn(attention(s, {H, H, 192, 128}, Mask::causal, DType::bf16, false))})
      all.insert(all.end(), family.begin(), family.end());
  }
  return all;
}

}  // namespace switchyard::bench
