// The rate of plain matrix products on this machine: what scripts/bench_cpu.sh holds training against. Prints
// one JSON line, the best GFLOP/s over the shapes below, in float32 (ops/cpu/gemm.h) and in bfloat16 with
// float32 sums (oneDNN).

#include <omp.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include "core/rng.h"
#include "ops/cpu/gemm.h"

namespace {

struct GemmShape {
  std::int64_t m, n, k;
  double flop() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
};

// The output layer of configs/bench_cpu_86m.json, and a square one for which the format of the data matters
// least.
constexpr GemmShape kShapes[] = {{1024, 32000, 512}, {2048, 2048, 2048}};
constexpr double kSeconds = 1.5;  // a shape and type, after one call that is not counted

std::vector<float> random_matrix(std::int64_t size, std::uint64_t stream) {
  const switchyard::Rng rng(1, switchyard::RngPurpose::init, stream);
  std::vector<float> values(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(rng.uniform(i) - 0.5);
  return values;
}

// GFLOP/s of the fastest call: what the machine can do when nothing disturbs it.
double best_rate(double flop, const std::function<void()>& call) {
  call();
  double best = 1e30;
  for (const double begin = omp_get_wtime(); omp_get_wtime() - begin < kSeconds;) {
    const double start = omp_get_wtime();
    call();
    best = std::min(best, omp_get_wtime() - start);
  }
  return flop / best / 1e9;
}

double f32_rate(const GemmShape& shape) {
  const std::vector<float> a = random_matrix(shape.m * shape.k, 1), b = random_matrix(shape.n * shape.k, 2);
  std::vector<float> c(static_cast<std::size_t>(shape.m * shape.n));
  return best_rate(shape.flop(), [&] {
    using switchyard::ops::cpu::Trans;
    switchyard::ops::cpu::gemm<float>(Trans::no, Trans::yes, shape.m, shape.n, shape.k, 1.0F, a.data(), shape.k,
                                      b.data(), shape.k, 0.0F, c.data(), shape.n);
  });
}

double bf16_rate(const GemmShape& shape) {
  using dnnl::memory;
  using Type = memory::data_type;
  using Tag = memory::format_tag;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc a_desc({shape.m, shape.k}, Type::bf16, Tag::ab),
      b_desc({shape.k, shape.n}, Type::bf16, Tag::ba);
  const memory::desc c_desc({shape.m, shape.n}, Type::f32, Tag::ab);
  const memory::desc a_plain({shape.m, shape.k}, Type::f32, Tag::ab),
      b_plain({shape.k, shape.n}, Type::f32, Tag::ba);
  std::vector<float> a_f32 = random_matrix(shape.m * shape.k, 1), b_f32 = random_matrix(shape.n * shape.k, 2);
  memory a(a_desc, engine), b(b_desc, engine), c(c_desc, engine);
  memory a_in(a_plain, engine, a_f32.data()), b_in(b_plain, engine, b_f32.data());
  dnnl::reorder(a_in, a).execute(stream, a_in, a);
  dnnl::reorder(b_in, b).execute(stream, b_in, b);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul product(dnnl::matmul::primitive_desc(engine, a_desc, b_desc, c_desc));
#else
  const dnnl::matmul product(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a_desc, b_desc, c_desc), engine));
#endif
  return best_rate(shape.flop(), [&] {
    product.execute(stream, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
    stream.wait();
  });
}

}  // namespace

int main() {
  double f32 = 0, bf16 = 0;
  for (const GemmShape& shape : kShapes) {
    f32 = std::max(f32, f32_rate(shape));
    bf16 = std::max(bf16, bf16_rate(shape));
  }
  std::printf("{\"gemm_f32_gflops\": %.1f, \"gemm_bf16_gflops\": %.1f}\n", f32, bf16);
}
