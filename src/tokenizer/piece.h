// A part of a text on its way to tokens.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/utf8.h"
#include "tokenizer/pattern.h"

namespace switchyard::tokenizer {

// Beside its text a piece knows whether it begins where the whole text began: Metaspace's scheme "first" asks
// for that. Hugging Face's library answers it by following each byte back to the text as it was given, so
// that a piece may lose it (white space was stripped before it) and several may have it (they are parts of
// what was one character).
struct Piece {
  std::string text;
  bool begins_text = true;       // when it was cut off, its first byte came from the text's first character
  std::size_t from_first = 0;    // bytes at its beginning that did
  std::size_t from_nothing = 0;  // bytes at its beginning that an expression inserted before the text
};

Piece whole_text(std::string_view text);
Piece slice(const Piece& piece, std::size_t begin, std::size_t end);
// Puts `rewritten` in the place of the text; `from_first` is what came from the text's first character.
void rewrite(Piece& piece, std::string rewritten, std::size_t from_first);
void prepend(Piece& piece, const std::string& before);
void replace(Piece& piece, const std::vector<Match>& matches, const std::string& content);

// Rewrites each character by append(text, code), which appends what it becomes.
template <class Append>
void rewrite_characters(Piece& piece, const Append& append) {
  std::string out;
  out.reserve(piece.text.size());
  std::size_t from_first = 0;
  for (std::size_t at = 0; at < piece.text.size();) {
    const std::size_t size = character_size(piece.text, at);
    append(out, code_of(std::string_view(piece.text).substr(at, size)));
    at += size;
    if (at <= piece.from_first) from_first = out.size();
  }
  rewrite(piece, std::move(out), from_first);
}

}  // namespace switchyard::tokenizer
