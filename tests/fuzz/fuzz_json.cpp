// Any text as JSON, by each of the readers: refused with one line, or a value that is written and read as
// itself.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/json.h"
#include "one_line.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace switchyard;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto any = try_parse_json(text);
  const auto check = [&](const Json& value) {
    if (parse_json(to_line(value), "line") != value || parse_json(to_text(value), "text") != value)
      std::abort();
  };
  attempt([&] {
    const Json value = parse_json(text, "input");
    if (!any || *any != value) std::abort();
    check(value);
  });
  attempt([&] { check(parse_commented_json(text, "input")); });
  attempt([&] {
    const Json value = parse_stored_json(text, "input");
    if (!any || *any != value) std::abort();
  });
  return 0;
}
