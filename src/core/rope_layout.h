// Which elements of a head the rotary embedding pairs, shared by the operator's contract and its backends.
#pragma once

#include <cstdint>

namespace switchyard {

enum class RopePairs : std::uint8_t { halves, neighbours };

struct RopeLayout {
  std::int64_t head_dim;
  RopePairs pairs = RopePairs::halves;
};

}  // namespace switchyard
