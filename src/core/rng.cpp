#include "core/rng.h"

#include <cmath>
#include <numbers>
#include <utility>

#include "core/error.h"

namespace switchyard {

Rng::Rng(std::uint64_t seed, RngPurpose purpose, std::uint64_t stream) : stream_(stream) {
  // The purpose goes into the key by way of one Philox block, so that nearby seeds and purposes share nothing.
  const auto block = philox4x32({static_cast<std::uint32_t>(purpose), 0, 0, 0},
                                {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  key_ = {block[0], block[1]};
}

std::uint64_t Rng::bits(std::uint64_t index) const {
  const auto words = block(index);
  return (std::uint64_t{words[1]} << 32) | words[0];
}

double Rng::uniform(std::uint64_t index) const {
  return (static_cast<double>(bits(index) >> 11) + 0.5) * 0x1.0p-53;
}

double Rng::normal(std::uint64_t index) const {
  const auto words = block(index);
  const double u = (static_cast<double>(words[0]) + 0.5) * 0x1.0p-32;
  const double v = (static_cast<double>(words[1]) + 0.5) * 0x1.0p-32;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

std::uint64_t shuffled_index(std::uint64_t index, std::uint64_t n, const Rng& rng) {
  SY_CHECK(index < n, "index {} of {}", index, n);
  int half_bits = 1;
  while ((std::uint64_t{1} << (2 * half_bits)) < n) ++half_bits;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  do {
    std::uint64_t left = index >> half_bits, right = index & mask;
    for (std::uint64_t round = 0; round < 4; ++round) {
      const std::uint64_t mixed = rng.bits((round << 32) | right) & mask;
      left = std::exchange(right, left ^ mixed);
    }
    index = (left << half_bits) | right;
  } while (index >= n);
  return index;
}

std::uint64_t hash_name(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

}  // namespace switchyard
