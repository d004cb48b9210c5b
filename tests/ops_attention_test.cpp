#include "ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "gradient_check.h"
#include "ops/cpu/attention_tiles.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

enum class Mask { causal, window_1, window_5, window_100, documents, documents_and_window, scattered };
const Mask kMasks[] = {Mask::causal,     Mask::window_1,  Mask::window_5,
                       Mask::window_100, Mask::documents, Mask::documents_and_window,
                       Mask::scattered};

std::int64_t window_begin(std::int64_t i, std::int64_t width) {
  return std::max<std::int64_t>(0, i + 1 - width);
}

// Documents start in the middle of tiles of 64 queries; from 230 on, a tile of keys that begins at 131 (which
// its neighbours from 192 on need) is invisible for all of its first 99.
std::int64_t document_begin(std::int64_t i) {
  std::int64_t begin = 0;
  for (std::int64_t border : {2, 15, 70, 131, 230, 256})
    if (border <= i) begin = border;
  return begin;
}

OwnedTensor make_kv_begin(Mask mask, std::int64_t n_seq, std::int64_t seq_len) {
  OwnedTensor kv_begin({n_seq * seq_len}, DType::i32);
  const Rng rng(7, RngPurpose::init, 1);
  for (std::int64_t t = 0; t < n_seq * seq_len; ++t) {
    const std::int64_t i = t % seq_len;
    std::int64_t begin = 0;
    switch (mask) {
      case Mask::causal:
        break;
      case Mask::window_1:
        begin = i;
        break;
      case Mask::window_5:
        begin = window_begin(i, 5);
        break;
      case Mask::window_100:
        begin = window_begin(i, 100);
        break;
      case Mask::documents:
        begin = document_begin(i);
        break;
      case Mask::documents_and_window:
        begin = std::max(document_begin(i), window_begin(i, 40));
        break;
      case Mask::scattered:  // anything that the contract allows
        begin =
            static_cast<std::int64_t>(rng.uniform(static_cast<std::uint64_t>(t)) * static_cast<double>(i + 1));
        break;
    }
    set(kv_begin, t, static_cast<double>(begin));
  }
  return kv_begin;
}

struct Case {
  std::int64_t n_seq, seq_len, n_heads, n_kv_heads, head_dim;
  std::int64_t other_v_head_dim = 0;  // 0: head_dim
  std::int64_t v_head_dim() const { return other_v_head_dim > 0 ? other_v_head_dim : head_dim; }
  ops::AttentionShape shape() const {
    return {n_seq,
            seq_len,
            n_heads,
            n_kv_heads,
            head_dim,
            v_head_dim(),
            1 / std::sqrt(static_cast<double>(head_dim))};
  }
  std::int64_t tokens() const { return n_seq * seq_len; }
};

// Queries, keys and values side by side in one matrix, as a projection leaves them; so are their gradients.
struct Qkv {
  OwnedTensor whole;
  Tensor q, k, v;
  Qkv(const Case& c, DType dtype)
      : whole({c.tokens(), (c.n_heads + c.n_kv_heads) * c.head_dim + c.n_kv_heads * c.v_head_dim()}, dtype) {
    const std::int64_t q_width = c.n_heads * c.head_dim, k_width = c.n_kv_heads * c.head_dim;
    q = whole.view().columns(0, q_width);
    k = whole.view().columns(q_width, k_width);
    v = whole.view().columns(q_width + k_width, c.n_kv_heads * c.v_head_dim());
  }
};

Qkv normal_qkv(const Case& c, DType dtype, double scale = 1.0) {
  Qkv qkv(c, dtype);
  fill_normal(qkv.whole, "qkv", scale);
  return qkv;
}

struct Forward {
  OwnedTensor out, lse;
  Forward(const Case& c, DType dtype)
      : out(OwnedTensor::strided(c.tokens(), c.n_heads * c.v_head_dim(), dtype, 3)),
        lse({c.tokens(), c.n_heads}, dtype) {}
};

Forward forward(const Case& c, const Qkv& in, const Tensor& kv_begin, Context& ctx) {
  Forward result(c, in.whole.view().dtype());
  ops::attention_forward(result.out, result.lse, in.q, in.k, in.v, kv_begin, c.shape(), {}, ctx);
  return result;
}

Qkv backward(const Case& c, const Qkv& in, const Forward& saved, const Tensor& dout, const Tensor& kv_begin,
             Context& ctx) {
  Qkv grad(c, in.whole.view().dtype());
  ops::attention_backward(grad.q, grad.k, grad.v, dout, saved.out, saved.lse, in.q, in.k, in.v, kv_begin,
                          c.shape(), ctx);
  return grad;
}

// The definition, one query at a time, in double.
struct Reference {
  std::vector<double> out, lse, dq, dk, dv;

  Reference(const Case& c, const Qkv& in, const Tensor& dout, const Tensor& kv_begin) {
    const ops::AttentionShape shape = c.shape();
    const std::int64_t H = c.n_heads, G = c.n_kv_heads, N = c.head_dim, M = c.v_head_dim(), S = c.seq_len;
    out.assign(static_cast<std::size_t>(c.tokens() * H * M), 0);
    lse.assign(static_cast<std::size_t>(c.tokens() * H), 0);
    dq.assign(static_cast<std::size_t>(c.tokens() * H * N), 0);
    dk.assign(static_cast<std::size_t>(c.tokens() * G * N), 0);
    dv.assign(static_cast<std::size_t>(c.tokens() * G * M), 0);
    const std::vector<double> q = values(in.q), k = values(in.k), v = values(in.v), d = values(dout);
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t begin = static_cast<std::int64_t>(get(kv_begin, t)), end = t % S + 1;
        const auto query = [&](std::int64_t n) { return static_cast<std::size_t>((t * H + h) * N + n); };
        const auto key = [&](std::int64_t s, std::int64_t n) {
          return static_cast<std::size_t>(((t / S * S + s) * G + h / (H / G)) * N + n);
        };
        const auto output = [&](std::int64_t m) { return static_cast<std::size_t>((t * H + h) * M + m); };
        const auto value = [&](std::int64_t s, std::int64_t m) {
          return static_cast<std::size_t>(((t / S * S + s) * G + h / (H / G)) * M + m);
        };
        std::vector<double> p(static_cast<std::size_t>(S), 0.0);
        double max = -INFINITY, sum = 0;
        for (std::int64_t s = begin; s < end; ++s) {
          double score = 0;
          for (std::int64_t n = 0; n < N; ++n) score += q[query(n)] * k[key(s, n)];
          p[static_cast<std::size_t>(s)] = score * shape.scale;
          max = std::max(max, score * shape.scale);
        }
        for (std::int64_t s = begin; s < end; ++s)
          sum += p[static_cast<std::size_t>(s)] = std::exp(p[static_cast<std::size_t>(s)] - max);
        lse[static_cast<std::size_t>(t * H + h)] = max + std::log(sum);
        double mean_dp = 0;
        std::vector<double> dp(p.size(), 0.0);
        for (std::int64_t s = begin; s < end; ++s) {
          const auto j = static_cast<std::size_t>(s);
          p[j] /= sum;
          for (std::int64_t m = 0; m < M; ++m) {
            out[output(m)] += p[j] * v[value(s, m)];
            dv[value(s, m)] += p[j] * d[output(m)];
            dp[j] += d[output(m)] * v[value(s, m)];
          }
          mean_dp += p[j] * dp[j];
        }
        for (std::int64_t s = begin; s < end; ++s) {
          const auto j = static_cast<std::size_t>(s);
          const double dscore = p[j] * (dp[j] - mean_dp) * shape.scale;
          for (std::int64_t n = 0; n < N; ++n) {
            dq[query(n)] += dscore * k[key(s, n)];
            dk[key(s, n)] += dscore * q[query(n)];
          }
        }
      }
    }
  }
};

OwnedTensor normal_dout(const Case& c, DType dtype) {
  return normal_strided(c.tokens(), c.n_heads * c.v_head_dim(), dtype, "dout", 1.0, 2);
}

TEST(Attention, TwoTokensByHand) {
  PoisonedContext ctx;
  const Case c{1, 2, 1, 1, 1};
  const Qkv in(c, DType::f64);
  const OwnedTensor kv_begin = ints({0, 0}), dout({2, 1}, DType::f64);
  const double l = std::log(3.0);
  fill(in.whole, {0, 0, 1,    // q, k, v of token 0
                  1, l, 5});  // of token 1: scores 0 and ln 3, probabilities 1/4 and 3/4
  fill(dout, {1, 2});
  const Forward saved = forward(c, in, kv_begin, ctx);
  EXPECT_TRUE(all_near(values(saved.out), {1, 4}, 1e-15, 0));
  EXPECT_TRUE(all_near(values(saved.lse), {0, std::log(4.0)}, 1e-15, 0));
  // delta = 2*4, dP = (2, 10), dS = (1/4 * -6, 3/4 * 2)
  const Qkv grad = backward(c, in, saved, dout, kv_begin, ctx);
  EXPECT_TRUE(all_near(values(grad.whole), {0, -1.5, 1.5, 1.5 * l, 1.5, 1.5}, 1e-14, 1e-15));

  // Token 1 in a document of its own: the output is its value, and no gradient is left for the scores.
  const OwnedTensor alone = ints({0, 1});
  const Forward saved_alone = forward(c, in, alone, ctx);
  EXPECT_EQ(values(saved_alone.out), (std::vector<double>{1, 5}));
  EXPECT_TRUE(all_near(values(saved_alone.lse), {0, l}, 1e-15, 0));
  const Qkv grad_alone = backward(c, in, saved_alone, dout, alone, ctx);
  EXPECT_TRUE(all_near(values(grad_alone.whole), {0, 0, 1, 0, 0, 2}, 0, 1e-14));
}

// Tiles are 64 queries by 128 keys: lengths on both sides of each border.
const Case kCases[] = {
    {1, 1, 1, 1, 1},
    {3, 3, 4, 2, 5},
    {2, 17, 2, 2, 8},
    {1, 64, 3, 1, 4},
    {2, 65, 4, 2, 8},
    {1, 128, 2, 1, 3},
    {2, 129, 4, 2, 8},
    {1, 193, 2, 2, 16},
    {2, 257, 4, 1, 7},
    // Values narrower and wider than keys, also with several query heads on one of them.
    {2, 17, 2, 2, 8, 5},
    {1, 65, 4, 2, 3, 8},
    {2, 129, 4, 4, 12, 8},
    {1, 193, 4, 1, 1, 9},
    {1, 257, 2, 2, 9, 1},
    // Heads that fill whole lanes, with one and several blocks of keys.
    {2, 71, 6, 2, 32},
    {1, 100, 2, 1, 64, 16},
    {1, 129, 3, 3, 48, 32},
    {1, 65, 2, 1, 16, 256},
    {1, 601, 2, 1, 16, 32},
};

std::string describe(const Case& c, Mask mask) {
  return std::to_string(c.n_seq) + " x " + std::to_string(c.seq_len) + " tokens, " + std::to_string(c.n_heads) +
         "/" + std::to_string(c.n_kv_heads) + " heads of " + std::to_string(c.head_dim) + " and " +
         std::to_string(c.v_head_dim()) + ", mask " + std::to_string(static_cast<int>(mask));
}

void expect_follows_definition(DType dtype, double relative, double absolute, double absolute_gradient,
                               MatmulType matmul = MatmulType::f32) {
  for (const Case& c : kCases) {
    for (Mask mask : kMasks) {
      PoisonedContext ctx;
      ctx.matmul = matmul;
      const Qkv in = normal_qkv(c, dtype);
      const OwnedTensor kv_begin = make_kv_begin(mask, c.n_seq, c.seq_len), dout = normal_dout(c, dtype);
      const Reference expected(c, in, dout, kv_begin);
      const Forward saved = forward(c, in, kv_begin, ctx);
      const Qkv grad = backward(c, in, saved, dout, kv_begin, ctx);
      EXPECT_TRUE(all_near(values(saved.out), expected.out, relative, absolute)) << describe(c, mask);
      EXPECT_TRUE(all_near(values(saved.lse), expected.lse, relative, absolute)) << describe(c, mask);
      EXPECT_TRUE(all_near(values(grad.q), expected.dq, relative, absolute_gradient))
          << describe(c, mask) << ", dq";
      EXPECT_TRUE(all_near(values(grad.k), expected.dk, relative, absolute_gradient))
          << describe(c, mask) << ", dk";
      EXPECT_TRUE(all_near(values(grad.v), expected.dv, relative, absolute_gradient))
          << describe(c, mask) << ", dv";
      EXPECT_TRUE(saved.out.margins_untouched());
    }
  }
}

TEST(Attention, DoubleFollowsTheDefinition) {
  // Numbers up to about 20, and some hundred roundings of 1e-16 each.
  expect_follows_definition(DType::f64, 1e-13, 1e-13, 1e-12);
}

TEST(Attention, FloatFollowsTheDefinition) {
  // The reference reads the same float32 inputs. A score of up to 8 is off by up to 5e-7, so its exponential
  // is by 5e-7 of itself; outputs and lse of order one collect a few of these. dk and dv sum up to 257 queries
  // of each of 4 heads and reach 10 to 20, delta cancels.
  expect_follows_definition(DType::f32, 1e-6, 2e-6, 1e-5);
}

TEST(Attention, Bfloat16FollowsTheDefinition) {
  // Operands are off by up to 2^-9 of themselves: a score of up to 8 by some 0.02, its exponential by as much
  // of itself, and so are outputs of order one; gradients reach 10 to 20.
  expect_follows_definition(DType::f32, 0.02, 0.03, 0.2, MatmulType::bf16);
  // FP8 has no part in it: the same products.
  const Case c{1, 65, 4, 2, 3, 8};
  const Qkv in = normal_qkv(c, DType::f32);
  const OwnedTensor kv_begin = make_kv_begin(Mask::causal, c.n_seq, c.seq_len);
  const auto out_in = [&](MatmulType type) {
    PoisonedContext ctx;
    ctx.matmul = type;
    return forward(c, in, kv_begin, ctx).out;
  };
  EXPECT_TRUE(same_bits(out_in(MatmulType::bf16), out_in(MatmulType::e4m3)));
  EXPECT_FALSE(same_bits(out_in(MatmulType::bf16), out_in(MatmulType::f32)));
}

// Words that this processor can multiply but would not choose, too.
TEST(Attention, TilesOfAnyWordFollowTheDefinition) {
  for (const Case& c : {Case{2, 71, 6, 2, 32}, Case{1, 129, 3, 3, 48, 16}, Case{1, 601, 2, 1, 16}}) {
    if (!ops::cpu::has_attention_tiles(c.shape())) GTEST_SKIP() << "not built for a processor with AVX-512";
    for (const ops::cpu::PackedWord word :
         {ops::cpu::PackedWord::f32, ops::cpu::PackedWord::rounded, ops::cpu::PackedWord::pair}) {
      if (word == ops::cpu::PackedWord::pair && !ops::cpu::kHasPairs) continue;
      const bool exact = word == ops::cpu::PackedWord::f32;
      for (const Mask mask : kMasks) {
        PoisonedContext ctx;
        const Qkv in = normal_qkv(c, DType::f32), grad(c, DType::f32);
        const OwnedTensor kv_begin = make_kv_begin(mask, c.n_seq, c.seq_len), dout = normal_dout(c, DType::f32);
        const Reference expected(c, in, dout, kv_begin);
        const Forward saved(c, DType::f32);
        ops::cpu::attention_forward_tiles(word, saved.out, saved.lse, in.q, in.k, in.v, kv_begin, c.shape(), {},
                                          ctx);
        ops::cpu::attention_backward_tiles(word, grad.q, grad.k, grad.v, dout, saved.out, saved.lse, in.q, in.k,
                                           in.v, kv_begin, c.shape(), ctx);
        if (!exact) {
          const Forward other(c, DType::f32);
          ops::cpu::attention_forward_tiles(ops::cpu::PackedWord::f32, other.out, other.lse, in.q, in.k, in.v,
                                            kv_begin, c.shape(), {}, ctx);
          EXPECT_FALSE(same_bits(saved.out, other.out)) << describe(c, mask);
        }
        // The tolerances of the two tests above.
        const double relative = exact ? 1e-6 : 0.02, absolute = exact ? 2e-6 : 0.03,
                     absolute_gradient = exact ? 1e-5 : 0.2;
        EXPECT_TRUE(all_near(values(saved.out), expected.out, relative, absolute)) << describe(c, mask);
        EXPECT_TRUE(all_near(values(saved.lse), expected.lse, relative, absolute)) << describe(c, mask);
        EXPECT_TRUE(all_near(values(grad.q), expected.dq, relative, absolute_gradient)) << describe(c, mask);
        EXPECT_TRUE(all_near(values(grad.k), expected.dk, relative, absolute_gradient)) << describe(c, mask);
        EXPECT_TRUE(all_near(values(grad.v), expected.dv, relative, absolute_gradient)) << describe(c, mask);
        EXPECT_TRUE(saved.out.margins_untouched());
      }
    }
  }
}

// A few long sequences, where a task is a query head: the parts of dk and dv are those of every head alone.
TEST(Attention, GradientsOfLongSequencesAreThoseOfTheirHeads) {
  const Case c{1, 1030, 4, 2, 16}, alone{1, 1030, 1, 1, 16};
  PoisonedContext ctx;
  const Qkv in = normal_qkv(c, DType::f32);
  const OwnedTensor kv_begin = make_kv_begin(Mask::documents_and_window, c.n_seq, c.seq_len),
                    dout = normal_dout(c, DType::f32);
  const Forward saved = forward(c, in, kv_begin, ctx);
  const Qkv grad = backward(c, in, saved, dout, kv_begin, ctx);
  for (const std::int64_t g : {0, 1}) {
    std::vector<double> dk(1030 * 16, 0), dv(1030 * 16, 0);
    for (const std::int64_t h : {2 * g, 2 * g + 1}) {
      const Qkv of(alone, DType::f32), to(alone, DType::f32);
      const auto take = [&](const Tensor& one, const Tensor& all, std::int64_t head) {
        for (std::int64_t t = 0; t < 1030; ++t)
          std::copy_n(all.row<float>(t) + head * 16, 16, one.row<float>(t));
      };
      take(of.q, in.q, h);
      take(of.k, in.k, g);
      take(of.v, in.v, g);
      const OwnedTensor dout_1({1030, 16}, DType::f32);
      take(dout_1, dout, h);
      const Forward saved_1 = forward(alone, of, kv_begin, ctx);
      const Qkv grad_1 = backward(alone, of, saved_1, dout_1, kv_begin, ctx);
      for (std::size_t i = 0; i < dk.size(); ++i) {
        dk[i] += grad_1.k.row<float>(static_cast<std::int64_t>(i) / 16)[i % 16];
        dv[i] += grad_1.v.row<float>(static_cast<std::int64_t>(i) / 16)[i % 16];
      }
    }
    // One rounding of the sum of two numbers up to about 20.
    EXPECT_TRUE(all_near(values(grad.k.columns(g * 16, 16)), dk, 1e-7, 2e-6));
    EXPECT_TRUE(all_near(values(grad.v.columns(g * 16, 16)), dv, 1e-7, 2e-6));
  }
}

TEST(Attention, GradientsMatchFiniteDifferences) {
  for (const Case& c : {Case{2, 17, 4, 2, 3}, Case{1, 70, 2, 2, 2}, Case{1, 135, 2, 1, 2},
                        Case{2, 17, 4, 2, 3, 5}, Case{1, 70, 2, 2, 3, 2}}) {
    for (Mask mask : {Mask::causal, Mask::window_5, Mask::documents}) {
      PoisonedContext ctx;
      const Qkv in = normal_qkv(c, DType::f64);
      const OwnedTensor kv_begin = make_kv_begin(mask, c.n_seq, c.seq_len), dout = normal_dout(c, DType::f64);
      const Qkv grad = backward(c, in, forward(c, in, kv_begin, ctx), dout, kv_begin, ctx);
      const auto loss = [&] { return dot(dout, forward(c, in, kv_begin, ctx).out); };
      const GradientTolerance tolerance{.max_elements = 25};
      EXPECT_TRUE(gradient_matches(in.q, grad.q, loss, tolerance)) << describe(c, mask) << ", dq";
      EXPECT_TRUE(gradient_matches(in.k, grad.k, loss, tolerance)) << describe(c, mask) << ", dk";
      EXPECT_TRUE(gradient_matches(in.v, grad.v, loss, tolerance)) << describe(c, mask) << ", dv";
    }
  }
}

TEST(Attention, InvisibleKeysGetExactlyNothing) {
  for (const auto& [c, dtype] : {std::pair{Case{2, 257, 4, 2, 4}, DType::f32},
                                 {Case{2, 257, 4, 2, 16}, DType::f32},
                                 {Case{2, 257, 4, 2, 4}, DType::f64}}) {
    for (Mask mask : kMasks) {
      PoisonedContext ctx;
      const Qkv in = normal_qkv(c, dtype);
      const OwnedTensor kv_begin = make_kv_begin(mask, c.n_seq, c.seq_len),
                        dout({c.tokens(), c.n_heads * c.head_dim}, dtype);
      const Forward saved = forward(c, in, kv_begin, ctx);
      for (std::int64_t query : {0, 69, 70, 201, 257 + 235, 257 + 256}) {
        // Only this query has a gradient: what it does not see gets none.
        fill(dout, std::vector<double>(static_cast<std::size_t>(dout.numel()), 0.0));
        fill_normal(dout.view().slice(query, 1), "dout");
        const Qkv grad = backward(c, in, saved, dout, kv_begin, ctx);
        const std::int64_t first = query / 257 * 257 + static_cast<std::int64_t>(kv_begin[query]);
        for (std::int64_t t = 0; t < c.tokens(); ++t) {
          const auto is_zero = [](double value) { return value == 0; };
          const auto all_zero = [&](const Tensor& g) {
            return std::ranges::all_of(values(g.slice(t, 1)), is_zero);
          };
          const bool visible = t >= first && t <= query;
          ASSERT_EQ(all_zero(grad.v), !visible) << "key " << t << " of query " << query;
          ASSERT_TRUE(visible || all_zero(grad.k)) << "key " << t << " of query " << query;
          ASSERT_TRUE(t == query || all_zero(grad.q)) << "query " << t;
        }
      }
    }
  }
}

TEST(Attention, InvisibleKeysDoNotShow) {
  for (const auto& [mask, width] : {std::pair{Mask::causal, 8},
                                    {Mask::window_100, 8},
                                    {Mask::documents, 8},
                                    {Mask::causal, 16},
                                    {Mask::window_100, 16},
                                    {Mask::documents, 16}}) {
    const Case c{1, 257, 2, 1, width};
    PoisonedContext ctx;
    const Qkv in = normal_qkv(c, DType::f32), changed = normal_qkv(c, DType::f32);
    const OwnedTensor kv_begin = make_kv_begin(mask, c.n_seq, c.seq_len);
    const std::int64_t query = 240, first = static_cast<std::int64_t>(kv_begin[query]);
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      if (t >= first && t <= query) continue;
      fill_normal(changed.k.slice(t, 1), "other keys", 1000);
      fill_normal(changed.v.slice(t, 1), "other values", 1000);
    }
    const Forward a = forward(c, in, kv_begin, ctx), b = forward(c, changed, kv_begin, ctx);
    EXPECT_TRUE(same_bits(a.out.view().slice(query, 1), b.out.view().slice(query, 1)))
        << static_cast<int>(mask);
    EXPECT_TRUE(same_bits(a.lse.view().slice(query, 1), b.lse.view().slice(query, 1)))
        << static_cast<int>(mask);
  }
}

// With one feature and scale 1, the score of query i and key j is q_i k_j, exactly.
struct OneFeature {
  Case c{1, 257, 1, 1, 1};
  Qkv in{c, DType::f32};
  OwnedTensor dout = normal_dout(c, DType::f32);
  PoisonedContext ctx;

  template <class Score>
  OneFeature(double q, Score&& k) {
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      set(in.q, t, q);
      set(in.k, t, k(t));
      set(in.v, t, static_cast<double>(t));
    }
  }
  void expect_finite_gradient(const Forward& saved, const Tensor& kv_begin) {
    const Qkv grad = backward(c, in, saved, dout, kv_begin, ctx);
    for (double value : values(grad.whole)) ASSERT_TRUE(std::isfinite(value));
  }
};

TEST(Attention, BigScoresPickTheLargest) {
  for (Mask mask : kMasks) {
    const OwnedTensor kv_begin = make_kv_begin(mask, 1, 257);
    for (double sign : {1.0, -1.0}) {
      // Scores of +-1000 j grow or fall with the key: the last or the first visible key takes all.
      OneFeature x(sign * 1000, [](std::int64_t t) { return static_cast<double>(t); });
      const Forward saved = forward(x.c, x.in, kv_begin, x.ctx);
      for (std::int64_t t = 0; t < 257; ++t) {
        const double best = sign > 0 ? static_cast<double>(t) : kv_begin[t];
        ASSERT_EQ(saved.out[t], best) << "token " << t << ", mask " << static_cast<int>(mask);
        ASSERT_EQ(saved.lse[t], sign * 1000 * best);
      }
      x.expect_finite_gradient(saved, kv_begin);
    }
  }
}

TEST(Attention, BigEqualScoresGiveTheMean) {
  for (Mask mask : kMasks) {
    const OwnedTensor kv_begin = make_kv_begin(mask, 1, 257);
    for (double sign : {1.0, -1.0}) {
      OneFeature x(sign * 1024, [](std::int64_t) { return 1024.0; });
      const Forward saved = forward(x.c, x.in, kv_begin, x.ctx);
      for (std::int64_t t = 0; t < 257; ++t) {
        const double n = static_cast<double>(t + 1) - kv_begin[t];
        // Sums of integers, exact, times a rounded 1/n.
        ASSERT_NEAR(saved.out[t], (static_cast<double>(t) + kv_begin[t]) / 2, 3e-5) << "token " << t;
        ASSERT_NEAR(saved.lse[t], sign * 1024 * 1024 + std::log(n), 0.125);  // float32's spacing at 2^20
      }
      x.expect_finite_gradient(saved, kv_begin);
    }
  }
}

TEST(Attention, SequencesDoNotSeeEachOther) {
  PoisonedContext ctx;
  const Case both{2, 129, 4, 2, 8}, single{1, 129, 4, 2, 8};
  const Qkv in = normal_qkv(both, DType::f32), second(single, DType::f32);
  const Tensor rows = in.whole.view().slice(129, 129);
  for (std::int64_t i = 0; i < rows.numel(); ++i) set(second.whole, i, get(rows, i));
  poison(in.whole.view().slice(0, 129));  // NaN all over the first sequence
  const OwnedTensor kv_begin = make_kv_begin(Mask::documents, 2, 129);
  const Tensor second_kv_begin = kv_begin.view().slice(129, 129);
  const OwnedTensor dout = normal_dout(both, DType::f32);

  const Forward saved = forward(both, in, kv_begin, ctx), alone = forward(single, second, second_kv_begin, ctx);
  EXPECT_TRUE(same_bits(saved.out.view().slice(129, 129), alone.out));
  EXPECT_TRUE(same_bits(saved.lse.view().slice(129, 129), alone.lse));
  const Qkv grad = backward(both, in, saved, dout, kv_begin, ctx);
  const Qkv grad_alone = backward(single, second, alone, dout.view().slice(129, 129), second_kv_begin, ctx);
  EXPECT_TRUE(same_bits(grad.whole.view().slice(129, 129), grad_alone.whole));
}

void expect_same_bits_of(const Case& c) {
  PoisonedContext ctx;
  const Qkv in = normal_qkv(c, DType::f32);
  const OwnedTensor kv_begin = make_kv_begin(Mask::documents, c.n_seq, c.seq_len);
  const OwnedTensor dout = normal_dout(c, DType::f32);
  const Forward saved = forward(c, in, kv_begin, ctx);
  const auto out = [&] { return std::move(forward(c, in, kv_begin, ctx).out); };
  const auto lse = [&] { return std::move(forward(c, in, kv_begin, ctx).lse); };
  const auto grad = [&] { return std::move(backward(c, in, saved, dout, kv_begin, ctx).whole); };
  expect_same_bits_on_any_thread_count(out);
  expect_same_bits_on_any_thread_count(lse);
  expect_same_bits_on_any_thread_count(grad);
  EXPECT_TRUE(same_bits(out(), out()));
  EXPECT_TRUE(same_bits(lse(), lse()));
  EXPECT_TRUE(same_bits(grad(), grad()));
}

TEST(Attention, SameBitsOnAnyThreadCount) {
  expect_same_bits_of({2, 257, 4, 2, 16, 24});
  expect_same_bits_of({2, 257, 4, 2, 16, 32});
  expect_same_bits_of({1, 1030, 4, 2, 16});
}

TEST(Attention, RefusesOtherShapes) {
  PoisonedContext ctx;
  const Case c{1, 3, 4, 2, 2};
  const Qkv in = normal_qkv(c, DType::f32);
  const Forward saved(c, DType::f32);
  const OwnedTensor kv_begin = ints({0, 0, 0}), short_kv_begin = ints({0, 0}), narrow({3, 6}, DType::f32);
  const auto call = [&](const Tensor& q, const Tensor& k, const Tensor& begin,
                        const ops::AttentionShape& shape) {
    ops::attention_forward(saved.out, saved.lse, q, k, in.v, begin, shape, {}, ctx);
  };
  call(in.q, in.k, kv_begin, c.shape());
  ops::AttentionShape three_kv_heads = c.shape();
  three_kv_heads.n_kv_heads = 3;
  EXPECT_THROW(call(in.q, in.k, kv_begin, three_kv_heads), std::logic_error);
  EXPECT_THROW(call(narrow, in.k, kv_begin, c.shape()), std::logic_error);
  EXPECT_THROW(call(in.q, narrow, kv_begin, c.shape()), std::logic_error);
  EXPECT_THROW(call(in.q, in.k, short_kv_begin, c.shape()), std::logic_error);
  EXPECT_THROW(ops::attention_backward(in.q, in.k, narrow, saved.out, saved.out, saved.lse, in.q, in.k, in.v,
                                       kv_begin, c.shape(), ctx),
               std::logic_error);
  ops::AttentionShape wide_values = c.shape();
  wide_values.v_head_dim = 3;
  EXPECT_THROW(call(in.q, in.k, kv_begin, wide_values), std::logic_error);
}

TEST(Attention, RefusesOtherDtypes) {
  PoisonedContext ctx;
  const Case c{1, 3, 4, 2, 2};
  const Qkv in = normal_qkv(c, DType::f32), in64 = normal_qkv(c, DType::f64);
  const Forward saved(c, DType::f32), saved64(c, DType::f64);
  const OwnedTensor kv_begin = ints({0, 0, 0}), float_begin({3}, DType::f32);
  const Tensor& out = saved.out;
  const auto forward = [&](const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                           const Tensor& v, const Tensor& begin) {
    ops::attention_forward(o, lse, q, k, v, begin, c.shape(), {}, ctx);
  };
  EXPECT_THROW(forward(saved64.out, saved.lse, in.q, in.k, in.v, kv_begin), std::logic_error);
  EXPECT_THROW(forward(out, saved64.lse, in.q, in.k, in.v, kv_begin), std::logic_error);
  EXPECT_THROW(forward(out, saved.lse, in64.q, in.k, in.v, kv_begin), std::logic_error);
  EXPECT_THROW(forward(out, saved.lse, in.q, in64.k, in.v, kv_begin), std::logic_error);
  EXPECT_THROW(forward(out, saved.lse, in.q, in.k, in64.v, kv_begin), std::logic_error);
  EXPECT_THROW(forward(out, saved.lse, in.q, in.k, in.v, float_begin), std::logic_error);
  const Qkv grad(c, DType::f32), grad64(c, DType::f64);
  const auto backward = [&](const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout) {
    ops::attention_backward(dq, dk, dv, dout, out, saved.lse, in.q, in.k, in.v, kv_begin, c.shape(), ctx);
  };
  EXPECT_THROW(backward(grad64.q, grad.k, grad.v, out), std::logic_error);
  EXPECT_THROW(backward(grad.q, grad64.k, grad.v, out), std::logic_error);
  EXPECT_THROW(backward(grad.q, grad.k, grad64.v, out), std::logic_error);
  EXPECT_THROW(backward(grad.q, grad.k, grad.v, saved64.out), std::logic_error);
}

}  // namespace
}  // namespace switchyard::test
