// Ranges of values that a configuration may hold.
#pragma once

#include <cstdint>

namespace switchyard::config {

constexpr std::int64_t kMaxSize = 2147483647;  // of any one dimension or count: indices are int32 in places

struct Interval {
  double low;
  double high;
  bool low_open = false;
  bool high_open = false;
};

constexpr Interval kCoefficient{0, 1e6};  // of a loss term
constexpr Interval kShare{0, 1};

}  // namespace switchyard::config
