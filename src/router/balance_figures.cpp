#include "router/balance_figures.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace switchyard::router {

BalanceFigures balance_figures(std::span<const double> load_E) {
  BalanceFigures figures;
  std::vector<double> load(load_E.begin(), load_E.end());
  std::sort(load.begin(), load.end());
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  const auto E = static_cast<double>(load.size());
  if (load.empty() || sum <= 0) return figures;
  const double mean = sum / E;
  double weighted = 0, squares = 0, entropy = 0, used = 0;
  for (std::size_t i = 0; i < load.size(); ++i) {
    weighted += (2.0 * static_cast<double>(i + 1) - E - 1.0) * load[i];
    squares += (load[i] - mean) * (load[i] - mean);
    if (load[i] > 0) {
      used += 1;
      entropy -= load[i] / sum * std::log(load[i] / sum);
    }
  }
  figures.gini = weighted / (E * sum);
  figures.min_max = load.front() / load.back();
  figures.cv = load.size() > 1 ? std::sqrt(squares / (E - 1)) / mean : 0.0;
  figures.max_vio = load.back() / mean - 1;
  figures.utilisation = used / E;
  figures.entropy = load.size() > 1 ? entropy / std::log(E) : 1.0;
  return figures;
}

std::array<std::pair<const char*, double>, 6> named(const BalanceFigures& figures) {
  return {{{"gini", figures.gini},
           {"min_max", figures.min_max},
           {"cv", figures.cv},
           {"max_vio", figures.max_vio},
           {"utilisation", figures.utilisation},
           {"entropy", figures.entropy}}};
}

BalanceFigures mean_of(std::span<const BalanceFigures> layers) {
  BalanceFigures mean;
  for (const BalanceFigures& layer : layers) {
    const double share = 1.0 / static_cast<double>(layers.size());
    mean.gini += share * layer.gini;
    mean.min_max += share * layer.min_max;
    mean.cv += share * layer.cv;
    mean.max_vio += share * layer.max_vio;
    mean.utilisation += share * layer.utilisation;
    mean.entropy += share * layer.entropy;
  }
  return mean;
}

double specialisation_bits(const std::vector<std::vector<double>>& count_of_domain_E) {
  if (count_of_domain_E.empty()) return 0;
  const std::size_t E = count_of_domain_E.front().size();
  std::vector<double> expert_sum(E), domain_sum(count_of_domain_E.size());
  double sum = 0;
  for (std::size_t d = 0; d < count_of_domain_E.size(); ++d)
    for (std::size_t e = 0; e < E; ++e) {
      expert_sum[e] += count_of_domain_E[d][e];
      domain_sum[d] += count_of_domain_E[d][e];
      sum += count_of_domain_E[d][e];
    }
  double bits = 0;
  for (std::size_t d = 0; d < count_of_domain_E.size(); ++d)
    for (std::size_t e = 0; e < E; ++e) {
      const double joint = count_of_domain_E[d][e];
      if (joint > 0) bits += joint / sum * std::log2(joint * sum / (expert_sum[e] * domain_sum[d]));
    }
  return bits;
}

}  // namespace switchyard::router
