// What the lanes of AVX-512 multiply at once, for products whose operands are packed: gemm_packed.cpp and
// attention_tiles.cpp alone include this.
#pragma once

#ifdef __AVX512F__

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/error.h"
#include "ops/cpu/gemm.h"

// GCC 12's own header fills unused lanes with a value that it warns of.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace switchyard::ops::cpu {

constexpr std::int64_t kPanel = 16, kStrip = 8;
using Vector = __m512;
using Words = __m512i;

inline __mmask16 first_lanes(std::int64_t n) {
  return static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<unsigned>(std::min(n, kPanel))));
}

// What a word is. kDepth: elements of K in one. along: 16 words along K, of which the first n elements are
// there. across: 16 words across K, the first n columns of a row of K and, where a word has two and there is
// one, of the next. kept: words of one element each, from a register. plus_product: sum + the products of a and
// b, lane by lane.
struct FloatWords {
  static constexpr std::int64_t kDepth = 1;
  static Words along(const float* from, std::int64_t n) {
    return std::bit_cast<Words>(_mm512_maskz_loadu_ps(first_lanes(n), from));
  }
  static Words across(const float* row, const float*, std::int64_t n) { return along(row, n); }
  static Words kept(Vector values) { return std::bit_cast<Words>(values); }
  static Vector plus_product(Vector sum, Words a, Words b) {
    return _mm512_fmadd_ps(std::bit_cast<Vector>(a), std::bit_cast<Vector>(b), sum);
  }
};

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline Words rounded(Words values) {
#ifdef __AVX512BF16__
  const __m512i bits =
      _mm512_cvtepu16_epi32(std::bit_cast<__m256i>(_mm512_cvtneps_pbh(std::bit_cast<Vector>(values))));
  return _mm512_slli_epi32(bits, 16);
#else
  const Words high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const Words tie = _mm512_and_si512(_mm512_srli_epi32(values, 16), _mm512_set1_epi32(1));
  const Words up = _mm512_add_epi32(values, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff)));
  const auto as_float = std::bit_cast<Vector>(values);
  const __mmask16 nan = _mm512_cmp_ps_mask(as_float, as_float, _CMP_UNORD_Q);
  const Words quiet = _mm512_or_si512(values, _mm512_set1_epi32(0x400000));
  return _mm512_and_si512(_mm512_mask_mov_epi32(up, nan, quiet), high);
#endif
}

// The product of two bfloat16 is exact in float32.
struct RoundedWords : FloatWords {
  static Words along(const float* from, std::int64_t n) { return rounded(FloatWords::along(from, n)); }
  static Words across(const float* row, const float*, std::int64_t n) { return along(row, n); }
  static Words kept(Vector values) { return rounded(std::bit_cast<Words>(values)); }
};

#ifdef __AVX512BF16__
struct PairWords {
  static constexpr std::int64_t kDepth = 2;
  static Words along(const float* from, std::int64_t n) {
    const Vector low = _mm512_maskz_loadu_ps(first_lanes(n), from);
    const Vector high = n > kPanel ? _mm512_maskz_loadu_ps(first_lanes(n - kPanel), from + kPanel) : Vector{};
    return std::bit_cast<Words>(_mm512_cvtne2ps_pbh(high, low));
  }
  static Words across(const float* row, const float* next, std::int64_t n) {
    const __mmask16 lanes = first_lanes(n);
    const Vector low = _mm512_maskz_loadu_ps(lanes, row);
    const Vector high = next != nullptr ? _mm512_maskz_loadu_ps(lanes, next) : Vector{};
    return _mm512_or_si512(widened(low), _mm512_slli_epi32(widened(high), 16));
  }
  static Vector plus_product(Vector sum, Words a, Words b) {
    return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(a), std::bit_cast<__m512bh>(b));
  }

 private:
  static Words widened(Vector values) {
    return _mm512_cvtepu16_epi32(std::bit_cast<__m256i>(_mm512_cvtneps_pbh(values)));
  }
};
#endif

// f of the word that `word` stands for.
template <class F>
void with_word(PackedWord word, F&& f) {
  switch (word) {
    case PackedWord::f32:
      return f(FloatWords{});
    case PackedWord::rounded:
      return f(RoundedWords{});
    case PackedWord::pair:
#ifdef __AVX512BF16__
      return f(PairWords{});
#else
      break;
#endif
  }
  SY_CHECK(false, "this program was not built for AVX-512 BF16");
}

// Row i, word j -> row j, word i.
inline void transpose(Words (&r)[16]) {
  Words t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Quarters of four words: r[4g + q] holds column 4l + q of rows 4g to 4g + 3 in its quarter l.
  for (int q = 0; q < 4; ++q) {
    t[q] = _mm512_shuffle_i32x4(r[q], r[4 + q], 0x88);
    t[4 + q] = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0x88);
    t[8 + q] = _mm512_shuffle_i32x4(r[q], r[4 + q], 0xdd);
    t[12 + q] = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0xdd);
  }
  for (int q = 0; q < 4; ++q) {
    r[q] = _mm512_shuffle_i32x4(t[q], t[4 + q], 0x88);
    r[8 + q] = _mm512_shuffle_i32x4(t[q], t[4 + q], 0xdd);
    r[4 + q] = _mm512_shuffle_i32x4(t[8 + q], t[12 + q], 0x88);
    r[12 + q] = _mm512_shuffle_i32x4(t[8 + q], t[12 + q], 0xdd);
  }
}

}  // namespace switchyard::ops::cpu

#endif
