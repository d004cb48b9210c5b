// The bins of a gap g: kGapBins on each side of 0, with borders e_0 = 0 and e_i = 1e-6 * 1e8^((i-1)/511), i = 1
// to 512. On the right side bin i holds e_i <= g < e_(i+1), on the left one the same of -g, mirrored; what is
// farther than e_512 = 100 counts in the last bin of its side.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace switchyard {

constexpr std::int64_t kGapBins = 512;  // a side

inline const std::array<double, kGapBins + 1>& gap_borders() {
  static const std::array<double, kGapBins + 1> borders = [] {
    std::array<double, kGapBins + 1> e{};
    for (std::int64_t i = 1; i <= kGapBins; ++i)
      e[static_cast<std::size_t>(i)] =
          1e-6 * std::pow(1e8, static_cast<double>(i - 1) / static_cast<double>(kGapBins - 1));
    return e;
  }();
  return borders;
}

}  // namespace switchyard
