// A limit shared by the configuration, which refuses more, and the router's kernels, which keep one sum a
// group.
#pragma once

#include <cstdint>

namespace switchyard {

constexpr std::int64_t kMaxExpertGroups = 256;

}  // namespace switchyard
