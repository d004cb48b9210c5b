#include "tokenizer/tokenizer.h"

namespace switchyard::tokenizer {

namespace {

constexpr std::int32_t kEndOfText = 256;

class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text, bool) const override {
    std::vector<std::int32_t> tokens;
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  std::string bytes_of(std::int32_t token) const override {
    return token >= 0 && token < kEndOfText ? std::string(1, static_cast<char>(token)) : "";
  }
  std::int64_t vocab_size() const override { return kEndOfText + 1; }
  std::optional<std::int32_t> end_of_text() const override { return kEndOfText; }
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace switchyard::tokenizer
