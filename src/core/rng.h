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
  router_noise = 4,   // a router's own
  router_jitter = 5,  // on the logits of any router
  sampling = 6        // of generated tokens
};

// What is constexpr here is so for device code, which may call such functions.
constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::array<std::uint32_t, 2> key) {
  constexpr std::uint32_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  // In words, not arrays, so that loops over counters are vectorised.
  std::uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round, k0 += kWeyl0, k1 += kWeyl1) {
    const std::uint64_t p0 = std::uint64_t{kMul0} * c0, p1 = std::uint64_t{kMul1} * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(p1);
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(p0);
  }
  return {c0, c1, c2, c3};
}

// One stream of random values, addressed by index.
class Rng {
 public:
  Rng(std::uint64_t seed, RngPurpose purpose, std::uint64_t stream);
  // Another stream of the same seed and purpose.
  constexpr Rng with_stream(std::uint64_t stream) const { return {stream, key_}; }
  // The 128 bits that the values at an index are made of.
  constexpr std::array<std::uint32_t, 4> block(std::uint64_t index) const {
    return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                       static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                      key_);
  }
  std::uint64_t bits(std::uint64_t index) const;  // 64 uniform bits
  double uniform(std::uint64_t index) const;      // in (0, 1)
  double normal(std::uint64_t index) const;       // mean 0, variance 1 (Box-Muller)

 private:
  constexpr Rng(std::uint64_t stream, const std::array<std::uint32_t, 2>& key) : stream_(stream), key_(key) {}

  std::uint64_t stream_;
  std::array<std::uint32_t, 2> key_;
};

// A bijection of [0, n): where sample `index` of a shuffled sequence of n comes from. O(1), no table: a Feistel
// network over the next power of four, walked until it lands inside (at most four steps on average).
std::uint64_t shuffled_index(std::uint64_t index, std::uint64_t n, const Rng& rng);

std::uint64_t hash_name(std::string_view name);  // FNV-1a, 64 bits: names a stream after a parameter

}  // namespace switchyard
