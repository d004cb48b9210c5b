// Any bytes as a safetensors file: refused with one line, or tensors whose bytes can all be read.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "checkpoint/safetensors.h"
#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace switchyard;
  try {
    const auto tensors = checkpoint::parse_safetensors(std::as_bytes(std::span(data, size)), "input");
    std::size_t total = 0;
    unsigned sum = 0;
    for (const checkpoint::StoredTensor& tensor : tensors) {
      for (const std::byte byte : tensor.bytes) sum += static_cast<unsigned>(byte);
      total += tensor.bytes.size();
      if (tensor.bytes.size() * 8 % static_cast<std::size_t>(checkpoint::bits_of(tensor.type)) != 0)
        std::abort();
    }
    volatile unsigned kept = sum;
    static_cast<void>(kept);
    if (total > size) std::abort();  // no byte belongs to two tensors
  } catch (const InputError& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
