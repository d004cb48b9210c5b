// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). A value is a function of (seed, purpose, stream, index), never of a thread, a rank or a call order.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace switchyard {

enum class RngPurpose : std::uint32_t {
  init = 1,
  domain_mix = 2,
  shuffle = 3,
  router_noise = 4,  // a router's own
  router_jitter = 5  // on the logits of any router
};

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// One stream of random values, addressed by index.
class Rng {
 public:
  Rng(std::uint64_t seed, RngPurpose purpose, std::uint64_t stream);
  std::uint64_t bits(std::uint64_t index) const;  // 64 uniform bits
  double uniform(std::uint64_t index) const;      // in (0, 1)
  double normal(std::uint64_t index) const;       // mean 0, variance 1 (Box-Muller)

 private:
  std::uint64_t stream_;
  std::array<std::uint32_t, 2> key_;
};

// A bijection of [0, n): where sample `index` of a shuffled sequence of n comes from. O(1), no table: a Feistel
// network over the next power of four, walked until it lands inside (at most four steps on average).
std::uint64_t shuffled_index(std::uint64_t index, std::uint64_t n, const Rng& rng);

std::uint64_t hash_name(std::string_view name);  // FNV-1a, 64 bits: names a stream after a parameter

}  // namespace switchyard
