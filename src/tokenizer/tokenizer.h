// Text to tokens and back: the byte tokenizer of tools/prepare_data.py, or a Hugging Face tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::tokenizer {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // The tokens of a text. `with_special`: with what the tokenizer puts around a text (a token that begins it).
  // Throws InputError where the text is not UTF-8 and has to be, naming the byte.
  virtual std::vector<std::int32_t> encode(std::string_view text, bool with_special) const = 0;
  // What a token stands for, as bytes: part of a character, perhaps. "" for a special or unknown token.
  virtual std::string bytes_of(std::int32_t token) const = 0;
  virtual std::int64_t vocab_size() const = 0;  // the largest token + 1
  // The token that ends a text, where the tokenizer has one by a name that is known.
  virtual std::optional<std::int32_t> end_of_text() const = 0;
};

// Byte values are the tokens, 256 is end-of-text. Takes any bytes.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// A tokenizer.json with a BPE model. Throws InputError naming the JSON path of what is not supported.
std::unique_ptr<Tokenizer> load_hugging_face(const std::filesystem::path& path);
std::unique_ptr<Tokenizer> parse_hugging_face(const std::string& json, const std::string& origin);

}  // namespace switchyard::tokenizer
