// Attention of queries that begin behind keys of before, as they lie in a cache; and over latent vectors alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "poisoned_context.h"
#include "tensors.h"
#include "threads.h"

namespace switchyard::test {
namespace {

struct Case {
  std::int64_t n_seq, first, seq_len, n_heads, n_kv_heads, head_dim, v_head_dim, window = 0;
  std::int64_t n_keys() const { return first + seq_len; }
  ops::AttentionShape shape(std::int64_t queries, std::int64_t before) const {
    return {.n_seq = n_seq,
            .seq_len = queries,
            .n_heads = n_heads,
            .n_kv_heads = n_kv_heads,
            .head_dim = head_dim,
            .v_head_dim = v_head_dim,
            .scale = 1 / std::sqrt(static_cast<double>(head_dim)),
            .n_past = before};
  }
};

// Tiles are 64 queries by 128 keys; up to 8 queries are multiplied by ops/cpu/skinny.cpp.
const Case kCases[] = {
    {1, 1, 1, 1, 1, 1, 1},
    {1, 5, 1, 4, 2, 5, 3},
    {1, 127, 1, 4, 1, 8, 8},
    {1, 128, 1, 2, 2, 7, 9},
    {2, 130, 3, 4, 2, 8, 5},
    {1, 300, 8, 6, 2, 16, 7},
    {1, 257, 9, 2, 1, 3, 3},
    {2, 63, 66, 4, 2, 9, 4},
    {1, 140, 130, 2, 1, 8, 8},
    {1, 300, 1, 4, 2, 8, 8, 130},
    {2, 200, 5, 4, 2, 5, 3, 17},
    {1, 150, 70, 2, 1, 8, 6, 1},
    {1, 131, 67, 4, 4, 3, 5, 200},
    // Heads that fill whole lanes: strips of 8 queries by blocks of 512 keys (ops/cpu/attention_tiles.cpp).
    {1, 300, 8, 6, 2, 16, 16},
    {1, 139, 130, 2, 1, 16, 32},
    {2, 197, 70, 4, 2, 32, 16, 40},
    {1, 203, 9, 4, 2, 16, 16, 17},
    {1, 606, 21, 2, 1, 16, 16},
    {2, 46, 12, 2, 2, 16, 48, 3},
    {1, 15, 70, 4, 1, 16, 16},
};

OwnedTensor begins(const Case& c, std::int64_t first, std::int64_t seq_len) {
  OwnedTensor kv_begin({c.n_seq * seq_len}, DType::i32);
  for (std::int64_t t = 0; t < kv_begin.numel(); ++t)
    set(kv_begin, t,
        static_cast<double>(c.window > 0 ? std::max<std::int64_t>(0, first + t % seq_len + 1 - c.window) : 0));
  return kv_begin;
}

// The last seq_len rows of each sequence, of a matrix with n_keys of them a sequence.
OwnedTensor last_rows(const Case& c, const Tensor& all) {
  OwnedTensor rows = OwnedTensor::strided(c.n_seq * c.seq_len, all.dim(1), all.dtype(), 3);
  for (std::int64_t t = 0; t < c.n_seq * c.seq_len; ++t)
    for (std::int64_t i = 0; i < all.dim(1); ++i)
      set(rows, t * all.dim(1) + i,
          get(all, (t / c.seq_len * c.n_keys() + c.first + t % c.seq_len) * all.dim(1) + i));
  return rows;
}

struct Outputs {
  OwnedTensor out, lse, entropy_TH, entropy_T;
  Outputs(const Case& c, std::int64_t rows, DType dtype)
      : out(OwnedTensor::strided(rows, c.n_heads * c.v_head_dim, dtype, 2)),
        lse({rows, c.n_heads}, dtype),
        entropy_TH({rows, c.n_heads}, dtype),
        entropy_T({rows}, dtype) {}
};

Outputs run(const Case& c, const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t first,
            Context& ctx) {
  const std::int64_t seq_len = c.n_keys() - first;
  Outputs result(c, q.rows(), q.dtype());
  const OwnedTensor kv_begin = begins(c, first, seq_len);
  ops::attention_forward(result.out, result.lse, q, k, v, kv_begin, c.shape(seq_len, first), result.entropy_TH,
                         ctx);
  ops::attention_row_entropy(result.entropy_T, result.entropy_TH, kv_begin, seq_len, first, ctx);
  return result;
}

TEST(AttentionBehindKeys, RowsAreThoseOfTheWholePass) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    // Numbers of order one; tiles begin elsewhere, so that sums of up to 300 terms have another order. The
    // entropy is lse less a sum of its own size, up to 6.
    const double tolerance = dtype == DType::f32 ? 5e-6 : 1e-14;
    for (const Case& c : kCases) {
      PoisonedContext ctx;
      const std::int64_t rows = c.n_seq * c.n_keys();
      const OwnedTensor q = normal({rows, c.n_heads * c.head_dim}, dtype, "q");
      const OwnedTensor k = normal_strided(rows, c.n_kv_heads * c.head_dim, dtype, "k", 1.0, 1);
      const OwnedTensor v = normal_strided(rows, c.n_kv_heads * c.v_head_dim, dtype, "v", 1.0, 4);
      const Outputs whole = run(c, q, k, v, 0, ctx);
      // What no query sees any more may be anything.
      if (c.window > 0)
        for (std::int64_t seq = 0; seq < c.n_seq; ++seq)
          for (std::int64_t s = 0; s < c.first + 1 - c.window; ++s)
            poison(k.view().slice(seq * c.n_keys() + s, 1)), poison(v.view().slice(seq * c.n_keys() + s, 1));
      const Outputs part = run(c, last_rows(c, q), k, v, c.first, ctx);
      const auto near = [&](const Tensor& got, const Tensor& all) {
        return all_near(values(got), values(last_rows(c, all)), tolerance, tolerance);
      };
      const auto column = [](const OwnedTensor& x) {
        return Tensor(x.view().raw(), Shape{x.numel(), 1}, x.view().dtype());
      };
      const auto where = ::testing::Message() << c.first << " + " << c.seq_len << ", window " << c.window;
      EXPECT_TRUE(near(part.out, whole.out)) << where;
      EXPECT_TRUE(near(part.lse, whole.lse)) << where;
      EXPECT_TRUE(near(part.entropy_TH, whole.entropy_TH)) << where;
      EXPECT_TRUE(near(column(part.entropy_T), column(whole.entropy_T))) << where;
      EXPECT_TRUE(part.out.margins_untouched());
    }
  }
}

TEST(AttentionBehindKeys, SameBitsOnAnyThreadCount) {
  PoisonedContext ctx;
  const Case c{1, 300, 1, 4, 2, 16, 8};
  const OwnedTensor q = normal({1, 64}, DType::f32, "q"), k = normal({301, 32}, DType::f32, "k"),
                    v = normal({301, 16}, DType::f32, "v");
  expect_same_bits_on_any_thread_count([&] { return std::move(run(c, q, k, v, c.first, ctx).out); });
}

TEST(AttentionBehindKeys, RefusesKeysOfAnotherNumber) {
  PoisonedContext ctx;
  const Case c{1, 5, 2, 2, 1, 4, 4};
  const OwnedTensor q = normal({2, 8}, DType::f32, "q"), k = normal({6, 4}, DType::f32, "k"),
                    kv_begin = ints({0, 0});
  const Outputs result(c, 2, DType::f32);
  EXPECT_THROW(ops::attention_forward(result.out, result.lse, q, k, k, kv_begin, c.shape(2, c.first), {}, ctx),
               std::logic_error);
}

TEST(AttentionRowEntropy, SharesOfTheLargestPossibleByHand) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    PoisonedContext ctx;
    const OwnedTensor entropy_T({4}, dtype), kv_begin = ints({0, 6, 5, 2});
    const OwnedTensor entropy_TH({4, 2}, dtype);
    const double ln2 = std::log(2.0), ln6 = std::log(6.0);
    // Two sequences of two tokens at the positions 5 and 6: they see 6, 1, 1 and 5 keys.
    fill(entropy_TH, {ln6, 0, 0, 0, 0, 0, ln2, ln2});
    ops::attention_row_entropy(entropy_T, entropy_TH, kv_begin, 2, 5, ctx);
    EXPECT_TRUE(
        all_near(values(entropy_T), {0.5, 0, 0, ln2 / std::log(5.0)}, dtype == DType::f32 ? 2e-7 : 1e-15, 0));
  }
}

struct MlaCase {
  std::int64_t tokens, latent;
  ops::MlaWidths widths;
};
const MlaCase kMlaCases[] = {{1, 1, {1, 1, 2, 1}},   {1, 19, {3, 5, 4, 7}}, {3, 8, {2, 16, 2, 17}},
                             {8, 33, {5, 9, 8, 65}}, {9, 17, {3, 7, 6, 5}}, {70, 5, {2, 3, 4, 6}}};

TEST(MlaAbsorb, FollowsTheMultipliedOutForm) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const auto& [tokens, C, w] : kMlaCases) {
      PoisonedContext ctx;
      const auto [H, P, R, V] = w;
      const OwnedTensor kv_b = normal_strided(H * (P + V), C, dtype, "kv_b", 1.0, 2);
      const OwnedTensor q = normal_strided(tokens, H * (P + R), dtype, "q", 1.0, 3);
      const OwnedTensor latent = normal_strided(tokens, H * C, dtype, "latent", 1.0, 1);
      const OwnedTensor q_latent = OwnedTensor::strided(tokens, H * (C + R), dtype, 4),
                        out = OwnedTensor::strided(tokens, H * V, dtype, 5);
      ops::mla_absorb_query(q_latent, q, kv_b, w, ctx);
      ops::mla_expand_value(out, latent, kv_b, w, ctx);

      std::vector<double> query, value;
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t h = 0; h < H; ++h) {
          for (std::int64_t c = 0; c < C; ++c) {
            double sum = 0;
            for (std::int64_t p = 0; p < P; ++p)
              sum += q[(t * H + h) * (P + R) + p] * kv_b[(h * (P + V) + p) * C + c];
            query.push_back(sum);
          }
          for (std::int64_t r = 0; r < R; ++r) query.push_back(q[(t * H + h) * (P + R) + P + r]);
          for (std::int64_t i = 0; i < V; ++i) {
            double sum = 0;
            for (std::int64_t c = 0; c < C; ++c)
              sum += latent[(t * H + h) * C + c] * kv_b[(h * (P + V) + P + i) * C + c];
            value.push_back(sum);
          }
        }
      }
      // Sums of up to 33 products of order one, of the same inputs.
      const double tolerance = dtype == DType::f32 ? 1e-5 : 1e-13;
      EXPECT_TRUE(all_near(values(q_latent), query, 0, tolerance)) << tokens << " tokens";
      EXPECT_TRUE(all_near(values(out), value, 0, tolerance)) << tokens << " tokens";
      EXPECT_TRUE(q_latent.margins_untouched() && out.margins_untouched());
    }
  }
}

TEST(MlaAbsorb, AttentionOverLatentsIsThatOverKeysAndValues) {
  for (const auto& [tokens, C, w] : kMlaCases) {
    PoisonedContext ctx;
    const auto [H, P, R, V] = w;
    const std::int64_t first = 131, n_keys = first + tokens;
    const DType dtype = DType::f64;
    const OwnedTensor cache = normal({n_keys, C + R}, dtype, "cache"),  // [latent, rotated part]
        kv_b = normal({H * (P + V), C}, dtype, "kv_b", 0.5), q = normal({tokens, H * (P + R)}, dtype, "q");
    const Tensor c = cache.view().columns(0, C), k_rope = cache.view().columns(C, R);
    const OwnedTensor kv_begin = ints(std::vector<double>(static_cast<std::size_t>(tokens), 2));
    const OwnedTensor lse({tokens, H}, dtype), lse_latent({tokens, H}, dtype);
    ops::AttentionShape shape{.n_seq = 1,
                              .seq_len = tokens,
                              .n_heads = H,
                              .n_kv_heads = H,
                              .head_dim = P + R,
                              .v_head_dim = V,
                              .scale = 0.4,
                              .n_past = first};

    const OwnedTensor kv({n_keys, H * (P + V)}, dtype), k({n_keys, H * (P + R)}, dtype),
        v({n_keys, H * V}, dtype), expected({tokens, H * V}, dtype);
    ops::linear_forward(kv, c, kv_b, ops::Write::set, ctx);
    ops::mla_split_forward(k, v, kv, k_rope, w, ctx);
    ops::attention_forward(expected, lse, q, k, v, kv_begin, shape, {}, ctx);

    const OwnedTensor q_latent({tokens, H * (C + R)}, dtype), latent({tokens, H * C}, dtype),
        out({tokens, H * V}, dtype);
    ops::mla_absorb_query(q_latent, q, kv_b, w, ctx);
    shape.n_kv_heads = 1, shape.head_dim = C + R, shape.v_head_dim = C;
    ops::attention_forward(latent, lse_latent, q_latent, cache, c, kv_begin, shape, {}, ctx);
    ops::mla_expand_value(out, latent, kv_b, w, ctx);
    // Scores up to a hundred, summed in another order: exponentials off by 1e-14 times that.
    EXPECT_TRUE(all_near(values(out), values(expected), 1e-11, 1e-11)) << tokens << " tokens";
    EXPECT_TRUE(all_near(values(lse_latent), values(lse), 1e-12, 1e-12)) << tokens << " tokens";
  }
}

}  // namespace
}  // namespace switchyard::test
