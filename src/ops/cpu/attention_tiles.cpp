#include "ops/cpu/attention_tiles.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "ops/cpu/packed_words.h"
#include "ops/cpu/vector_math.h"

// Operands of products, in words (ops/cpu/packed_words.h); K is what a product sums over.
//   lines:   [rows][stride] words along K: of A
//   columns: [words along K][stride]: of A, transposed, or of B
//   panels:  [panel][words along K][kPanel]: of B, transposed

namespace switchyard::ops::cpu {

#ifdef __AVX512F__

namespace {

using Word32 = std::int32_t;

constexpr std::int64_t kQueries = 64, kKeys = 64;  // a tile of the backward pass
constexpr std::int64_t kBlock = 512;               // keys whose scores a strip of queries keeps
constexpr std::int64_t kWidest = 256;              // head
constexpr std::int64_t kManyTasks = 16;            // so many need not be cut further
constexpr std::int64_t kLong = 1024;               // sequences; of shorter ones cutting costs a third
// From row to row an odd number of cache lines, so that eight rows do not share a set.
constexpr std::int64_t kLine = kWidest + kPanel, kScoreLine = kBlock + kPanel, kTileLine = kKeys + kPanel;
static_assert(kQueries == kKeys, "a tile's columns have the room of its lines");

std::int64_t up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

// exp(x) to one unit in the last place; 0 where the result would be subnormal, NaN stays NaN. The steps of
// exp_of (ops/cpu/vector_math.h).
Vector exp_lanes(Vector x) {
  const auto all = [](float value) { return _mm512_set1_ps(value); };
  const Vector n = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
  Vector r = _mm512_fnmadd_ps(n, all(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, all(-2.12194440e-4f), r);
  Vector p = all(1.9875691500e-4f);
  for (const float c :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, all(c));
  const Vector e = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, all(1.0f)));
  const __mmask16 counts = _mm512_cmp_ps_mask(x, all(-87.3365447504f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(counts, e, n);
}

// Word w of row i, in lines and in columns.
struct Lines {
  const Word32* words;
  std::int64_t stride;
  Word32 operator()(std::int64_t i, std::int64_t w) const { return words[i * stride + w]; }
};
struct Columns {
  const Word32* words;
  std::int64_t stride;
  Word32 operator()(std::int64_t i, std::int64_t w) const { return words[w * stride + i]; }
};

// B: `step` words from one word of K to the next, `next` from 16 columns to the next 16.
struct Right {
  const Word32* words;
  std::int64_t step, next;
};

template <int kVectors>
struct Sums {
  Vector at[kStrip][kVectors];
};

// sums + a b over the words [begin, end) of K.
template <class Word, int kVectors, class Left>
[[gnu::always_inline]] inline void multiply_add(Sums<kVectors>& sums, const Left& a, const Right& b,
                                                std::int64_t begin, std::int64_t end) {
  for (std::int64_t w = begin; w < end; ++w) {
    Words columns[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) columns[j] = _mm512_loadu_si512(b.words + w * b.step + j * b.next);
#pragma GCC unroll 8
    for (int i = 0; i < kStrip; ++i) {
      const Words value = _mm512_set1_epi32(a(i, w));
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums.at[i][j] = Word::plus_product(sums.at[i][j], value, columns[j]);
    }
  }
}

// c, `rows` of them, = factor[i] c (or 0 where `fresh`) + a b, for `columns` columns, a multiple of 16.
template <class Word, class Left>
void multiply_strip(float* c, std::int64_t ldc, std::int64_t rows, std::int64_t columns, const float* factor,
                    bool fresh, const Left& a, Right b, std::int64_t begin, std::int64_t end) {
  const auto part = [&]<int kVectors>() {
    Sums<kVectors> sums{};
    multiply_add<Word>(sums, a, b, begin, end);
#pragma GCC unroll 8
    for (int i = 0; i < kStrip; ++i) {
      if (i >= rows) return;
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        float* const to = c + i * ldc + j * kPanel;
        const Vector sum = sums.at[i][j];
        const Vector result =
            fresh ? sum : _mm512_fmadd_ps(_mm512_loadu_ps(to), _mm512_set1_ps(factor[i]), sum);
        _mm512_storeu_ps(to, result);
      }
    }
  };
  std::int64_t column = 0;
  for (; column + kPanel < columns; column += 2 * kPanel, c += 2 * kPanel, b.words += 2 * kPanel)
    part.template operator()<2>();
  if (column < columns) part.template operator()<1>();
}
constexpr float kOnes[kStrip] = {1, 1, 1, 1, 1, 1, 1, 1};

// A stored matrix: rows [first, rows) of `columns` elements, a multiple of 16. Rows before and behind them may
// be anything and count as zeros.
struct Rows {
  const float* from;
  std::int64_t ld, rows, columns, first = 0;
  bool has(std::int64_t i) const { return i >= first && i < rows; }
  // 16 elements of row i from column c on.
  const float* at(std::int64_t i, std::int64_t c) const {
    static constexpr float kZeros[kPanel] = {};
    return has(i) ? from + i * ld + c : kZeros;
  }
};

// To lines of the first `room` rows.
template <class Word>
void pack_lines(Word32* to, std::int64_t stride, const Rows& in, std::int64_t room) {
  for (std::int64_t i = 0; i < room; ++i)
    for (std::int64_t c = 0; c < in.columns; c += kPanel * Word::kDepth)
      _mm512_storeu_si512(to + i * stride + c / Word::kDepth,
                          in.has(i) ? Word::along(in.from + i * in.ld + c, in.columns - c) : Words{});
}

// To columns: K is down the rows.
template <class Word>
void pack_columns(Word32* to, std::int64_t stride, const Rows& in, std::int64_t room) {
  for (std::int64_t i = 0; i < room; i += Word::kDepth) {
    for (std::int64_t c = 0; c < in.columns; c += kPanel)
      _mm512_storeu_si512(to + i / Word::kDepth * stride + c,
                          Word::across(in.at(i, c), in.at(i + 1, c), kPanel));
  }
}

// To panels: K is along the rows.
template <class Word>
void pack_panels(Word32* to, const Rows& in, std::int64_t room) {
  const std::int64_t words = in.columns / Word::kDepth;
  for (std::int64_t i0 = 0; i0 < room; i0 += kPanel, to += words * kPanel) {
    for (std::int64_t w = 0; w < words; w += kPanel) {
      Words block[16];
      for (std::int64_t i = 0; i < 16; ++i)
        block[i] = in.has(i0 + i) ? Word::along(in.from + (i0 + i) * in.ld + w * Word::kDepth,
                                                in.columns - w * Word::kDepth)
                                  : Words{};
      transpose(block);
      for (std::int64_t i = 0; i < std::min(kPanel, words - w); ++i)
        _mm512_storeu_si512(to + (w + i) * kPanel, block[i]);
    }
  }
}

// The keys that the queries of a strip see: row i those of [begin[i], end[i]). A row that is not there sees
// none.
struct Visible {
  std::int64_t begin[kStrip], end[kStrip];
  std::int64_t first, last;       // keys that any row sees: [first, last)
  std::int64_t all_from, all_to;  // keys that all rows see

  // Queries at the positions from `position` on.
  Visible(const std::int32_t* kv_begin, std::int64_t position, std::int64_t rows) {
    first = position + kStrip;
    last = 0;
    all_from = 0;
    all_to = rows == kStrip ? position + kStrip : 0;
    for (std::int64_t i = 0; i < kStrip; ++i) {
      begin[i] = i < rows ? kv_begin[i] : 0;
      end[i] = i < rows ? position + i + 1 : 0;
      if (i >= rows) continue;
      first = std::min(first, begin[i]);
      last = std::max(last, end[i]);
      all_from = std::max(all_from, begin[i]);
      all_to = std::min(all_to, end[i]);
    }
  }
  bool all(std::int64_t key, std::int64_t count) const { return key >= all_from && key + count <= all_to; }
  __mmask16 lanes(int i, std::int64_t key) const {
    const auto to = [&](std::int64_t n) { return first_lanes(std::max<std::int64_t>(0, n - key)); };
    return static_cast<__mmask16>(to(end[i]) & ~to(begin[i]));
  }
};

// A strip's softmax so far.
struct Softmax {
  float max[kStrip], sum[kStrip], product[kStrip], shrink[kStrip];
};

// scores = q keys^T of the keys [key0, key0 + n), minus infinity where a query does not see one -> the largest
// of each row.
template <class Word>
void score_strip(float* score, Vector (&top)[kStrip], const Word32* query_lines, const Word32* key_panels,
                 std::int64_t words, std::int64_t key0, std::int64_t n, const Visible& see) {
  const Vector none = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (Vector& lanes : top) lanes = none;
  const auto part = [&]<int kVectors>(std::int64_t j0) {
    Sums<kVectors> sums{};
    multiply_add<Word>(sums, Lines{query_lines, kLine},
                       Right{key_panels + (key0 + j0) * words, kPanel, words * kPanel}, 0, words);
    const bool all = see.all(key0 + j0, kVectors * kPanel);
#pragma GCC unroll 8
    for (int i = 0; i < kStrip; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        Vector value = sums.at[i][j];
        if (!all) value = _mm512_mask_mov_ps(none, see.lanes(i, key0 + j0 + j * kPanel), value);
        _mm512_storeu_ps(score + i * kScoreLine + j0 + j * kPanel, value);
        top[i] = _mm512_max_ps(top[i], value);
      }
    }
  };
  std::int64_t j = 0;
  for (; j + kPanel < n; j += 2 * kPanel) part.template operator()<2>(j);
  if (j < n) part.template operator()<1>(j);
}

// scores of n keys -> exp(scale score - max), as lines of words; the running maximum, sum and, with kEntropy,
// sum of exp(...) scale score move on.
template <class Word, bool kEntropy>
void softmax_strip(Word32* lines, float* score, const Vector (&top)[kStrip], std::int64_t n, float scale,
                   Softmax& run) {
  for (int i = 0; i < kStrip; ++i) {
    float* const row = score + i * kScoreLine;
    const float max = std::max(run.max[i], scale * _mm512_reduce_max_ps(top[i]));
    const float base = std::isinf(max) ? 0.0f : max;  // of a row that has seen no key yet
    const Vector base_lanes = _mm512_set1_ps(base), scale_lanes = _mm512_set1_ps(scale);
    Vector sum{}, product{};
    const std::int64_t room = up(n, kPanel * Word::kDepth);
    for (std::int64_t j = 0; j < room; j += kPanel) {
      if (j >= n) {
        _mm512_storeu_ps(row + j, Vector{});
        break;
      }
      const Vector x = _mm512_fmsub_ps(_mm512_loadu_ps(row + j), scale_lanes, base_lanes);
      const Vector p = exp_lanes(x);
      sum = _mm512_add_ps(sum, p);
      if constexpr (kEntropy) {
        const __mmask16 counts = _mm512_cmp_ps_mask(p, Vector{}, _CMP_NEQ_UQ);
        product = _mm512_mask3_fmadd_ps(p, x, product, counts);
      }
      if constexpr (Word::kDepth == 1)
        _mm512_storeu_si512(lines + i * kScoreLine + j, Word::kept(p));
      else
        _mm512_storeu_ps(row + j, p);
    }
    if constexpr (Word::kDepth > 1) {
      for (std::int64_t j = 0; j < room; j += kPanel * Word::kDepth)
        _mm512_storeu_si512(lines + i * kScoreLine + j / Word::kDepth,
                            Word::along(row + j, kPanel * Word::kDepth));
    }
    const float shrink = exp_of(run.max[i] - base), block_sum = _mm512_reduce_add_ps(sum);
    if constexpr (kEntropy)
      run.product[i] = run.product[i] * shrink + _mm512_reduce_add_ps(product) + base * block_sum;
    run.sum[i] = run.sum[i] * shrink + block_sum;
    run.shrink[i] = shrink;
    run.max[i] = max;
  }
}

// Rows of one head, strided and short, which the processor does not foresee by itself.
void fetch(const Tensor& x, std::int64_t first, std::int64_t rows, std::int64_t column, std::int64_t columns) {
  for (std::int64_t i = first; i < std::min(x.rows(), first + rows); ++i)
    for (std::int64_t c = 0; c < columns; c += kPanel) _mm_prefetch(x.row<float>(i) + column + c, _MM_HINT_T0);
}

// What one thread of the forward pass keeps.
struct ForwardSpace {
  float score[kStrip * kScoreLine];
  Word32 lines[kStrip * kScoreLine];  // of words that are not floats
  Word32 query[kStrip * kLine];
  float out[kStrip * kLine];
};

template <class Word, bool kEntropy>
void forward(Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T,
             const AttentionShape& shape, Tensor entropy_TH, Context& ctx) {
  const auto [n_seq, S, H, G, N, M, scale, before, window] = shape;
  const std::int64_t all_keys = before + S, room = up(all_keys, kKeys), words = N / Word::kDepth;
  const ScratchScope scope(ctx.scratch);
  const Tensor keys_XP = ctx.scratch.take(Shape{n_seq * G, room * words}, DType::i32);
  const Tensor values_XP = ctx.scratch.take(Shape{n_seq * G, room / Word::kDepth * M}, DType::i32);
  if (ctx.measures()) return;
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (std::int64_t x = 0; x < n_seq * G; ++x) {
      const std::int64_t row = x / G * all_keys, g = x % G;
      const std::int32_t* const kv_begin = kv_begin_T.as<std::int32_t>() + x / G * S;
      const std::int64_t first_seen = *std::min_element(kv_begin, kv_begin + S);
      pack_panels<Word>(keys_XP.row<Word32>(x),
                        {k_TGN.row<float>(row) + g * N, k_TGN.row_stride(), all_keys, N, first_seen}, room);
      pack_columns<Word>(values_XP.row<Word32>(x), M,
                         {v_TGM.row<float>(row) + g * M, v_TGM.row_stride(), all_keys, M, first_seen}, room);
    }
    alignas(64) ForwardSpace space;
    Word32* const lines = Word::kDepth == 1 ? reinterpret_cast<Word32*>(space.score) : space.lines;
    const std::int64_t tiles = (S + kQueries - 1) / kQueries;
#pragma omp for collapse(3) schedule(dynamic, 1)
    for (std::int64_t seq = 0; seq < n_seq; ++seq) {
      for (std::int64_t g = 0; g < G; ++g) {
        for (std::int64_t reversed = 0; reversed < tiles; ++reversed) {
          const std::int64_t tile = (tiles - 1 - reversed) * kQueries;  // those with most keys first
          const std::int64_t x = seq * G + g, first_head = g * (H / G);
          const Word32* const keys = keys_XP.row<Word32>(x);
          const Word32* const values = values_XP.row<Word32>(x);
          for (std::int64_t i0 = tile; i0 < std::min(S, tile + kQueries); i0 += kStrip) {
            const std::int64_t rows = std::min(kStrip, S - i0), token = seq * S + i0;
            const Visible see(kv_begin_T.as<std::int32_t>() + token, before + i0, rows);
            fetch(q_THN, token + kStrip, kStrip, first_head * N, H / G * N);
            for (std::int64_t h = first_head; h < first_head + H / G; ++h) {
              pack_lines<Word>(space.query, kLine,
                               {q_THN.row<float>(token) + h * N, q_THN.row_stride(), rows, N}, kStrip);
              Softmax run{};
              std::fill_n(run.max, kStrip, -std::numeric_limits<float>::infinity());
              const std::int64_t first = see.first / (2 * kPanel) * (2 * kPanel);
              for (std::int64_t key0 = first; key0 < see.last; key0 += kBlock) {
                const std::int64_t n = std::min(kBlock, see.last - key0);
                Vector top[kStrip];
                score_strip<Word>(space.score, top, space.query, keys, words, key0, n, see);
                softmax_strip<Word, kEntropy>(lines, space.score, top, n, static_cast<float>(scale), run);
                multiply_strip<Word>(
                    space.out, kLine, kStrip, M, run.shrink, key0 == first, Lines{lines, kScoreLine},
                    Right{values + key0 / Word::kDepth * M, M, kPanel}, 0, up(n, kPanel) / Word::kDepth);
              }
              for (std::int64_t i = 0; i < rows; ++i) {
                float* const out_M = out_THM.row<float>(token + i) + h * M;
                const float inverse = 1.0f / run.sum[i], lse = run.max[i] + std::log(run.sum[i]);
#pragma omp simd
                for (std::int64_t c = 0; c < M; ++c) out_M[c] = space.out[i * kLine + c] * inverse;
                lse_TH.row<float>(token + i)[h] = lse;
                // -sum P log P with log P = s - lse
                if constexpr (kEntropy) entropy_TH.row<float>(token + i)[h] = lse - run.product[i] * inverse;
              }
            }
          }
        }
      }
    }
  }
}

// What one thread of the backward pass keeps of a tile. With words that are floats, lines and columns are the
// same.
struct BackwardSpace {
  Word32 query[kQueries * kLine], dout[kQueries * kLine];  // lines
  Word32 query_columns[kQueries * kLine], dout_columns[kQueries * kLine];
  float prob[kQueries * kTileLine], dscore[kQueries * kTileLine];
  Word32 prob_columns[kQueries * kTileLine], dscore_columns[kQueries * kTileLine];
  Word32 dscore_lines[kQueries * kTileLine];
  float dq[kQueries * kLine];
  float lse[kQueries], delta[kQueries];
};

// A key-value head of one sequence, packed.
struct Head {
  const Word32 *key_panels, *value_panels, *key_columns;
};

// P and scale P (dout v^T - delta) of a strip of queries and the keys [key0, key0 + kKeys): zero where a query
// does not see one.
template <class Word>
void gradient_strip(BackwardSpace& space, std::int64_t strip, const Head& head, std::int64_t N, std::int64_t M,
                    std::int64_t key0, float scale, const Visible& see) {
  float* const prob = space.prob + strip * kTileLine;
  float* const dscore = space.dscore + strip * kTileLine;
  const auto keep = [](float* to, Vector value) {
    if constexpr (Word::kDepth == 1)
      _mm512_storeu_si512(to, Word::kept(value));
    else
      _mm512_storeu_ps(to, value);
  };
  const auto part = [&]<int kVectors>(std::int64_t j0) {
    const std::int64_t key = key0 + j0;
    const bool all = see.all(key, kVectors * kPanel);
    const auto lanes = [&](int i, int j) { return all ? first_lanes(kPanel) : see.lanes(i, key + j * kPanel); };
    Vector p[kStrip][kVectors];
    {
      const std::int64_t words = N / Word::kDepth;
      Sums<kVectors> sums{};
      multiply_add<Word>(sums, Lines{space.query + strip * kLine, kLine},
                         Right{head.key_panels + key * words, kPanel, words * kPanel}, 0, words);
#pragma GCC unroll 8
      for (int i = 0; i < kStrip; ++i) {
        const Vector lse = _mm512_set1_ps(space.lse[strip + i]);
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) {
          const Vector value = exp_lanes(_mm512_fmsub_ps(sums.at[i][j], _mm512_set1_ps(scale), lse));
          p[i][j] = _mm512_maskz_mov_ps(lanes(i, j), value);
          keep(prob + i * kTileLine + j0 + j * kPanel, p[i][j]);
        }
      }
    }
    const std::int64_t words = M / Word::kDepth;
    Sums<kVectors> sums{};
    multiply_add<Word>(sums, Lines{space.dout + strip * kLine, kLine},
                       Right{head.value_panels + key * words, kPanel, words * kPanel}, 0, words);
#pragma GCC unroll 8
    for (int i = 0; i < kStrip; ++i) {
      const Vector delta = _mm512_set1_ps(space.delta[strip + i]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        const Vector scaled = _mm512_mul_ps(p[i][j], _mm512_set1_ps(scale));
        keep(dscore + i * kTileLine + j0 + j * kPanel,
             _mm512_maskz_mul_ps(lanes(i, j), scaled, _mm512_sub_ps(sums.at[i][j], delta)));
      }
    }
  };
  const std::int64_t first = std::clamp<std::int64_t>(see.first - key0, 0, kKeys) / (2 * kPanel) * (2 * kPanel);
  const std::int64_t last = std::clamp<std::int64_t>(up(see.last - key0, kPanel), first, kKeys);
  std::int64_t j = first;
  for (; j + kPanel < last; j += 2 * kPanel) part.template operator()<2>(j);
  if (j < last) part.template operator()<1>(j);
  for (std::int64_t i = 0; i < kStrip; ++i) {
    for (float* const tile : {prob, dscore}) {
      std::fill_n(tile + i * kTileLine, first, 0.0f);
      std::fill(tile + i * kTileLine + last, tile + i * kTileLine + kKeys, 0.0f);
    }
  }
}

template <class Word>
void backward(Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM, Tensor out_THM, Tensor lse_TH,
              Tensor q_THN, Tensor k_TGN, Tensor v_TGM, Tensor kv_begin_T, const AttentionShape& shape,
              Context& ctx) {
  const auto [n_seq, S, H, G, N, M, scale, before, window] = shape;
  constexpr std::int64_t kDepth = Word::kDepth;
  const std::int64_t room = up(S, kKeys), threads = omp_get_max_threads();
  const ScratchScope scope(ctx.scratch);
  const Tensor head_XP = ctx.scratch.take(Shape{threads, room / kDepth * (2 * N + M)}, DType::i32);
  const Tensor space_XP = ctx.scratch.take(
      Shape{threads, static_cast<std::int64_t>(sizeof(BackwardSpace) / sizeof(Word32))}, DType::i32);

  // Of one sequence, the query heads [first_head, last_head), which read key-value head g: their part of dk and
  // dv
  // -> S rows from dk and dv on.
  struct Target {
    float *dk, *dv;
    std::int64_t ldk, ldv;
  };
  const auto run_heads = [&](std::int64_t seq, std::int64_t g, std::int64_t first_head, std::int64_t last_head,
                             const Target& to) {
    const std::int64_t token0 = seq * S;
    BackwardSpace& space = *reinterpret_cast<BackwardSpace*>(space_XP.row<Word32>(omp_get_thread_num()));
    Word32* const key_panels = head_XP.row<Word32>(omp_get_thread_num());
    Word32* const key_columns = key_panels + room / kDepth * N;
    Word32* const value_panels = key_columns + room / kDepth * N;
    const Rows keys{k_TGN.row<float>(token0) + g * N, k_TGN.row_stride(), S, N};
    pack_panels<Word>(key_panels, keys, room);
    pack_columns<Word>(key_columns, N, keys, room);
    pack_panels<Word>(value_panels, {v_TGM.row<float>(token0) + g * M, v_TGM.row_stride(), S, M}, room);
    const Head head{key_panels, value_panels, key_columns};
    for (std::int64_t s = 0; s < S; ++s) {
      std::fill_n(to.dk + s * to.ldk, N, 0.0f);
      std::fill_n(to.dv + s * to.ldv, M, 0.0f);
    }
    for (std::int64_t h = first_head; h < last_head; ++h)
      for (std::int64_t i0 = 0; i0 < S; i0 += kQueries) {
        const std::int64_t n_queries = std::min(kQueries, S - i0), token = token0 + i0;
        const std::int32_t* const kv_begin = kv_begin_T.as<std::int32_t>() + token;
        const Rows queries{q_THN.row<float>(token) + h * N, q_THN.row_stride(), n_queries, N};
        const Rows douts{dout_THM.row<float>(token) + h * M, dout_THM.row_stride(), n_queries, M};
        pack_lines<Word>(space.query, kLine, queries, kQueries);
        pack_lines<Word>(space.dout, kLine, douts, kQueries);
        const Word32 *query_columns = space.query, *dout_columns = space.dout;
        const auto *prob_columns = reinterpret_cast<const Word32*>(space.prob),
                   *dscore_columns = reinterpret_cast<const Word32*>(space.dscore),
                   *dscore_lines = dscore_columns;
        if constexpr (kDepth > 1) {
          pack_columns<Word>(space.query_columns, kLine, queries, kQueries);
          pack_columns<Word>(space.dout_columns, kLine, douts, kQueries);
          query_columns = space.query_columns;
          dout_columns = space.dout_columns;
          prob_columns = space.prob_columns;
          dscore_columns = space.dscore_columns;
          dscore_lines = space.dscore_lines;
        }
        fetch(q_THN, token + kQueries, kQueries, h * N, N);
        fetch(dout_THM, token + kQueries, kQueries, h * M, M);
        fetch(out_THM, token + kQueries, kQueries, h * M, M);
        for (std::int64_t i = 0; i < kQueries; ++i) {
          space.delta[i] = space.lse[i] = 0;
          if (i >= n_queries) continue;
          const float* const out_M = out_THM.row<float>(token + i) + h * M;
          const float* const dout_M = dout_THM.row<float>(token + i) + h * M;
          Vector sum{};
          for (std::int64_t c = 0; c < M; c += kPanel)
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(dout_M + c), _mm512_loadu_ps(out_M + c), sum);
          space.delta[i] = _mm512_reduce_add_ps(sum);
          space.lse[i] = lse_TH.row<float>(token + i)[h];
        }
        const std::int64_t first = *std::min_element(kv_begin, kv_begin + n_queries) / kKeys * kKeys;
        for (std::int64_t key0 = first; key0 < i0 + n_queries; key0 += kKeys) {
          for (std::int64_t strip = 0; strip < kQueries; strip += kStrip) {
            const std::int64_t rows = std::clamp<std::int64_t>(n_queries - strip, 0, kStrip);
            gradient_strip<Word>(space, strip, head, N, M, key0, static_cast<float>(scale),
                                 Visible(kv_begin + strip, i0 + strip, rows));
          }
          if constexpr (kDepth > 1) {
            const Rows probs{space.prob, kTileLine, kQueries, kKeys},
                dscores{space.dscore, kTileLine, kQueries, kKeys};
            pack_columns<Word>(space.prob_columns, kTileLine, probs, kQueries);
            pack_columns<Word>(space.dscore_columns, kTileLine, dscores, kQueries);
            pack_lines<Word>(space.dscore_lines, kTileLine, dscores, kQueries);
          }
          for (std::int64_t strip = 0; strip < std::min(kKeys, S - key0); strip += kStrip) {
            const std::int64_t key = key0 + strip, rows = std::min(kStrip, S - key);
            // Queries before these keys do not see them.
            const std::int64_t begin = std::max<std::int64_t>(0, key - i0) / kDepth, end = kQueries / kDepth;
            multiply_strip<Word>(to.dv + key * to.ldv, to.ldv, rows, M, kOnes, false,
                                 Columns{prob_columns + strip, kTileLine}, Right{dout_columns, kLine, kPanel},
                                 begin, end);
            multiply_strip<Word>(to.dk + key * to.ldk, to.ldk, rows, N, kOnes, false,
                                 Columns{dscore_columns + strip, kTileLine},
                                 Right{query_columns, kLine, kPanel}, begin, end);
          }
          for (std::int64_t strip = 0; strip < n_queries; strip += kStrip) {
            const std::int64_t end = std::min(kKeys, up(i0 + strip + kStrip - key0, kPanel)) / kDepth;
            multiply_strip<Word>(space.dq + strip * kLine, kLine, kStrip, N, kOnes, key0 == first,
                                 Lines{dscore_lines + strip * kTileLine, kTileLine},
                                 Right{key_columns + key0 / kDepth * N, N, kPanel}, 0, end);
          }
        }
        for (std::int64_t i = 0; i < n_queries; ++i)
          std::copy_n(space.dq + i * kLine, N, dq_THN.row<float>(token + i) + h * N);
      }
  };

  // A task owns dk and dv of a key-value head and adds up its query heads in order; where that would leave
  // threads without a task, every query head is one, and their parts are added up in the same order afterwards.
  // The shape alone decides, so that the number of threads does not show in the result.
  if (H == G || n_seq * G >= kManyTasks || S < kLong) {
    if (ctx.measures()) return;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (std::int64_t seq = 0; seq < n_seq; ++seq)
      for (std::int64_t g = 0; g < G; ++g)
        run_heads(seq, g, g * (H / G), (g + 1) * (H / G),
                  {dk_TGN.row<float>(seq * S) + g * N, dv_TGM.row<float>(seq * S) + g * M, dk_TGN.row_stride(),
                   dv_TGM.row_stride()});
    return;
  }
  const Tensor dk_XSN = ctx.scratch.take(Shape{n_seq * H, S * N}, DType::f32);
  const Tensor dv_XSM = ctx.scratch.take(Shape{n_seq * H, S * M}, DType::f32);
  if (ctx.measures()) return;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (std::int64_t seq = 0; seq < n_seq; ++seq)
    for (std::int64_t h = 0; h < H; ++h)
      run_heads(seq, h / (H / G), h, h + 1,
                {dk_XSN.row<float>(seq * H + h), dv_XSM.row<float>(seq * H + h), N, M});
  const auto add_up = [&](float* to, const Tensor& parts, std::int64_t head, std::int64_t s,
                          std::int64_t width) {
    std::copy_n(parts.row<float>(head) + s * width, width, to);
    for (std::int64_t h = head + 1; h < head + H / G; ++h) {
      const float* const part = parts.row<float>(h) + s * width;
#pragma omp simd
      for (std::int64_t c = 0; c < width; ++c) to[c] += part[c];
    }
  };
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < n_seq * S; ++t) {
    for (std::int64_t g = 0; g < G; ++g) {
      const std::int64_t head = t / S * H + g * (H / G);
      add_up(dk_TGN.row<float>(t) + g * N, dk_XSN, head, t % S, N);
      add_up(dv_TGM.row<float>(t) + g * M, dv_XSM, head, t % S, M);
    }
  }
}

}  // namespace

bool has_attention_tiles(const AttentionShape& shape) {
  const auto fits = [](std::int64_t width) { return width % kPanel == 0 && width <= kWidest; };
  return fits(shape.head_dim) && fits(shape.v_head_dim) && shape.seq_len >= kStrip;
}

void attention_forward_tiles(PackedWord word, Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN,
                             Tensor v_TGM, Tensor kv_begin_T, const AttentionShape& shape, Tensor entropy_TH,
                             Context& ctx) {
  with_word(word, [&]<class Word>(Word) {
    (entropy_TH.defined() ? forward<Word, true> : forward<Word, false>)(out_THM, lse_TH, q_THN, k_TGN, v_TGM,
                                                                        kv_begin_T, shape, entropy_TH, ctx);
  });
}

void attention_backward_tiles(PackedWord word, Tensor dq_THN, Tensor dk_TGN, Tensor dv_TGM, Tensor dout_THM,
                              Tensor out_THM, Tensor lse_TH, Tensor q_THN, Tensor k_TGN, Tensor v_TGM,
                              Tensor kv_begin_T, const AttentionShape& shape, Context& ctx) {
  with_word(word, [&]<class Word>(Word) {
    backward<Word>(dq_THN, dk_TGN, dv_TGM, dout_THM, out_THM, lse_TH, q_THN, k_TGN, v_TGM, kv_begin_T, shape,
                   ctx);
  });
}

#else

bool has_attention_tiles(const AttentionShape&) { return false; }

void attention_forward_tiles(PackedWord, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, const AttentionShape&,
                             Tensor, Context&) {
  SY_CHECK(false, "this program was not built for AVX-512");
}

void attention_backward_tiles(PackedWord, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                              Tensor, Tensor, const AttentionShape&, Context&) {
  SY_CHECK(false, "this program was not built for AVX-512");
}

#endif

}  // namespace switchyard::ops::cpu
