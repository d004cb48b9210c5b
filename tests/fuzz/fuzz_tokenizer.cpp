// Any text as a tokenizer.json: refused with one line, or a tokenizer whose tokens are within its vocabulary.
// What stands behind a zero byte is the text that it is asked for.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "one_line.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace switchyard;
  const std::string all(reinterpret_cast<const char*>(data), size);
  const std::string json = all.substr(0, all.find('\0'));
  const std::string asked =
      json.size() < all.size() ? all.substr(json.size() + 1) : "Hello  world, it's 2024!\n\xC3\xA9";
  attempt([&] {
    const auto tokenizer = tokenizer::parse_hugging_face(json, "input");
    tokenizer::describe_hugging_face(json, "input");
    const auto tokens = tokenizer->encode(asked, true);
    const auto stream = tokenizer->text_stream();
    for (const std::int32_t token : tokens) {
      if (token < 0 || token >= tokenizer->vocab_size()) std::abort();
      stream->push(token);
    }
    stream->finish();
  });
  return 0;
}
