#include "ops/cpu/gemm.h"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "core/arena.h"
#include "core/error.h"

namespace switchyard::ops::cpu {

namespace {

using dnnl::memory;
using Bits = std::uint16_t;

// Rows and the inner dimension are padded with zeros to a multiple of this. How many tokens an expert gets
// changes from step to step; without padding every count would be a product of its own to compile and to keep.
constexpr std::int64_t kStep = 32;

std::int64_t padded(std::int64_t n) { return (n + kStep - 1) / kStep * kStep; }

struct ProductShape {
  bool trans_a, trans_b, add;
  std::int64_t m, n, k, ldc;
  bool operator==(const ProductShape&) const = default;
};

struct ProductShapeHash {
  std::size_t operator()(const ProductShape& s) const {
    std::size_t hash = (s.trans_a ? 1 : 0) + (s.trans_b ? 2 : 0) + (s.add ? 4 : 0);
    for (const std::int64_t value : {s.m, s.n, s.k, s.ldc})
      hash = hash * 0x9E3779B97F4A7C15u + static_cast<std::size_t>(value);
    return hash;
  }
};

const dnnl::engine& engine() {
  static const dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

struct Product {
  dnnl::matmul primitive;
  memory::desc a, b, c, scratch;
};

Product compile(const ProductShape& s) {
  const memory::desc a({s.m, s.k}, memory::data_type::bf16,
                       s.trans_a ? memory::dims{1, s.m} : memory::dims{s.k, 1});
  const memory::desc b({s.k, s.n}, memory::data_type::bf16,
                       s.trans_b ? memory::dims{1, s.k} : memory::dims{s.n, 1});
  const memory::desc c({s.m, s.n}, memory::data_type::f32, memory::dims{s.ldc, 1});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (s.add) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc description(engine(), a, b, c, attributes);
#else
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, engine());
#endif
  return {dnnl::matmul(description), a, b, c, description.scratchpad_desc()};
}

// What one thread keeps from product to product. Buffers grow to the largest product met and stay.
struct Workspace {
  std::unordered_map<ProductShape, Product, ProductShapeHash> products;
  dnnl::stream stream{engine()};

  Bits* operand(int which, std::int64_t count) {
    return reinterpret_cast<Bits*>(grown(which, count * static_cast<std::int64_t>(sizeof(Bits))));
  }
  float* product(std::int64_t count) { return floats(3, count); }
  float* floats(int which, std::int64_t count) {
    return reinterpret_cast<float*>(grown(which, count * static_cast<std::int64_t>(sizeof(float))));
  }
  void* scratch(const memory::desc& description) {
    return grown(2, static_cast<std::int64_t>(description.get_size()));
  }

 private:
  std::byte* grown(int which, std::int64_t bytes) {
    if (sizes[which] < bytes) {
      buffers[which] = nullptr;
      buffers[which] = allocate_aligned(bytes, "bfloat16 operands");
      sizes[which] = bytes;
    }
    return buffers[which].get();
  }
  AlignedBuffer buffers[4];
  std::int64_t sizes[4] = {};
};

Workspace& workspace() {
  thread_local Workspace instance;
  return instance;
}

// To nearest, ties to even; NaN stays NaN.
Bits rounded(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t up = 0x7fff + ((bits >> 16) & 1);
  return static_cast<Bits>(value == value ? (bits + up) >> 16 : (bits >> 16) | 0x40);
}

// rows x columns of `from` -> `to`, whose rows have `to_columns` >= columns and which has to_rows >= rows; what
// is added is zero.
void convert(Bits* to, std::int64_t to_rows, std::int64_t to_columns, const float* from, std::int64_t rows,
             std::int64_t columns, std::int64_t ld) {
#pragma omp parallel for schedule(static) if (!omp_in_parallel() && to_rows * to_columns > 1 << 16)
  for (std::int64_t i = 0; i < to_rows; ++i) {
    Bits* out = to + i * to_columns;
    const std::int64_t filled = i < rows ? columns : 0;
    const float* in = from + i * ld;
#pragma omp simd
    for (std::int64_t j = 0; j < filled; ++j) out[j] = rounded(in[j]);
    std::fill(out + filled, out + to_columns, Bits{0});
  }
}

// rows x columns of `from`, rounded to bfloat16 and kept as float32 -> `to`, without gaps.
void round_to(float* to, const float* from, std::int64_t rows, std::int64_t columns, std::int64_t ld) {
#pragma omp parallel for schedule(static) if (!omp_in_parallel() && rows * columns > 1 << 16)
  for (std::int64_t i = 0; i < rows; ++i) {
    float* out = to + i * columns;
    const float* in = from + i * ld;
#pragma omp simd
    for (std::int64_t j = 0; j < columns; ++j)
      out[j] = std::bit_cast<float>(std::uint32_t{rounded(in[j])} << 16);
  }
}

void multiply_in_bf16(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                      const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c,
                      std::int64_t ldc) {
  const std::int64_t rows = padded(m), inner = padded(k);
  const bool direct = rows == m;  // else the product goes to a buffer that has room for the padding
  const ProductShape shape{trans_a == Trans::yes, trans_b == Trans::yes, add && direct, rows, n, inner,
                           direct ? ldc : n};
  Workspace& space = workspace();
  float* out = direct ? c : space.product(rows * n);
  try {
    auto found = space.products.find(shape);
    if (found == space.products.end()) found = space.products.emplace(shape, compile(shape)).first;
    const Product& product = found->second;
    Bits* a_bits = space.operand(0, rows * inner);
    Bits* b_bits = space.operand(1, n * inner);
    if (shape.trans_a)
      convert(a_bits, inner, rows, a, k, m, lda);
    else
      convert(a_bits, rows, inner, a, m, k, lda);
    if (shape.trans_b)
      convert(b_bits, n, inner, b, n, k, ldb);
    else
      convert(b_bits, inner, n, b, k, n, ldb);
    product.primitive.execute(
        space.stream,
        {{DNNL_ARG_SRC, memory(product.a, engine(), a_bits)},
         {DNNL_ARG_WEIGHTS, memory(product.b, engine(), b_bits)},
         {DNNL_ARG_DST, memory(product.c, engine(), out)},
         {DNNL_ARG_SCRATCHPAD, memory(product.scratch, engine(), space.scratch(product.scratch))}});
    space.stream.wait();
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory) throw std::bad_alloc();
    SY_CHECK(false, "a bfloat16 product of {} x {} x {} failed: {}", m, n, k, error.what());
  }
  if (direct) return;
  for (std::int64_t i = 0; i < m; ++i) {
    float* to = c + i * ldc;
    const float* from = out + i * n;
    if (!add) {
      std::copy_n(from, n, to);
      continue;
    }
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) to[j] += from[j];
  }
}

// AMX, which multiplies some eight times as fast as vectors do.
bool has_tiles() {
  static const bool has = library_level() == VectorLevel::amx;
  return has;
}

// Products of our own; but where oneDNN has tiles, only small ones: its calls cost some microseconds each.
bool packs_bf16(std::int64_t products) {
  constexpr std::int64_t kSmall = std::int64_t{1} << 21;
  return kHasPacked && (!has_tiles() || products <= kSmall);
}

}  // namespace

VectorLevel library_level() {
  // Each set is a number of bits, which holds those of the sets before it, and numbers are in no order.
  const auto isa = static_cast<unsigned>(dnnl_get_effective_cpu_isa());
  const auto has = [&](dnnl_cpu_isa_t set) { return (isa & set) == static_cast<unsigned>(set); };
  if (has(dnnl_cpu_isa_avx512_core_amx)) return VectorLevel::amx;
  if (has(dnnl_cpu_isa_avx512_core_bf16)) return VectorLevel::avx512_bf16;
  if (has(dnnl_cpu_isa_avx512_core_vnni)) return VectorLevel::avx512_vnni;
  if (has(dnnl_cpu_isa_avx512_core)) return VectorLevel::avx512;
  return has(dnnl_cpu_isa_avx2) ? VectorLevel::avx2 : VectorLevel::none;
}

bool has_bf16_products() {
  static const bool has = [] {
    if (kHasPacked) return has_tiles() || packed_word(MatmulType::bf16) == PackedWord::pair;
    try {
      compile({.trans_a = false, .trans_b = true, .add = false, .m = 32, .n = 32, .k = 32, .ldc = 32});
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return has;
}

std::int64_t bf16_piece_rows() { return has_tiles() ? 512 : 256; }

void gemm_bf16_rounded(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                       const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c,
                       std::int64_t ldc) {
  const bool turn_a = trans_a == Trans::yes, turn_b = trans_b == Trans::yes;
  const std::int64_t a_rows = turn_a ? k : m, a_columns = turn_a ? m : k;
  const std::int64_t b_rows = turn_b ? n : k, b_columns = turn_b ? k : n;
  Workspace& space = workspace();
  float* const a_rounded = space.floats(0, m * k);
  float* const b_rounded = space.floats(1, n * k);
  round_to(a_rounded, a, a_rows, a_columns, lda);
  round_to(b_rounded, b, b_rows, b_columns, ldb);
  gemm<float>(trans_a, trans_b, m, n, k, 1.0f, a_rounded, a_columns, b_rounded, b_columns, add ? 1.0f : 0.0f, c,
              ldc);
}

void gemm_bf16(Trans trans_a, Trans trans_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
               std::int64_t lda, const float* b, std::int64_t ldb, bool add, float* c, std::int64_t ldc) {
  if (packs_bf16(m * n * k))
    return gemm_packed(packed_word(MatmulType::bf16), trans_a, trans_b, m, n, k, a, lda, b, ldb, add, c, ldc);
  const auto product = has_bf16_products() ? multiply_in_bf16 : gemm_bf16_rounded;
  product(trans_a, trans_b, m, n, k, a, lda, b, ldb, add, c, ldc);
}

}  // namespace switchyard::ops::cpu
