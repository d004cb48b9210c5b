// The widths of one multi-head latent attention, shared by the operator's contract and its backends.
#pragma once

#include <cstdint>

namespace switchyard {

struct MlaWidths {
  std::int64_t heads;
  std::int64_t nope;  // of a key, without position
  std::int64_t rope;  // of a key, rotated; shared by all heads
  std::int64_t value;
};

}  // namespace switchyard
