// The instruction sets that decide how fast products are on a processor.
#pragma once

namespace switchyard {

// Each with all before it.
enum class VectorLevel { none, avx2, avx512, avx512_vnni, avx512_bf16, amx };
const char* name_of(VectorLevel level);  // "AVX-512 with bfloat16"

}  // namespace switchyard
