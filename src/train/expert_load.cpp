#include "train/expert_load.h"

#include <algorithm>
#include <numeric>

#include "core/device_memory.h"

namespace switchyard::train {

LoadCounts::LoadCounts(std::int64_t n_layers, std::int64_t n_experts, std::int64_t n_domains)
    : n_layers_(n_layers),
      n_experts_(n_experts),
      n_domains_(n_domains),
      sums_(static_cast<std::size_t>(n_layers * (n_domains * n_experts + 1))) {}

Tensor LoadCounts::sums() {
  return Tensor(sums_.data(), Shape{static_cast<std::int64_t>(sums_.size())}, DType::f64);
}

double& LoadCounts::at(std::int64_t l, std::size_t domain, std::int64_t e) {
  return sums_[static_cast<std::size_t>((l * n_domains_ + static_cast<std::int64_t>(domain)) * n_experts_ + e)];
}

void LoadCounts::add(const Tensor& count_LBE, const Tensor& dropped_L, std::span<const std::size_t> domain_B) {
  for (std::int64_t l = 0; l < n_layers_; ++l) {
    const std::int32_t* count = count_LBE.row<std::int32_t>(l);
    sums_[dropped_at(l)] += dropped_L.as<std::int32_t>()[l];
    for (const std::size_t domain : domain_B)
      for (std::int64_t e = 0; e < n_experts_; ++e) at(l, domain, e) += *count++;
  }
}

void LoadCounts::add(const router::RoutingCounts& counts, std::span<const std::size_t> domain_B) {
  if (n_layers_ > 0) add(HostCopy(counts.count_LBE).tensor(), HostCopy(counts.dropped_L).tensor(), domain_B);
}

std::vector<std::vector<double>> LoadCounts::by_domain(std::int64_t l) const {
  std::vector<std::vector<double>> table;
  for (std::int64_t n = 0; n < n_domains_; ++n) {
    const auto first = sums_.begin() + (l * n_domains_ + n) * n_experts_;
    table.emplace_back(first, first + n_experts_);
  }
  return table;
}

std::vector<double> LoadCounts::layer(std::int64_t l) const {
  std::vector<double> load_E(static_cast<std::size_t>(n_experts_));
  for (const auto& domain_E : by_domain(l))
    std::transform(load_E.begin(), load_E.end(), domain_E.begin(), load_E.begin(), std::plus<>());
  return load_E;
}

std::vector<double> LoadCounts::all_layers() const {
  std::vector<double> load_LE;
  for (std::int64_t l = 0; l < n_layers_; ++l) {
    const auto load_E = layer(l);
    load_LE.insert(load_LE.end(), load_E.begin(), load_E.end());
  }
  return load_LE;
}

std::vector<router::BalanceFigures> LoadCounts::figures() const {
  std::vector<router::BalanceFigures> figures;
  for (std::int64_t l = 0; l < n_layers_; ++l) figures.push_back(router::balance_figures(layer(l)));
  return figures;
}

double LoadCounts::slots(std::int64_t l) const {
  const auto load_E = layer(l);
  return std::accumulate(load_E.begin(), load_E.end(), 0.0);
}

double LoadCounts::drop_rate() const {
  const auto first_dropped = sums_.begin() + static_cast<std::int64_t>(dropped_at(0));
  const double kept = std::accumulate(sums_.begin(), first_dropped, 0.0);
  const double dropped = std::accumulate(first_dropped, sums_.end(), 0.0);
  return dropped > 0 ? dropped / (kept + dropped) : 0.0;
}

double LoadCounts::specialisation(std::int64_t l) const { return router::specialisation_bits(by_domain(l)); }

LoadAverage::LoadAverage(std::int64_t n_layers, std::int64_t n_experts)
    : n_layers_(n_layers), n_experts_(n_experts), average_LE_(static_cast<std::size_t>(n_layers * n_experts)) {}

// The average starts at zero and is not corrected for it: every figure is a ratio, in which the factor cancels.
void LoadAverage::update(const LoadCounts& step) {
  const auto count_LE = step.all_layers();
  for (std::size_t i = 0; i < average_LE_.size(); ++i)
    average_LE_[i] = kDecay * average_LE_[i] + (1 - kDecay) * count_LE[i];
}

std::vector<router::BalanceFigures> LoadAverage::figures() const {
  std::vector<router::BalanceFigures> figures;
  for (std::int64_t l = 0; l < n_layers_; ++l)
    figures.push_back(router::balance_figures(
        std::span(average_LE_)
            .subspan(static_cast<std::size_t>(l * n_experts_), static_cast<std::size_t>(n_experts_))));
  return figures;
}

Tensor LoadAverage::state() { return Tensor(average_LE_.data(), Shape{n_layers_, n_experts_}, DType::f64); }

}  // namespace switchyard::train
