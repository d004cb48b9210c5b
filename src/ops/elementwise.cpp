#include "ops/elementwise.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/device_memory.h"
#include "ops/cpu/reduce.h"
#include "ops/cpu/vector_math.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

constexpr std::int64_t kBlock = 1 << 13;  // elements of one piece of work

// Covers [rows, row_size] with pieces f(row, first, count) of at most kBlock elements of one row, in parallel.
// The pieces do not depend on the number of threads. `flat`: all tensors are contiguous, so all rows are one.
template <class F>
void for_each_piece(const Tensor& tensor, bool flat, F&& f) {
  if (tensor.numel() == 0) return;
  const std::int64_t rows = flat ? 1 : tensor.rows(), width = tensor.numel() / rows;
  const std::int64_t pieces = (width + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (tensor.numel() >= kParallelElements)
  for (std::int64_t i = 0; i < rows * pieces; ++i) {
    const std::int64_t first = i % pieces * kBlock;
    f(i / pieces, first, std::min(kBlock, width - first));
  }
}

// Rows of a tensor whose dtype does not matter: what moves is bytes.
class ByteRows {
 public:
  explicit ByteRows(const Tensor& tensor)
      : data_(static_cast<std::byte*>(tensor.raw())),
        size_(size_of(tensor.dtype())),
        stride_(tensor.row_stride()) {}
  std::byte* at(std::int64_t row, std::int64_t column) const {
    return data_ + (row * stride_ + column) * size_;
  }
  std::size_t bytes(std::int64_t count) const { return static_cast<std::size_t>(count * size_); }

 private:
  std::byte* data_;
  std::int64_t size_;
  std::int64_t stride_;
};

// Above this no cache holds the zeros until they are read, and what they replace need not be fetched first.
constexpr std::int64_t kStreamedBytes = std::int64_t{64} << 20;

void stream_zeros(std::byte* to, std::size_t bytes) {
#ifdef __SSE2__
  constexpr std::size_t kVector = sizeof(__m128i);
  const std::size_t head = std::min(bytes, -reinterpret_cast<std::uintptr_t>(to) % kVector);
  std::memset(to, 0, head);
  const std::size_t vectors = (bytes - head) / kVector;
  auto* const at = reinterpret_cast<__m128i*>(to + head);
  for (std::size_t i = 0; i < vectors; ++i) _mm_stream_si128(at + i, _mm_setzero_si128());
  _mm_sfence();  // later stores of this thread are seen after these
  std::memset(at + vectors, 0, bytes - head - vectors * kVector);
#else
  std::memset(to, 0, bytes);
#endif
}

void fill_zero_on_cpu(Tensor out) {
  const ByteRows rows(out);
  const bool streams = out.numel() * size_of(out.dtype()) >= kStreamedBytes;
  for_each_piece(out, out.contiguous(), [=](std::int64_t row, std::int64_t first, std::int64_t count) {
    if (streams)
      stream_zeros(rows.at(row, first), rows.bytes(count));
    else
      std::memset(rows.at(row, first), 0, rows.bytes(count));
  });
}

void copy_on_cpu(Tensor out, Tensor in) {
  SY_CHECK(out.dtype() == in.dtype(), "out is {}, in is {}", name_of(out.dtype()), name_of(in.dtype()));
  const ByteRows to(out), from(in);
  for_each_piece(out, out.contiguous() && in.contiguous(),
                 [=](std::int64_t row, std::int64_t first, std::int64_t count) {
                   std::memcpy(to.at(row, first), from.at(row, first), to.bytes(count));
                 });
}

template <class T>
void add_on_cpu(Tensor out, Tensor a, Tensor b) {
  const Rows<T> sum_rows(out), a_rows(a), b_rows(b);
  for_each_piece(out, out.contiguous() && a.contiguous() && b.contiguous(),
                 [=](std::int64_t row, std::int64_t first, std::int64_t count) {
                   T* sum = sum_rows[row] + first;
                   const T* x = a_rows[row] + first;
                   const T* y = b_rows[row] + first;
#pragma omp simd
                   for (std::int64_t i = 0; i < count; ++i) sum[i] = x[i] + y[i];
                 });
}

// Of a piece of all leaves at once, so that what is on the stack stays in a near cache.
template <class T>
void sum_by_halves_on_cpu(Tensor out, Tensor addend, std::span<const Tensor> leaf_N) {
  constexpr std::int64_t kPiece = 1024;
  const auto sums_after = sums_after_leaves(static_cast<int>(leaf_N.size()));
  T* const to = out.as<T>();
  const T* const plus = addend.defined() ? addend.as<T>() : nullptr;
  const std::int64_t n = out.numel(), pieces = (n + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const std::int64_t first = piece * kPiece, count = std::min(kPiece, n - first);
    T stack[kStackOfLeaves][kPiece];
    int top = 0;
    const auto add = [count](T* sum, const T* x, const T* y) {
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) sum[i] = x[i] + y[i];
    };
    for (std::size_t leaf = 0; leaf < leaf_N.size(); ++leaf) {
      const T* const from = leaf_N[leaf].as<T>() + first;
      if (sums_after[leaf] == 0) {
        std::copy_n(from, count, stack[top++]);
        continue;
      }
      add(stack[top - 1], stack[top - 1], from);
      for (int sum = 1; sum < sums_after[leaf]; ++sum, --top)
        add(stack[top - 2], stack[top - 2], stack[top - 1]);
    }
    if (plus != nullptr)
      add(to + first, plus + first, stack[0]);
    else
      std::copy_n(stack[0], count, to + first);
  }
}

void accumulate_on_cpu(Tensor sum_N, Tensor value_N, double factor) {
  double* sum = sum_N.as<double>();
  const double* value = value_N.as<double>();
  for_each_piece(sum_N, true, [=](std::int64_t, std::int64_t first, std::int64_t count) {
#pragma omp simd
    for (std::int64_t i = first; i < first + count; ++i) sum[i] += factor * value[i];
  });
}

template <class T>
void sum_of_squares_on_cpu(Tensor sum_1, Tensor in, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const std::int64_t blocks = (in.numel() + kBlock - 1) / kBlock;
  double* partial = ctx.scratch.take({blocks}, DType::f64).as<double>();
  const T* data = in.as<T>();
  for_each_piece(in, true, [=](std::int64_t, std::int64_t first, std::int64_t count) {
    const T* block = data + first;
    partial[first / kBlock] = sum_in_lanes(count, [block](std::int64_t i) {
      const auto x = static_cast<double>(block[i]);
      return x * x;
    });
  });
  double sum = 0;
  for (std::int64_t block = 0; block < blocks; ++block) sum += partial[block];
  *sum_1.as<double>() = sum;
}

template <class T>
void squares_of_blocks_on_cpu(Tensor square_B, Tensor in_P, Tensor block_B3) {
  const T* in = in_P.as<T>();
  double* square = square_B.as<double>();
  const std::int32_t* blocks = block_B3.as<std::int32_t>();
#pragma omp parallel for schedule(static) if (in_P.numel() >= kParallelElements)
  for (std::int64_t b = 0; b < square_B.numel(); ++b) {
    const std::int32_t* const block = blocks + 3 * b;
    const T* const first = in + (std::int64_t{block[0]} << 20) + block[1];
    square[b] = sum_in_lanes(block[2], [first](std::int64_t i) {
      const auto x = static_cast<double>(first[i]);
      return x * x;
    });
  }
}

void sum_at_on_cpu(Tensor sum_1, Tensor value_V, Tensor index_M) {
  const double* value = value_V.as<double>();
  const std::int32_t* index = index_M.as<std::int32_t>();
  double sum = 0;
  for (std::int64_t m = 0; m < index_M.numel(); ++m) sum += value[index[m]];
  *sum_1.as<double>() = sum;
}

}  // namespace

void fill_zero(Tensor out, Context& ctx) {
  Signature args(ctx);
  args.like(out, SY_ARG(out));
  run<&cuda::fill_zero>(ctx, fill_zero_on_cpu, out);
}

void copy(Tensor out, Tensor in, Context& ctx) {
  Signature args(ctx);
  args.like(in, SY_ARG(in))(SY_ARG(out), in.shape(), out.dtype());
  run<&cuda::copy>(ctx, copy_on_cpu, out, in);
}

void add(Tensor out, Tensor a, Tensor b, Context& ctx) {
  Signature args(ctx);
  args.like(a, SY_ARG(a)).like(a, SY_ARG(out))(SY_ARG(b), a.shape(), b.dtype());
  run<&cuda::add>(ctx, out.dtype(), SY_CPU(add_on_cpu), out, a, b);
}

void sum_by_halves(Tensor out, Tensor addend, std::span<const Tensor> leaf_N, Context& ctx) {
  SY_CHECK(!leaf_N.empty() && leaf_N.size() <= kMostLeaves, "a sum of {} leaves", leaf_N.size());
  Signature args(ctx);
  args.like(out, SY_ARG(out), kContiguous).like(out, SY_ARG(addend), kContiguous | kOptional);
  for (const Tensor& leaf : leaf_N) args.like(out, SY_ARG(leaf), kContiguous);
  run<&cuda::sum_by_halves>(ctx, out.dtype(), SY_CPU(sum_by_halves_on_cpu), out, addend, leaf_N);
}

void accumulate(Tensor sum_N, Tensor value_N, double factor, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(sum_N), DType::f64, kContiguous)(SY_ARG(value_N), DType::f64, kContiguous);
  run<&cuda::accumulate>(ctx, accumulate_on_cpu, sum_N, value_N, factor);
}

void sum_of_squares(Tensor sum_1, Tensor in, Context& ctx) {
  Signature args(ctx);
  args.like(in, SY_ARG(in), kContiguous)(SY_ARG(sum_1), DType::f64);
  run<&cuda::sum_of_squares>(ctx, in.dtype(), SY_CPU(sum_of_squares_on_cpu), sum_1, in);
}

void squares_of_blocks(Tensor square_B, Tensor in_P, Tensor block_B3, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(square_B), DType::f64, kContiguous)(SY_ARG(block_B3), DType::i32, kContiguous);
  args.like(in_P, SY_ARG(in_P), kContiguous);
  run<&cuda::squares_of_blocks>(ctx, in_P.dtype(), SY_CPU(squares_of_blocks_on_cpu), square_B, in_P, block_B3);
}

void sum_at(Tensor sum_1, Tensor value_V, Tensor index_M, Context& ctx) {
  Signature args(ctx);
  args(SY_ARG(sum_1), DType::f64)(SY_ARG(value_V), DType::f64, kContiguous)(SY_ARG(index_M), DType::i32,
                                                                            kContiguous);
  run<&cuda::sum_at>(ctx, sum_at_on_cpu, sum_1, value_V, index_M);
}

double sum_of_squares(Tensor in, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  const Tensor sum_1 = ctx.scratch.take(Shape{1}, DType::f64);
  sum_of_squares(sum_1, in, ctx);
  return HostCopy(sum_1)->as<double>()[0];
}

namespace {

using namespace cpu;

template <class T>
void bias_forward_on_cpu(Tensor out_TN, Tensor bias_N) {
  const Rows<T> out_rows(out_TN);
  const T* bias = bias_N.as<T>();
  const std::int64_t N = bias_N.dim(0);
#pragma omp parallel for schedule(static) if (out_TN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < out_TN.rows(); ++t) {
    T* out = out_rows[t];
#pragma omp simd
    for (std::int64_t n = 0; n < N; ++n) out[n] += bias[n];
  }
}

template <class T>
void bias_backward_on_cpu(Tensor dbias_N, Tensor dout_TN, Context& ctx) {
  const Rows<T> dout_rows(dout_TN);
  const std::int64_t n_rows = dout_TN.rows(), N = dbias_N.dim(0);
  ScratchScope scope(ctx.scratch);
  const RowBlocks blocks(n_rows);
  const Rows<T> partial_rows(ctx.scratch.take({blocks.count, N}, DTypeOf<T>::value));
#pragma omp parallel for schedule(static) if (dout_TN.numel() >= kParallelElements)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    T* partial = partial_rows[block];
    std::fill_n(partial, N, T(0));
    const std::int64_t last = std::min((block + 1) * blocks.rows, n_rows);
    for (std::int64_t t = block * blocks.rows; t < last; ++t) {
#pragma omp simd
      for (std::int64_t n = 0; n < N; ++n) partial[n] += dout_rows[t][n];
    }
  }
  add_block_sums(dbias_N.as<T>(), partial_rows, blocks, 0, N, false);
}

}  // namespace

void bias_forward(Tensor out_TN, Tensor bias_N, Context& ctx) {
  const DType real = out_TN.dtype();
  Signature args(ctx);
  args(SY_ARG(out_TN), real)(SY_ARG(bias_N), real);
  run<&cuda::bias_forward>(ctx, real, SY_CPU(bias_forward_on_cpu), out_TN, bias_N);
}

void bias_backward(Tensor dbias_N, Tensor dout_TN, Context& ctx) {
  const DType real = dout_TN.dtype();
  Signature args(ctx);
  args(SY_ARG(dout_TN), real)(SY_ARG(dbias_N), accumulation_dtype(real));
  run<&cuda::bias_backward>(ctx, real, SY_CPU(bias_backward_on_cpu), dbias_N, dout_TN);
}

namespace {

using namespace cpu;

// stream.normal(index) but for rounding. A function of its own, so that each lane of the loop has words of its
// own.
double normal_at(const Rng& stream, std::uint64_t index) {
  const auto words = stream.block(index);
  return normal_of(words[0], words[1]);
}

template <class T>
void add_normal_on_cpu(Tensor x_TN, const Rng& rng, const NoiseOffset& offset, double sigma) {
  const Rows<T> x(x_TN);
  const std::int64_t N = x_TN.dim(1);
  const auto* at = offset.rng_offset_2.as<std::int32_t>();
  const Rng stream = rng.with_stream(noise_stream(at[0], offset.layer));
  const std::int64_t first_row = first_noise_row(at[1], offset.seq_len);
#pragma omp parallel for schedule(static) if (x_TN.numel() >= kParallelElements)
  for (std::int64_t t = 0; t < x_TN.rows(); ++t) {
    T* row = x[t];
    const auto first = static_cast<std::uint64_t>((first_row + t) * N);
#pragma omp simd
    for (std::int64_t n = 0; n < N; ++n)
      row[n] += static_cast<T>(sigma * normal_at(stream, first + static_cast<std::uint64_t>(n)));
  }
}

}  // namespace

void add_normal(Tensor x_TN, const Rng& rng, const NoiseOffset& offset, double sigma, Context& ctx) {
  const DType real = x_TN.dtype();
  Signature args(ctx);
  args(SY_ARG(x_TN), real)("rng_offset_2", offset.rng_offset_2, DType::i32);
  run<&cuda::add_normal>(ctx, real, SY_CPU(add_normal_on_cpu), x_TN, rng, offset, sigma);
}

}  // namespace switchyard::ops
