#include <omp.h>

#include <algorithm>

#include "core/arena.h"
#include "core/error.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/packed_words.h"

// A is packed into strips of kStrip rows, B into panels of kPanel columns. A word is what a lane multiplies at
// once: an element, or two neighbours along K in bfloat16, the first in the lower half. What a strip, a panel
// or a word has too many are zeros.
//   strip:   [words][kStrip]
//   panel:   [words][kPanel]
// From one to the next there are room(words) of them: an odd number, so that their lines, which are written in
// turn, do not fall into the same set of the first-level cache.

namespace switchyard::ops::cpu {

#ifdef __AVX512F__

namespace {

// Panels of so many words and columns stay in the second-level cache (512 KiB), while strips pass.
constexpr std::int64_t kWords = 256, kRows = 256, kColumns = 512;
constexpr std::int64_t kAhead = 4;  // words of rows that are fetched before their turn
std::int64_t room(std::int64_t words) { return words | 1; }
std::int64_t up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

// A stored operand's piece: `count` rows of op(A), or columns of op(B), from the first on, and `depth` elements
// of K.
struct Piece {
  const float* from;
  std::int64_t ld, count, depth;
};

// Word w of 16 neighbours, of which `count` are there -> a panel, or two strips.
template <std::int64_t kWidth>
void store_word(std::int32_t* to, std::int64_t next, std::int64_t w, std::int64_t count, Words values) {
  static_assert(kWidth == kPanel || 2 * kWidth == kPanel);
  if constexpr (kWidth == kPanel) {
    _mm512_store_si512(to + w * kWidth, values);
  } else {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + w * kWidth), _mm512_castsi512_si256(values));
    if (count > kWidth)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + (next + w) * kWidth),
                         _mm512_extracti64x4_epi64(values, 1));
  }
}

// Rows of K with `count` neighbours each -> strips or panels of kWidth.
template <class Word, std::int64_t kWidth>
void pack_across(Words* to, const Piece& piece, std::int64_t words) {
  constexpr std::int64_t kDepth = Word::kDepth;
  for (std::int64_t w = 0; w < words; ++w) {
    const float* const row = piece.from + w * kDepth * piece.ld;
    const float* const next = kDepth > 1 && kDepth * w + 1 < piece.depth ? row + piece.ld : nullptr;
    // Rows are too short for the processor to foresee the next ones by itself.
    const float* const later = row + kAhead * kDepth * piece.ld;
    const bool has_later = kDepth * (w + kAhead + 1) <= piece.depth;
    for (std::int64_t j = 0; j < piece.count; j += kPanel) {
      if (has_later) {
        for (int i = 0; i < kDepth; ++i) _mm_prefetch(later + i * piece.ld + j, _MM_HINT_T0);
      }
      store_word<kWidth>(reinterpret_cast<std::int32_t*>(to) + j * room(words), room(words), w, piece.count - j,
                         Word::across(row + j, next ? next + j : nullptr, piece.count - j));
    }
  }
}

// Rows along K (of A, or columns of B) -> strips or panels of kWidth.
template <class Word, std::int64_t kWidth>
void pack_along(Words* to, const Piece& piece, std::int64_t words) {
  constexpr std::int64_t kDepth = Word::kDepth;
  for (std::int64_t j = 0; j < piece.count; j += kPanel) {
    const std::int64_t rows = std::min(kPanel, piece.count - j);
    auto* const out = reinterpret_cast<std::int32_t*>(to) + j * room(words);
    for (std::int64_t w = 0; w < words; w += kPanel) {
      const std::int64_t left = piece.depth - w * kDepth;
      Words block[16];
      for (int i = 0; i < 16; ++i)
        block[i] = i < rows ? Word::along(piece.from + (j + i) * piece.ld + w * kDepth, left) : Words{};
      if (j + 2 * kPanel <= piece.count) {
        for (int i = 0; i < 16; ++i)
          for (int line = 0; line < kDepth; ++line)
            _mm_prefetch(piece.from + (j + kPanel + i) * piece.ld + w * kDepth + line * kPanel, _MM_HINT_T0);
      }
      transpose(block);
      const std::int64_t n = std::min(kPanel, words - w);
      for (int i = 0; i < 16; ++i)
        if (i < n) store_word<kWidth>(out, room(words), w + i, rows, block[i]);
    }
  }
}

// Where the sums of a strip and of kVectors panels go: the first rows of C, the last panel's first columns.
struct Target {
  float* c;
  std::int64_t ldc, rows;
  __mmask16 last;
  bool add;
};

template <class Word, int kVectors>
void multiply_strip(const std::int32_t* a, const Words* b, std::int64_t words, const Target& to) {
  // Where the sums will go comes from far away while they are made.
  for (std::int64_t i = 0; i < to.rows; ++i)
    for (int j = 0; j < kVectors; ++j) _mm_prefetch(to.c + i * to.ldc + j * kPanel, _MM_HINT_T0);
  Vector sum[kStrip][kVectors] = {};
  for (std::int64_t w = 0; w < words; ++w) {
    Words columns[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) columns[j] = _mm512_load_si512(b + j * room(words) + w);
#pragma GCC unroll 8
    for (int i = 0; i < kStrip; ++i) {
      const Words value = _mm512_set1_epi32(a[w * kStrip + i]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sum[i][j] = Word::plus_product(sum[i][j], value, columns[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kStrip; ++i) {
    if (i >= to.rows) return;
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float* const out = to.c + i * to.ldc + j * kPanel;
      const __mmask16 lanes = j == kVectors - 1 ? to.last : first_lanes(kPanel);
      const Vector before = to.add ? _mm512_maskz_loadu_ps(lanes, out) : Vector{};
      _mm512_mask_storeu_ps(out, lanes, to.add ? _mm512_add_ps(before, sum[i][j]) : sum[i][j]);
    }
  }
}

// What one thread keeps: a piece of each operand.
struct Workspace {
  AlignedBuffer memory = allocate_aligned(
      (kRows + kColumns) * room(kWords) * static_cast<std::int64_t>(sizeof(float)), "packed operands");
  Words* a() { return reinterpret_cast<Words*>(memory.get()); }
  Words* b() { return a() + kRows / kPanel * room(kWords); }
};

struct Operands {
  bool trans_a, trans_b;
  std::int64_t m, n, k;
  const float *a, *b;
  std::int64_t lda, ldb;
  float* c;
  std::int64_t ldc;
  bool add;
};

template <class Word>
void multiply_piece(const Words* a, const Words* b, std::int64_t rows, std::int64_t columns, std::int64_t words,
                    float* c, std::int64_t ldc, bool add) {
  for (std::int64_t i = 0; i < rows; i += kStrip) {
    const auto* const strip = reinterpret_cast<const std::int32_t*>(a) + i * room(words);
    Target to{c + i * ldc, ldc, std::min(kStrip, rows - i), first_lanes(kPanel), add};
    std::int64_t j = 0;
    for (; j + kPanel < columns; j += 2 * kPanel, to.c += 2 * kPanel) {
      to.last = first_lanes(columns - j - kPanel);
      multiply_strip<Word, 2>(strip, b + j / kPanel * room(words), words, to);
    }
    if (j < columns) {
      to.last = first_lanes(columns - j);
      multiply_strip<Word, 1>(strip, b + j / kPanel * room(words), words, to);
    }
  }
}

// The outputs of rows [m_begin, m_end) and columns [n_begin, n_end), by one thread.
template <class Word>
void multiply_block(const Operands& o, std::int64_t m_begin, std::int64_t m_end, std::int64_t n_begin,
                    std::int64_t n_end) {
  thread_local Workspace space;
  constexpr std::int64_t kDepth = Word::kDepth, kDeep = kWords * kDepth;
  for (std::int64_t n0 = n_begin; n0 < n_end; n0 += kColumns) {
    const std::int64_t columns = std::min(kColumns, n_end - n0);
    for (std::int64_t k0 = 0; k0 < o.k; k0 += kDeep) {
      const std::int64_t depth = std::min(kDeep, o.k - k0), words = (depth + kDepth - 1) / kDepth;
      if (o.trans_b)
        pack_along<Word, kPanel>(space.b(), {o.b + n0 * o.ldb + k0, o.ldb, columns, depth}, words);
      else
        pack_across<Word, kPanel>(space.b(), {o.b + k0 * o.ldb + n0, o.ldb, columns, depth}, words);
      for (std::int64_t m0 = m_begin; m0 < m_end; m0 += kRows) {
        const std::int64_t rows = std::min(kRows, m_end - m0);
        float* const c = o.c + m0 * o.ldc + n0;
        const bool add = o.add || k0 > 0;
        const float* const a = o.trans_a ? o.a + k0 * o.lda + m0 : o.a + m0 * o.lda + k0;
        const Piece piece{a, o.lda, rows, depth};
        if (o.trans_a)
          pack_across<Word, kStrip>(space.a(), piece, words);
        else
          pack_along<Word, kStrip>(space.a(), piece, words);
        multiply_piece<Word>(space.a(), space.b(), rows, columns, words, c, o.ldc, add);
      }
    }
  }
}

// Multiplications below which a team of threads costs more than it saves.
constexpr std::int64_t kParallelProducts = 1 << 17;

template <class Word>
void multiply(const Operands& o) {
  const std::int64_t threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  if (threads == 1 || o.m * o.n * o.k < kParallelProducts) return multiply_block<Word>(o, 0, o.m, 0, o.n);
  // Blocks for every thread; the larger they are, the less is packed twice. The longer side is cut first.
  std::int64_t down = 1, across = 1;
  const auto rows = [&] { return up((o.m + down - 1) / down, kStrip); };
  const auto columns = [&] { return up((o.n + across - 1) / across, 2 * kPanel); };
  while (down * across < 2 * threads && (rows() > 4 * kStrip || columns() > 4 * kPanel))
    ++(rows() > columns() ? down : across);
  const std::int64_t n_rows = rows(), n_columns = columns();
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (std::int64_t j = 0; j < across; ++j)
    for (std::int64_t i = 0; i < down; ++i)
      multiply_block<Word>(o, std::min(o.m, i * n_rows), std::min(o.m, (i + 1) * n_rows),
                           std::min(o.n, j * n_columns), std::min(o.n, (j + 1) * n_columns));
}

}  // namespace

void gemm_packed(PackedWord word, Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                 const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c,
                 std::int64_t ldc) {
  const Operands operands{trans_a == Trans::yes, trans_b == Trans::yes, m, n, k, a, b, lda, ldb, c, ldc, add};
  with_word(word, [&]<class Word>(Word) { multiply<Word>(operands); });
}

#else

void gemm_packed(PackedWord, Trans, Trans, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t,
                 const float*, std::int64_t, bool, float*, std::int64_t) {
  SY_CHECK(kHasPacked, "this program was not built for AVX-512");
}

#endif

PackedWord packed_word(MatmulType type) {
  if (type == MatmulType::f32) return PackedWord::f32;
  // Intel's processors start a product of pairs every other cycle, and two of floats every cycle; AMD's one of
  // pairs every cycle.
  static const bool pairs = kHasPairs && __builtin_cpu_is("intel") == 0;
  return pairs ? PackedWord::pair : PackedWord::rounded;
}

}  // namespace switchyard::ops::cpu
