#include "core/utf8.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::tokenizer {

namespace {

constexpr std::int32_t kEndOfText = 256;

class ByteStream final : public TextStream {
 public:
  std::string push(std::int32_t token) override {
    if (token < 0 || token >= kEndOfText) return "";
    return characters_.push(std::string(1, static_cast<char>(token)));
  }
  std::string finish() override { return characters_.finish(); }

 private:
  Utf8Stream characters_;
};

class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text, bool, bool) const override {
    std::vector<std::int32_t> tokens;
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  std::unique_ptr<TextStream> text_stream() const override { return std::make_unique<ByteStream>(); }
  std::int64_t vocab_size() const override { return kEndOfText + 1; }
  std::optional<std::int32_t> end_of_text() const override { return kEndOfText; }
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace switchyard::tokenizer
