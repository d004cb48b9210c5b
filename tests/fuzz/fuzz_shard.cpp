// Any bytes as a token shard: refused with one line, or all tokens can be read, at once and from any place.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/shard.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace switchyard;
  try {
    const auto bytes = std::as_bytes(std::span(data, size));
    const data::ShardLayout layout = data::parse_shard(bytes, "input");
    if (layout.n_tokens < 1 || static_cast<std::size_t>(layout.n_tokens) > size) std::abort();
    std::vector<std::int32_t> all(static_cast<std::size_t>(layout.n_tokens)), last(1);
    data::read_tokens(bytes, layout, 0, all);
    data::read_tokens(bytes, layout, layout.n_tokens - 1, last);
    if (last[0] != all.back()) std::abort();
  } catch (const InputError& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
