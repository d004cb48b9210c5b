// The decoder of a tokenizer.json: what tokens are as text.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::tokenizer {

class Decoding {
 public:
  // Throws InputError naming the path of what is not supported.
  Decoding(const Json& decoder, const std::string& where);

  // What a token is, as far as it can be said of one alone: text, or bytes.
  struct Part {
    std::string text;
    bool byte = false;  // one byte of a run that ends with the next part which is none
  };
  Part part_of(std::string token) const;

  // Over tokens that are numbers in `parts`; nullopt there: no text. `parts` must outlive it.
  std::unique_ptr<TextStream> stream(const std::vector<std::optional<Part>>& parts) const;

 private:
  using Change = std::function<void(std::string&)>;
  friend class DecodedStream;
  void read(const Json& decoder, const std::string& where);
  void read_strip(const Json& decoder, const std::string& where);
  void add(Change change);

  std::vector<Change> before_, behind_;  // of each token, before and behind ByteFallback
  bool byte_level_ = false, byte_fallback_ = false, fused_ = false;
  bool spaced_ = false;     // a space between tokens
  bool hold_last_ = false;  // the last token's suffix is no space
  std::string suffix_;
};

}  // namespace switchyard::tokenizer
