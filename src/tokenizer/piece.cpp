#include "tokenizer/piece.h"

#include <algorithm>

#include "core/error.h"
#include "core/json.h"

namespace switchyard::tokenizer {

Piece whole_text(std::string_view text) {
  Piece piece{.text = std::string(text)};
  if (!text.empty()) piece.from_first = character_size(text, 0);
  return piece;
}

Piece slice(const Piece& piece, std::size_t begin, std::size_t end) {
  const auto kept = [&](std::size_t bytes) { return std::max(begin, std::min(end, bytes)) - begin; };
  return {.text = piece.text.substr(begin, end - begin),
          .begins_text = begin < piece.from_first,
          .from_first = kept(piece.from_first),
          .from_nothing = kept(piece.from_nothing)};
}

void rewrite(Piece& piece, std::string rewritten, std::size_t from_first) {
  if (piece.from_nothing > 0)
    throw_input(
        "the tokenizer inserts {} before a text and then changes it again, on which Hugging Face's library "
        "fails or doubles the text; use a Prepend normalizer",
        in_quotes(piece.text.substr(0, piece.from_nothing)));
  piece.text = std::move(rewritten);
  piece.from_first = from_first;
}

void prepend(Piece& piece, const std::string& before) {
  if (piece.text.empty()) return;
  piece.text.insert(0, before);
  if (piece.from_first > 0) piece.from_first += before.size();
}

void replace(Piece& piece, const std::vector<Match>& matches, const std::string& content) {
  std::string out;
  std::size_t from_first = 0, from_nothing = 0;
  for (const Match& match : matches) {
    if (match.matched)
      out += content;
    else
      out.append(piece.text, match.begin, match.end - match.begin);
    if (match.matched && match.end == 0) from_nothing = out.size();
    // What replaces a match comes from the match's last byte.
    if (match.matched ? match.end <= piece.from_first : match.begin < piece.from_first)
      from_first = match.matched || match.end <= piece.from_first ? out.size()
                                                                  : out.size() - (match.end - piece.from_first);
  }
  piece.text = std::move(out);
  piece.from_first = from_first;
  piece.from_nothing += from_nothing;
}

}  // namespace switchyard::tokenizer
