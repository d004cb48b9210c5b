#include "train/spike.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace switchyard::train {

namespace {

double deviation_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / n);
}

void push(std::vector<double>& values, double value, std::int64_t window) {
  values.push_back(value);
  const auto excess = static_cast<std::ptrdiff_t>(values.size()) - static_cast<std::ptrdiff_t>(window);
  if (excess > 0) values.erase(values.begin(), values.begin() + excess);
}

}  // namespace

std::string spike_reason(const config::Spike& options, const checkpoint::SpikeHistory& history, double loss,
                         double grad_norm) {
  if (!std::isfinite(loss)) return "the loss is not finite";
  if (!std::isfinite(grad_norm)) return "the gradient is not finite";
  const bool enough = history.losses.size() >= kLeastHistory;
  if (options.deviations > 0 && !history.losses.empty()) {
    const double median = checkpoint::median_of(history.losses);
    if (enough) {
      const double deviation = std::max(deviation_of(history.losses), kLeastDeviation * std::abs(median));
      if (loss > median + options.deviations * deviation)
        return fmt::format("the loss {:.4g} is {:.1f} deviations above the median {:.4g} of {} steps", loss,
                           (loss - median) / deviation, median, history.losses.size());
    } else if (const double largest = *std::max_element(history.losses.begin(), history.losses.end());
               loss > 2 * largest) {
      return fmt::format("the loss {:.4g} is more than twice the largest so far, {:.4g}", loss, largest);
    }
  }
  if (options.grad_norm_factor > 0 && enough) {
    const double median = checkpoint::median_of(history.grad_norms);
    if (grad_norm > options.grad_norm_factor * median)
      return fmt::format("the gradient's norm {:.4g} is {:.1f} times the median {:.4g} of {} steps", grad_norm,
                         grad_norm / median, median, history.grad_norms.size());
  }
  return "";
}

void learned(const config::Spike& options, checkpoint::SpikeHistory& history, double loss, double grad_norm) {
  push(history.losses, loss, options.window);
  push(history.grad_norms, grad_norm, options.window);
  history.skipped_in_row = 0;
}

void left_out(checkpoint::SpikeHistory& history) {
  ++history.skipped;
  ++history.skipped_in_row;
}

}  // namespace switchyard::train
