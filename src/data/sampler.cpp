#include "data/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"

namespace switchyard::data {

namespace {

// Each domain's share of the samples, which sum to 1.
std::vector<double> shares_of(const std::vector<Sampler::Domain>& domains) {
  std::vector<double> weights;
  for (const auto& domain : domains) {
    if (domain.weight.has_value() != domains.front().weight.has_value())
      throw_input("data: domain '{}' has a weight and domain '{}' has none; give one to all domains or to none",
                  (domain.weight ? domain : domains.front()).name,
                  (domain.weight ? domains.front() : domain).name);
    const double weight = domain.weight.value_or(static_cast<double>(domain.n_tokens));
    if (!(weight > 0.0) || !std::isfinite(weight))
      throw_input("data: domain '{}' has weight {}; a weight is a number above 0", domain.name, weight);
    weights.push_back(weight);
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= sum;
  return weights;
}

// Splits `total` in the given shares by the method of the largest remainder; on a tie the earlier domain gains.
std::vector<std::int64_t> apportion(const std::vector<double>& shares, std::int64_t total) {
  std::vector<std::int64_t> counts;
  std::vector<double> remainders;
  for (const double share : shares) {
    const double quota = share * static_cast<double>(total);
    counts.push_back(static_cast<std::int64_t>(quota));
    remainders.push_back(quota - std::floor(quota));
  }
  std::vector<std::size_t> order(shares.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return remainders[a] > remainders[b]; });
  std::int64_t left = total - std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  for (std::size_t i = 0; left > 0; ++i, --left) ++counts[order[i % order.size()]];
  return counts;
}

}  // namespace

Sampler::Sampler(const std::vector<Domain>& domains, std::int64_t seq_len, std::uint64_t seed) : seed_(seed) {
  SY_CHECK(!domains.empty() && seq_len > 0, "{} domains, sequences of {}", domains.size(), seq_len);
  for (const auto& domain : domains) {
    if (domain.n_tokens < seq_len + 1)
      throw_input(
          "data: domain '{}' has {} tokens, a sequence of {} needs {}; shorten train.seq_len or add data",
          domain.name, domain.n_tokens, seq_len, seq_len + 1);
    windows_.push_back((domain.n_tokens - 1) / seq_len);
  }
  const auto shares = shares_of(domains);
  per_block_ = apportion(shares, kMixBlock);
  std::int64_t start = 0;
  for (std::size_t d = 0; d < domains.size(); ++d) {
    constexpr double kRounding = 1e-9;  // of a share that is meant to be exactly the least
    if (per_block_[d] == 0 || shares[d] * static_cast<double>(kMixBlock) < 1.0 - kRounding)
      throw_input(
          "data: domain '{}' has a share of {:.3g} of the samples, the least that can be mixed in is 1/{}; "
          "raise "
          "its weight or remove it",
          domains[d].name, shares[d], kMixBlock);
    block_start_.push_back(start);
    start += per_block_[d];
  }
}

Sampler::Sample Sampler::at(std::int64_t global_index) const {
  SY_CHECK(global_index >= 0, "sample {}", global_index);
  const std::int64_t block = global_index / kMixBlock;
  // A block holds its domains in turn; which of its places is visited when is shuffled. With one domain there
  // is nothing to mix, and its epochs follow one another exactly.
  auto place = static_cast<std::uint64_t>(global_index % kMixBlock);
  if (windows_.size() > 1)
    place = shuffled_index(place, static_cast<std::uint64_t>(kMixBlock),
                           Rng(seed_, RngPurpose::domain_mix, static_cast<std::uint64_t>(block)));
  const auto position = static_cast<std::int64_t>(place);
  const auto d = static_cast<std::size_t>(std::upper_bound(block_start_.begin(), block_start_.end(), position) -
                                          block_start_.begin() - 1);

  const std::int64_t of_domain = block * per_block_[d] + (position - block_start_[d]);
  const std::int64_t epoch = of_domain / windows_[d];
  constexpr int kEpochBits = 40;  // of the stream's 64; the rest number the domain
  const Rng order(seed_, RngPurpose::shuffle,
                  (std::uint64_t{d} << kEpochBits) | static_cast<std::uint64_t>(epoch));
  const auto window = shuffled_index(static_cast<std::uint64_t>(of_domain % windows_[d]),
                                     static_cast<std::uint64_t>(windows_[d]), order);
  return {d, static_cast<std::int64_t>(window), epoch};
}

}  // namespace switchyard::data
