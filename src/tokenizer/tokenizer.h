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

// Tokens to text, token by token. What it gives back is always whole characters.
class TextStream {
 public:
  virtual ~TextStream() = default;
  virtual std::string push(std::int32_t token) = 0;
  virtual std::string finish() = 0;  // what is left; bytes that are no text become U+FFFD
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // The tokens of a text. `with_special`: with what the tokenizer puts around a text (a token that begins it).
  // `special_as_text`: names of special tokens in the text are text like any other.
  // Throws InputError where the text is not UTF-8 and has to be, naming the byte.
  virtual std::vector<std::int32_t> encode(std::string_view text, bool with_special,
                                           bool special_as_text = false) const = 0;
  // Of text that goes on from some other. Special and unknown tokens are no text. Must not outlive this.
  virtual std::unique_ptr<TextStream> text_stream() const = 0;
  virtual std::int64_t vocab_size() const = 0;  // the largest token + 1
  // The token that ends a text, where the tokenizer has one by a name that is known.
  virtual std::optional<std::int32_t> end_of_text() const = 0;
};

// Byte values are the tokens, 256 is end-of-text. Takes any bytes.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// A tokenizer.json with a BPE model. Throws InputError naming the JSON path of what is not supported.
std::unique_ptr<Tokenizer> load_hugging_face(const std::filesystem::path& path);
std::unique_ptr<Tokenizer> parse_hugging_face(const std::string& json, const std::string& origin);

// What a tokenizer.json holds, for people: types of its parts, as in "Sequence(NFC, Lowercase)"; "none".
struct Description {
  std::int64_t vocab_size, model_tokens, merges, added_tokens, special_tokens;
  std::string normalizer, pre_tokenizer, post_processor, decoder;
  std::vector<std::int32_t> begin, end;  // what its template puts before and behind a text
  std::optional<std::int32_t> end_of_text;
};
bool looks_like_hugging_face(const std::string& json);
Description describe_hugging_face(const std::string& json, const std::string& origin);  // throws as the above

}  // namespace switchyard::tokenizer
