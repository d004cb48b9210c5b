#include "core/vector_level.h"

namespace switchyard {

const char* name_of(VectorLevel level) {
  switch (level) {
    case VectorLevel::none:
      return "no vectors of 256 bits";
    case VectorLevel::avx2:
      return "AVX2";
    case VectorLevel::avx512:
      return "AVX-512";
    case VectorLevel::avx512_vnni:
      return "AVX-512 with VNNI";
    case VectorLevel::avx512_bf16:
      return "AVX-512 with bfloat16";
    case VectorLevel::amx:
      return "AMX";
  }
  return "";
}

}  // namespace switchyard
