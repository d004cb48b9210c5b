// Expert load over time and by domain: what the balance figures are made of.
//   L layers with a router, B sequences, E experts
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "router/balance_figures.h"
#include "router/routing_step.h"

namespace switchyard::train {

// Counts of slots, added up over batches; a token is counted where its forward pass is added, once.
class LoadCounts {
 public:
  LoadCounts(std::int64_t n_layers, std::int64_t n_experts, std::int64_t n_domains);

  // One micro-batch: count_LBE and dropped_L of router::RoutingCounts, where the host reads them (i32);
  // domain_B: the domain of each sequence.
  void add(const Tensor& count_LBE, const Tensor& dropped_L, std::span<const std::size_t> domain_B);
  // The same of the last forward pass of a model, wherever it runs: waits for it.
  void add(const router::RoutingCounts& counts, std::span<const std::size_t> domain_B);

  // All numbers of it, f64: to be added up over ranks.
  Tensor sums();

  std::vector<double> layer(std::int64_t l) const;                   // [E], over all domains
  std::vector<double> all_layers() const;                            // [L*E]
  std::vector<router::BalanceFigures> figures() const;               // one a layer
  double specialisation(std::int64_t l) const;                       // bits; 0 with one domain
  std::vector<std::vector<double>> by_domain(std::int64_t l) const;  // [domain][E]
  std::int64_t n_layers() const { return n_layers_; }
  double slots(std::int64_t l) const;                                    // that experts took
  double dropped(std::int64_t l) const { return sums_[dropped_at(l)]; }  // slots
  double drop_rate() const;  // of all slots that routers chose, the share that no expert took

 private:
  double& at(std::int64_t l, std::size_t domain, std::int64_t e);
  std::size_t dropped_at(std::int64_t l) const {
    return static_cast<std::size_t>(n_layers_ * n_domains_ * n_experts_ + l);
  }
  std::int64_t n_layers_, n_experts_, n_domains_;
  std::vector<double> sums_;  // [L, N, E]: layer, domain, expert; then dropped slots [L]
};

// The load during training: an exponential moving average of each step's counts.
class LoadAverage {
 public:
  static constexpr double kDecay = 0.99;  // a step

  LoadAverage(std::int64_t n_layers, std::int64_t n_experts);
  void update(const LoadCounts& step);
  std::vector<router::BalanceFigures> figures() const;
  Tensor state();  // [L, E] f64: what a checkpoint keeps

 private:
  std::int64_t n_layers_, n_experts_;
  std::vector<double> average_LE_;
};

}  // namespace switchyard::train
