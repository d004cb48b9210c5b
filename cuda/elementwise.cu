#include "ops/elementwise.h"

#include <algorithm>
#include <numbers>

#include "for_each_pack.h"
#include "partials.h"
#include "reduce.h"

namespace switchyard::ops::cuda {

// What moves bytes alone takes an unsigned integer of the element's size for it. Contiguous tensors are one
// row, so that an odd width costs no packs; copying and zeroing them is the runtime's own. fill_zero and copy
// take any dtype, accumulate f64, the others f32 or bf16.

namespace {

template <class Bytes, int kSize>
struct Zero {
  Rows<Bytes> out;

  __device__ void operator()(std::int64_t row, std::int64_t column) const {
    store<kSize>(out[row] + column, Elements<Bytes, kSize>{});
  }
};

template <class Bytes, int kSize>
struct Copy {
  Rows<Bytes> out;
  Rows<const Bytes> in;

  __device__ void operator()(std::int64_t row, std::int64_t column) const {
    store<kSize>(out[row] + column, load<kSize>(in[row] + column));
  }
};

template <class To, class From, int kSize>
struct Convert {
  Rows<To> out;
  Rows<const From> in;

  __device__ void operator()(std::int64_t row, std::int64_t column) const {
    const auto x = load<kSize>(in[row] + column);
    Elements<To, kSize> y;
    for (int i = 0; i < kSize; ++i) y.element[i] = from_float<To>(to_float(x.element[i]));
    store<kSize>(out[row] + column, y);
  }
};

template <class T, class B, int kSize>
struct Add {
  Rows<T> out;  // may be a or b
  Rows<const T> a;
  Rows<const B> b;

  __device__ void operator()(std::int64_t row, std::int64_t column) const {
    const auto x = load<kSize>(a[row] + column);
    const auto y = load<kSize>(b[row] + column);
    Elements<T, kSize> sum;
    for (int i = 0; i < kSize; ++i)
      sum.element[i] = from_float<T>(to_float(x.element[i]) + to_float(y.element[i]));
    store<kSize>(out[row] + column, sum);
  }
};

// f64 is added as it is, the others in float.
template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
__device__ __forceinline__ SumOf<T> widen(T x) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return x;
  } else {
    return to_float(x);
  }
}
template <class T>
__device__ __forceinline__ T narrow(SumOf<T> x) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return x;
  } else {
    return from_float<T>(x);
  }
}

// Of two leaves, the usual number of small groups: nothing but registers.
template <class T, int kSize>
struct SumOfTwo {
  T* out;
  const T *addend, *first, *second;  // addend may be null

  __device__ void operator()(std::int64_t, std::int64_t column) const {
    const auto x = load<kSize>(first + column), y = load<kSize>(second + column);
    Elements<T, kSize> z{}, sum;
    if (addend != nullptr) z = load<kSize>(addend + column);
    for (int i = 0; i < kSize; ++i) {
      SumOf<T> of_both = widen(x.element[i]) + widen(y.element[i]);
      if (addend != nullptr) of_both = widen(z.element[i]) + of_both;
      sum.element[i] = narrow<T>(of_both);
    }
    store<kSize>(out + column, sum);
  }
};

template <class T, int kSize>
struct SumByHalves {
  T* out;
  const T* addend;  // may be null
  int n;
  const T* leaf[kMostLeaves];
  std::uint8_t sums_after[kMostLeaves];

  __device__ void operator()(std::int64_t, std::int64_t column) const {
    SumOf<T> stack[kStackOfLeaves + 1][kSize];
    int top = 0;
    for (int l = 0; l < n; ++l) {
      const auto x = load<kSize>(leaf[l] + column);
      for (int i = 0; i < kSize; ++i) stack[top][i] = widen(x.element[i]);
      ++top;
      for (int s = 0; s < sums_after[l]; ++s, --top)
        for (int i = 0; i < kSize; ++i) stack[top - 2][i] += stack[top - 1][i];
    }
    Elements<T, kSize> z{}, sum;
    if (addend != nullptr) z = load<kSize>(addend + column);
    for (int i = 0; i < kSize; ++i)
      sum.element[i] = narrow<T>(addend != nullptr ? widen(z.element[i]) + stack[0][i] : stack[0][i]);
    store<kSize>(out + column, sum);
  }
};

struct Accumulate {
  double* sum_N;
  const double* value_N;
  double factor;

  __device__ void operator()(std::int64_t, std::int64_t n) const { sum_N[n] += factor * value_N[n]; }
};

constexpr int kSquaresThreads = 512;
constexpr std::int64_t kSquaresBlocks = 528;  // fill a large device; a fixed number, so that the order is fixed

// partial_B[block] = sum of the squares of every gridDim.x-th piece of kSquaresThreads packs; the elements
// after the last whole pack go to the first threads of the first block.
template <class T, int kSize>
__global__ void __launch_bounds__(kSquaresThreads)
    squares_kernel(double* partial_B, const T* in, std::int64_t n_packs, int n_rest) {
  double sum = 0;
  const auto add = [&](T value) {
    const double x = to_float(value);
    sum += x * x;
  };
  const std::int64_t stride = std::int64_t{gridDim.x} * kSquaresThreads;
  for (std::int64_t pack = std::int64_t{blockIdx.x} * kSquaresThreads + threadIdx.x; pack < n_packs;
       pack += stride) {
    const auto x = load<kSize>(in + pack * kSize);
    for (int i = 0; i < kSize; ++i) add(x.element[i]);
  }
  if (blockIdx.x == 0 && static_cast<int>(threadIdx.x) < n_rest) add(in[n_packs * kSize + threadIdx.x]);
  sum = reduce_block<Sum, kSquaresThreads>(sum);
  if (threadIdx.x == 0) partial_B[blockIdx.x] = sum;
}

// sum_1[0] = the sum of partial_B. One block.
__global__ void __launch_bounds__(kSquaresThreads)
    add_partials_kernel(double* sum_1, const double* partial_B, int n_blocks) {
  double sum = 0;
  for (int b = static_cast<int>(threadIdx.x); b < n_blocks; b += kSquaresThreads) sum += partial_B[b];
  sum = reduce_block<Sum, kSquaresThreads>(sum);
  if (threadIdx.x == 0) sum_1[0] = sum;
}

// square_B[blockIdx.x]: blocks begin anywhere, so that elements are read one by one.
template <class T>
__global__ void __launch_bounds__(kSquaresThreads)
    squares_of_blocks_kernel(double* square_B, const T* in_P, const std::int32_t* block_B3) {
  const std::int32_t* const block = block_B3 + 3 * std::int64_t{blockIdx.x};
  const T* const first = in_P + (std::int64_t{block[0]} << 20) + block[1];
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < block[2]; i += kSquaresThreads) {
    const double x = static_cast<double>(to_float(first[i]));
    sum += x * x;
  }
  sum = reduce_block<Sum, kSquaresThreads>(sum);
  if (threadIdx.x == 0) square_B[blockIdx.x] = sum;
}

// One block.
__global__ void __launch_bounds__(kSquaresThreads)
    sum_at_kernel(double* sum_1, const double* value_V, const std::int32_t* index_M, int n) {
  double sum = 0;
  for (int m = static_cast<int>(threadIdx.x); m < n; m += kSquaresThreads) sum += value_V[index_M[m]];
  sum = reduce_block<Sum, kSquaresThreads>(sum);
  if (threadIdx.x == 0) sum_1[0] = sum;
}

// Calls f.operator()<an unsigned integer as large as an element>().
template <class F>
void with_bytes(DType dtype, F&& f) {
  switch (size_of(dtype)) {
    case 2:
      return f.template operator()<std::uint16_t>();
    case 4:
      return f.template operator()<std::uint32_t>();
    case 8:
      return f.template operator()<std::uint64_t>();
  }
  SY_CHECK(false, "elements of {} bytes", size_of(dtype));
}
template <class Bytes>
Rows<Bytes> bytes_of(const Tensor& tensor) {
  return {static_cast<Bytes*>(tensor.raw()), tensor.row_stride()};
}

Tensor one_row(const Tensor& tensor) { return tensor.reshape(Shape{1, tensor.numel()}); }

}  // namespace

void fill_zero(Tensor out, Context& ctx) {
  if (out.contiguous()) {
    SY_CUDA(cudaMemsetAsync(out.raw(), 0, static_cast<std::size_t>(out.nbytes()), stream_of(ctx)));
    return;
  }
  with_bytes(out.dtype(), [&]<class Bytes>() {
    with_pack<Bytes>(rows_are_packs<Bytes>(out), [&]<int kSize>() {
      for_each_pack<kSize>("fill_zero", out.rows(), out.row_size(), ctx,
                           Zero<Bytes, kSize>{bytes_of<Bytes>(out)});
    });
  });
}

namespace {

// Of tensors that are f32 and bf16: as many elements as 16 bytes of the wider one hold.
template <class F>
void with_pack_of_both(const Tensor& f32, const Tensor& bf16_, F&& f) {
  with_pack<float>(rows_are_packs<float>(f32) && rows_are_packs<bf16>(bf16_), std::forward<F>(f));
}

template <class To, class From>
void convert(Tensor out, Tensor in, Context& ctx) {
  if (out.contiguous() && in.contiguous()) out = one_row(out), in = one_row(in);
  with_pack_of_both(out.dtype() == DType::f32 ? out : in, out.dtype() == DType::f32 ? in : out,
                    [&]<int kSize>() {
                      for_each_pack<kSize>("copy", out.rows(), out.row_size(), ctx,
                                           Convert<To, From, kSize>{rows_of<To>(out), rows_of<const From>(in)});
                    });
}

}  // namespace

void copy(Tensor out, Tensor in, Context& ctx) {
  if (out.dtype() != in.dtype())
    return out.dtype() == DType::f32 ? convert<float, bf16>(out, in, ctx) : convert<bf16, float>(out, in, ctx);
  if (out.contiguous() && in.contiguous()) {
    SY_CUDA(cudaMemcpyAsync(out.raw(), in.raw(), static_cast<std::size_t>(out.nbytes()),
                            cudaMemcpyDeviceToDevice, stream_of(ctx)));
    return;
  }
  with_bytes(out.dtype(), [&]<class Bytes>() {
    with_pack<Bytes>(rows_are_packs<Bytes>(out) && rows_are_packs<Bytes>(in), [&]<int kSize>() {
      for_each_pack<kSize>("copy", out.rows(), out.row_size(), ctx,
                           Copy<Bytes, kSize>{bytes_of<Bytes>(out), bytes_of<const Bytes>(in)});
    });
  });
}

void add(Tensor out, Tensor a, Tensor b, Context& ctx) {
  if (out.contiguous() && a.contiguous() && b.contiguous()) out = one_row(out), a = one_row(a), b = one_row(b);
  if (b.dtype() != a.dtype()) {
    with_pack_of_both(b, rows_are_packs<bf16>(out) ? a : out, [&]<int kSize>() {
      for_each_pack<kSize>(
          "add", out.rows(), out.row_size(), ctx,
          Add<bf16, float, kSize>{rows_of<bf16>(out), rows_of<const bf16>(a), rows_of<const float>(b)});
    });
    return;
  }
  with_element(out.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(out) && rows_are_packs<T>(a) && rows_are_packs<T>(b), [&]<int kSize>() {
      for_each_pack<kSize>("add", out.rows(), out.row_size(), ctx,
                           Add<T, T, kSize>{rows_of<T>(out), rows_of<const T>(a), rows_of<const T>(b)});
    });
  });
}

namespace {

template <class T, int kSize>
void sum_by_halves_of(const Tensor& out, const Tensor& addend, std::span<const Tensor> leaf_N, Context& ctx) {
  T* const to = out.as<T>();
  const T* const plus = addend.defined() ? addend.as<T>() : nullptr;
  const auto each = [&](const auto& f) { for_each_pack<kSize>("sum_by_halves", 1, out.numel(), ctx, f); };
  if (leaf_N.size() == 2) return each(SumOfTwo<T, kSize>{to, plus, leaf_N[0].as<T>(), leaf_N[1].as<T>()});
  const int n = static_cast<int>(leaf_N.size());
  SumByHalves<T, kSize> f{to, plus, n, {}, {}};
  const auto sums_after = sums_after_leaves(n);
  for (int l = 0; l < n; ++l) {
    f.leaf[l] = leaf_N[static_cast<std::size_t>(l)].as<T>();
    f.sums_after[l] = sums_after[static_cast<std::size_t>(l)];
  }
  each(f);
}

}  // namespace

void sum_by_halves(Tensor out, Tensor addend, std::span<const Tensor> leaf_N, Context& ctx) {
  const auto start = [&]<class T>() {
    const auto is_packs = [&](const Tensor& x) {
      return reinterpret_cast<std::uintptr_t>(x.raw()) % 16 == 0 && x.numel() % kPack<T> == 0;
    };
    bool packs = is_packs(out) && (!addend.defined() || is_packs(addend));
    for (const Tensor& leaf : leaf_N) packs = packs && is_packs(leaf);
    with_pack<T>(packs, [&]<int kSize>() { sum_by_halves_of<T, kSize>(out, addend, leaf_N, ctx); });
  };
  if (out.dtype() == DType::f64) return start.template operator()<double>();
  with_element(out.dtype(), start);
}

void accumulate(Tensor sum_N, Tensor value_N, double factor, Context& ctx) {
  for_each_pack<1>("accumulate", 1, sum_N.numel(), ctx,
                   Accumulate{sum_N.as<double>(), value_N.as<double>(), factor});
}

void sum_of_squares(Tensor sum_1, Tensor in, Context& ctx) {
  ScratchScope scope(ctx.scratch);
  with_element(in.dtype(), [&]<class T>() {
    with_pack<T>(reinterpret_cast<std::uintptr_t>(in.raw()) % 16 == 0, [&]<int kSize>() {
      const std::int64_t n_packs = in.numel() / kSize;
      const std::int64_t n_blocks =
          std::clamp<std::int64_t>(ceil_div(n_packs, kSquaresThreads), 1, kSquaresBlocks);
      double* const partial_B = ctx.scratch.take({n_blocks}, DType::f64).as<double>();
      launch("sum_of_squares", squares_kernel<T, kSize>, {blocks(n_blocks), kSquaresThreads}, ctx, partial_B,
             in.as<T>(), n_packs, in.numel() % kSize);
      launch("sum_of_squares: blocks", add_partials_kernel, {1, kSquaresThreads}, ctx, sum_1.as<double>(),
             partial_B, n_blocks);
    });
  });
}

void squares_of_blocks(Tensor square_B, Tensor in_P, Tensor block_B3, Context& ctx) {
  with_element(in_P.dtype(), [&]<class T>() {
    launch("squares_of_blocks", squares_of_blocks_kernel<T>, {blocks(square_B.numel()), kSquaresThreads}, ctx,
           square_B.as<double>(), in_P.as<T>(), block_B3.as<std::int32_t>());
  });
}

void sum_at(Tensor sum_1, Tensor value_V, Tensor index_M, Context& ctx) {
  launch("sum_at", sum_at_kernel, {1, kSquaresThreads}, ctx, sum_1.as<double>(), value_V.as<double>(),
         index_M.as<std::int32_t>(), index_M.numel());
}

// The gradient is a sum over rows in two steps: a block takes some rows and as many columns as a warp reads at
// once, each of its warps every eighth row, so that narrow outputs fill the device, too. out_TN and bias_N, or
// dout_TN, f32 or bf16; dbias_N is f32 always.

namespace {

template <class T, int kSize>
struct Forward {
  Rows<T> out_TN;
  const T* bias_N;

  __device__ void operator()(std::int64_t t, std::int64_t n) const {
    auto out = load<kSize>(out_TN[t] + n);
    const auto bias = load<kSize>(bias_N + n);
    for (int i = 0; i < kSize; ++i)
      out.element[i] = from_float<T>(to_float(out.element[i]) + to_float(bias.element[i]));
    store<kSize>(out_TN[t] + n, out);
  }
};

constexpr int kBiasWarps = 8, kBiasThreads = kBiasWarps * kWarp;

template <int kColumns>
struct WarpSums {
  float of[kBiasWarps][kColumns];
};

// partial_BN[blockIdx.y], columns from blockIdx.x * kWarp * kSize on: the sum of the block's rows. Each warp
// adds its rows in ascending order, then the warps are added.
template <class T, int kSize>
__global__ void __launch_bounds__(kBiasThreads)
    bias_backward_kernel(Rows<float> partial_BN, Rows<const T> dout_TN, std::int64_t n_rows,
                         std::int64_t rows_a_block, int width) {
  constexpr int kColumns = kWarp * kSize;
  auto& sums = static_shared<WarpSums<kColumns>>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_column = static_cast<int>(blockIdx.x) * kColumns, n = first_column + lane * kSize;
  const std::int64_t first = std::int64_t{blockIdx.y} * rows_a_block;
  const std::int64_t last = first + rows_a_block < n_rows ? first + rows_a_block : n_rows;
  float sum[kSize] = {};
  if (n < width) {
    SY_UNROLL_BY(4)
    for (std::int64_t t = first + warp; t < last; t += kBiasWarps) {
      const auto dout = load<kSize>(dout_TN[t] + n);
      for (int i = 0; i < kSize; ++i) sum[i] += to_float(dout.element[i]);
    }
  }
  for (int i = 0; i < kSize; ++i) sums.of[warp][lane * kSize + i] = sum[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kColumns && first_column + i < width; i += kBiasThreads) {
    float of_block = 0;
    for (int w = 0; w < kBiasWarps; ++w) of_block += sums.of[w][i];
    partial_BN[blockIdx.y][first_column + i] = of_block;
  }
}

}  // namespace

void bias_forward(Tensor out_TN, Tensor bias_N, Context& ctx) {
  with_element(out_TN.dtype(), [&]<class T>() {
    const bool packs = rows_are_packs<T>(out_TN) && rows_are_packs<T>(bias_N);
    with_pack<T>(packs, [&]<int kSize>() {
      for_each_pack<kSize>("bias_forward", out_TN.rows(), out_TN.dim(1), ctx,
                           Forward<T, kSize>{rows_of<T>(out_TN), bias_N.as<T>()});
    });
  });
}

void bias_backward(Tensor dbias_N, Tensor dout_TN, Context& ctx) {
  const std::int64_t n_rows = dout_TN.rows(), width = dout_TN.dim(1);
  ScratchScope scope(ctx.scratch);
  with_element(dout_TN.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(dout_TN), [&]<int kSize>() {
      constexpr std::int64_t kFewestRows = 8 * kBiasWarps;
      constexpr std::int64_t kBlocks = 528;  // four for each processor of a large device
      const std::int64_t column_blocks = ceil_div(width, kWarp * kSize);
      const RowRange range(n_rows, kFewestRows, std::max<std::int64_t>(kBlocks / column_blocks, 1));
      const Tensor partial_BN = ctx.scratch.take({range.blocks, width}, DType::f32);
      launch("bias_backward", bias_backward_kernel<T, kSize>,
             {{blocks(column_blocks), blocks_across(range.blocks)}, kBiasThreads}, ctx,
             rows_of<float>(partial_BN), rows_of<const T>(dout_TN), n_rows, range.rows, width);
      sum_partials<float, float>("bias_backward: blocks", dbias_N, partial_BN, Partials::add, ctx);
    });
  });
}

// The same Philox blocks as on the CPU, a thread an element, and the same formula in double: what the device's
// logarithm and cosine differ by, a unit or two in the last place, hardly ever survives the rounding to
// float32. In float32 the logarithm of a u close to one would be wrong in its third digit. x_TN is f32: noise
// is the router's.

namespace {

struct AddNormal {
  Rows<float> x_TN;
  Rng rng;
  const std::int32_t* rng_offset_2;
  std::int64_t layer, seq_len, width;
  double sigma;

  __device__ void operator()(std::int64_t t, std::int64_t n) const {
    const std::int64_t row = first_noise_row(rng_offset_2[1], seq_len) + t;
    const auto words = rng.with_stream(noise_stream(rng_offset_2[0], layer))
                           .block(static_cast<std::uint64_t>(row * width + n));
    const double u = (static_cast<double>(words[0]) + 0.5) * 0x1.0p-32;
    const double v = (static_cast<double>(words[1]) + 0.5) * 0x1.0p-32;
    const double normal = sqrt(-2.0 * log(u)) * cos(2.0 * std::numbers::pi * v);
    x_TN[t][n] += static_cast<float>(sigma * normal);
  }
};

}  // namespace

void add_normal(Tensor x_TN, const Rng& rng, const NoiseOffset& offset, double sigma, Context& ctx) {
  for_each_pack<1>("add_normal", x_TN.rows(), x_TN.dim(1), ctx,
                   AddNormal{rows_of<float>(x_TN), rng, offset.rng_offset_2.as<std::int32_t>(), offset.layer,
                             offset.seq_len, x_TN.dim(1), sigma});
}

}  // namespace switchyard::ops::cuda
