// Any text as the run.json of a checkpoint: refused with one line, or a state that is written and read as
// itself.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "checkpoint/run_state.h"
#include "one_line.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace switchyard;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  attempt([&] {
    const std::string written = checkpoint::run_record_json(checkpoint::parse_run_record(text, "input"));
    if (checkpoint::run_record_json(checkpoint::parse_run_record(written, "written")) != written) std::abort();
  });
  return 0;
}
