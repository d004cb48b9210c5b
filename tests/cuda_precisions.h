// The precisions in which matrix products are tested on the device.
#pragma once

#include "core/context.h"

namespace switchyard::test {

// What is stored and in what precision it is multiplied.
struct Precision {
  const char* name;
  DType dtype;
  MatmulType matmul;
};
inline constexpr Precision kPrecisions[] = {{"f32", DType::f32, MatmulType::f32},
                                            {"f32_rounded", DType::f32, MatmulType::bf16},
                                            {"bf16", DType::bf16, MatmulType::bf16}};

}  // namespace switchyard::test
