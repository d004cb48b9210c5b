// Which instructions matrix products on this processor use.
#pragma once

#include <string>

#include "core/vector_level.h"

namespace switchyard::ops {

struct ProductPaths {
  std::string library;                            // "oneDNN 2.6.3"
  VectorLevel library_level = VectorLevel::none;  // that the library uses here
  VectorLevel compiled = VectorLevel::none;  // that this program was compiled for: avx2, avx512, avx512_bf16
  bool bf16_products = false;  // of bfloat16; false: rounded to bfloat16 and multiplied in float32
};
ProductPaths product_paths();

}  // namespace switchyard::ops
