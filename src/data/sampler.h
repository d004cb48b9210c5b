// Which window of which stream of tokens is the n-th training sample.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace switchyard::data {

// Order of the training samples: a pure function of (seed, global sample index). Stream d is cut into windows
// of seq_len inputs; window w has inputs [w*seq_len, (w+1)*seq_len) and targets one token on. Each pass over a
// stream (epoch) visits every window once, in an order of its own. Domains are interleaved in blocks that hold
// each domain in its exact share of kMixBlock samples.
class Sampler {
 public:
  static constexpr std::int64_t kMixBlock = 4096;

  struct Domain {
    std::string name;
    std::int64_t n_tokens;
    std::optional<double> weight;  // default: in proportion to n_tokens
  };
  struct Sample {
    std::size_t domain;
    std::int64_t window;
    std::int64_t epoch;
  };

  // Throws InputError: a domain shorter than seq_len + 1 tokens, or with a share below 1/kMixBlock.
  Sampler(const std::vector<Domain>& domains, std::int64_t seq_len, std::uint64_t seed);
  Sample at(std::int64_t global_index) const;
  const std::vector<std::int64_t>& samples_per_block() const {
    return per_block_;
  }  // one a domain; sum: kMixBlock

 private:
  std::vector<std::int64_t> windows_;
  std::vector<std::int64_t> per_block_;
  std::vector<std::int64_t> block_start_;
  std::uint64_t seed_;
};

}  // namespace switchyard::data
