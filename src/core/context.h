// What every operator needs beside its tensors: where it runs, in what precision its matrix products are, and
// scratch space. One a run; handed down by reference.
#pragma once

#include "core/arena.h"
#include "core/tensor.h"

namespace switchyard {

enum class MatmulType : std::uint8_t { f32, bf16 };  // bf16: operands rounded to bf16, sums in float32

struct Context {
  Device device = Device::cpu;
  MatmulType matmul = MatmulType::f32;
  Scratch scratch;
};

}  // namespace switchyard
