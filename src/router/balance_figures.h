// How evenly slots are spread over experts (docs/router-mathematics.md, section 4).
#pragma once

#include <array>
#include <span>
#include <utility>
#include <vector>

namespace switchyard::router {

struct BalanceFigures {
  double gini = 0;         // 0: equal; (E-1)/E: all on one expert
  double min_max = 0;      // least over greatest load
  double cv = 0;           // standard deviation (n-1) over mean
  double max_vio = 0;      // greatest load over mean, minus 1
  double utilisation = 0;  // share of experts with any load
  double entropy = 0;      // over log E: 1 when equal
};

// Of one layer's load, one value an expert, none negative. All zeros where there is no load at all.
BalanceFigures balance_figures(std::span<const double> load_E);

// Under the names that metrics and reports give them.
std::array<std::pair<const char*, double>, 6> named(const BalanceFigures& figures);

// Mean over layers, figure by figure.
BalanceFigures mean_of(std::span<const BalanceFigures> layers);

// Mutual information, in bits, between expert and domain of a slot, from the table of counts (row: a domain).
double specialisation_bits(const std::vector<std::vector<double>>& count_of_domain_E);

}  // namespace switchyard::router
