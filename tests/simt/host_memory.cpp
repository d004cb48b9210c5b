#include "host_memory.h"

#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace simt {

namespace {

// By where it begins.
std::map<const std::byte*, std::size_t>& locked() {
  static auto& pieces = *new std::map<const std::byte*, std::size_t>;
  return pieces;
}

using Range = std::pair<std::uintptr_t, std::uintptr_t>;  // from, to

int add_segments(dl_phdr_info* object, std::size_t, void* ranges) {
  for (unsigned i = 0; i < object->dlpi_phnum; ++i) {
    const auto& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const std::uintptr_t begin = object->dlpi_addr + segment.p_vaddr;
    static_cast<std::vector<Range>*>(ranges)->emplace_back(begin, begin + segment.p_memsz);
  }
  return 0;
}

}  // namespace

void* lock_pages(std::size_t bytes) {
  void* const memory = std::malloc(bytes);
  locked()[static_cast<const std::byte*>(memory)] = bytes;
  return memory;
}
void release_pages(void* memory) {
  locked().erase(static_cast<const std::byte*>(memory));
  std::free(memory);
}
bool is_page_locked(const void* memory, std::size_t bytes) {
  const auto* const at = static_cast<const std::byte*>(memory);
  const auto after = locked().upper_bound(at);
  if (after == locked().begin()) return false;
  const auto& [data, size] = *std::prev(after);
  return at + bytes <= data + size;
}

bool is_of_program(const void* memory) {
  static const auto& ranges = []() -> std::vector<Range>& {
    auto& all = *new std::vector<Range>;
    dl_iterate_phdr(add_segments, &all);
    return all;
  }();
  const auto at = reinterpret_cast<std::uintptr_t>(memory);
  for (const auto& [begin, end] : ranges) {
    if (begin <= at && at < end) return true;
  }
  return false;
}

}  // namespace simt
