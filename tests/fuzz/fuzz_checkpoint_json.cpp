// Any text as the JSON files beside the weights, the manifest and the index: refused with one line, or names of
// files in the same directory alone.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "checkpoint/manifest.h"
#include "checkpoint/weights_files.h"
#include "core/error.h"

namespace {

template <class Parse>
void attempt(Parse&& parse) {
  try {
    parse();
  } catch (const switchyard::InputError& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
}

void require_beside(const std::string& name) {
  if (name.empty() || name == ".." || name.find('/') != std::string::npos) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace switchyard;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  attempt([&] {
    for (const checkpoint::ManifestEntry& file : checkpoint::parse_manifest(text, "input"))
      require_beside(file.name);
  });
  attempt([&] {
    for (const auto& [tensor, file] : checkpoint::parse_weights_index(text, "input")) require_beside(file);
  });
  return 0;
}
