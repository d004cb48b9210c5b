// What is said of numbers that were measured several times.
#pragma once

#include <vector>

namespace switchyard {

struct Spread {
  double median = 0, low = 0, high = 0;
};
Spread spread_of(std::vector<double> values);  // at least one

// The value below which a share of them lies, in [0, 1]: 0.5 the median; between two of them on the line.
double quantile_of(std::vector<double> values, double share);  // at least one

}  // namespace switchyard
