// What a few seeds say about a difference.
#pragma once

#include <optional>
#include <vector>

namespace switchyard::sweep {

double mean_of(const std::vector<double>& values);  // at least one
// Of the mean: the standard deviation (n - 1) over sqrt(n). None of fewer than two values.
std::optional<double> standard_error(const std::vector<double>& values);

// The two-sided p-value of Student's t with so many degrees of freedom: how often chance alone gives a |t| as
// large. `freedom` at least 1.
double p_of_t(double t, double freedom);
// The t below which a share `p` of the distribution lies, 0 < p < 1.
double t_quantile(double p, double freedom);

// Paired differences, one a seed.
struct PairedTest {
  double mean = 0, std_error = 0, t = 0, p = 1;
};
// None of fewer than two. Where all differences are equal the error is 0 and p is 0 (or 1 where they are 0).
std::optional<PairedTest> paired_test(const std::vector<double>& differences);

// How many seeds a paired test at the level of 0.05, two-sided, needs to find a mean difference of `difference`
// in at least four of five repetitions, where differences are normal and spread by `deviation` (their standard
// deviation): the test's t is then Student's non-central one with n - 1 degrees of freedom and the shift
// sqrt(n) difference / deviation. At least 2. None above a million, or where the difference is 0.
std::optional<long> seeds_needed(double difference, double deviation);

}  // namespace switchyard::sweep
