#include "ops/product_paths.h"

#include <fmt/format.h>
#include <oneapi/dnnl/dnnl.h>

#include "ops/cpu/gemm.h"

namespace switchyard::ops {

ProductPaths product_paths() {
  const dnnl_version_t& version = *dnnl_version();
  ProductPaths paths;
  paths.library = fmt::format("oneDNN {}.{}.{}", version.major, version.minor, version.patch);
  paths.library_level = cpu::library_level();
  paths.bf16_products = cpu::has_bf16_products();
#if defined(__AVX512BF16__)
  paths.compiled = VectorLevel::avx512_bf16;
#elif defined(__AVX512F__)
  paths.compiled = VectorLevel::avx512;
#elif defined(__AVX2__)
  paths.compiled = VectorLevel::avx2;
#endif
  return paths;
}

}  // namespace switchyard::ops
