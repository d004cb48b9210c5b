#include <algorithm>
#include <array>

#include "core/error.h"
#include "tokenizer/json_parts.h"
#include "tokenizer/stages.h"
#include "tokenizer/unicode.h"

namespace switchyard::tokenizer {

namespace {

constexpr const char* kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// What becomes of the matches and of what lies between them.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior behavior_of(const Json& part, const std::string& where, const std::string& fallback) {
  const auto name = entry<std::string>(part, "behavior", where, fallback);
  for (const auto& [known, behavior] : {std::pair{"Removed", Behavior::removed},
                                        {"Isolated", Behavior::isolated},
                                        {"MergedWithPrevious", Behavior::merged_with_previous},
                                        {"MergedWithNext", Behavior::merged_with_next},
                                        {"Contiguous", Behavior::contiguous}})
    if (name == known) return behavior;
  throw_input(
      "{}.behavior: is {}, supported are Removed, Isolated, MergedWithPrevious, MergedWithNext and "
      "Contiguous",
      where, in_quotes(name));
}

// Joins neighbours: from left to right those for which join(this one matched, the one before matched) holds.
template <class Join>
std::vector<Match> joined(const std::vector<Match>& matches, const Join& join) {
  std::vector<Match> out;
  bool before = false;
  for (const Match& match : matches) {
    if (!out.empty() && join(match.matched, before)) {
      out.back().begin = std::min(out.back().begin, match.begin);
      out.back().end = std::max(out.back().end, match.end);
    } else {
      out.push_back(match);
    }
    before = match.matched;
  }
  return out;
}

void split_piece(const Piece& piece, std::vector<Match> matches, Behavior behavior, std::vector<Piece>& out) {
  const auto starts_match = [](bool matched, bool before) { return matched && !before; };
  if (behavior == Behavior::removed) std::erase_if(matches, [](const Match& match) { return match.matched; });
  if (behavior == Behavior::contiguous)
    matches = joined(matches, [](bool matched, bool before) { return matched == before; });
  if (behavior == Behavior::merged_with_previous) matches = joined(matches, starts_match);
  if (behavior == Behavior::merged_with_next) {
    std::reverse(matches.begin(), matches.end());
    matches = joined(matches, starts_match);
    std::reverse(matches.begin(), matches.end());
  }
  for (const Match& match : matches)
    if (match.begin < match.end) out.push_back(slice(piece, match.begin, match.end));
}

// Each character that `is` takes is one match.
template <class Is>
std::vector<Match> cut_characters(const std::string& text, const Is& is) {
  std::vector<Match> all;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t size = character_size(text, at);
    const bool matched = is(code_of(std::string_view(text).substr(at, size)));
    if (matched || all.empty() || all.back().matched)
      all.push_back({at, at + size, matched});
    else
      all.back().end = at + size;
    at += size;
  }
  return all;
}

// A pre-tokenizer that splits at the matches which `find` finds in a text.
template <class Find>
PreTokenizer splitter(Find find, Behavior behavior) {
  return [find, behavior](std::vector<Piece>& pieces) {
    std::vector<Piece> out;
    for (const Piece& piece : pieces) split_piece(piece, find(piece.text), behavior, out);
    pieces = std::move(out);
  };
}

template <class Is>
PreTokenizer character_splitter(Is is, Behavior behavior) {
  return splitter([is](const std::string& text) { return cut_characters(text, is); }, behavior);
}

PreTokenizer make_split(const Json& part, const std::string& where) {
  return splitter(
      [pattern = pattern_of(part, where),
       invert = entry(part, "invert", where, false)](const std::string& text) {
        std::vector<Match> matches = pattern.cut(text);
        if (invert)
          for (Match& match : matches) match.matched = !match.matched;
        return matches;
      },
      behavior_of(part, where, ""));
}

PreTokenizer make_byte_level(const Json& part, const std::string& where) {
  const bool prefix = entry(part, "add_prefix_space", where, true);
  const bool split = entry(part, "use_regex", where, true);
  const PreTokenizer cut =
      splitter([pattern = Pattern(kGpt2, where)](const std::string& text) { return pattern.cut(text); },
               Behavior::isolated);
  return [=](std::vector<Piece>& pieces) {
    if (prefix)
      for (Piece& piece : pieces)
        if (!piece.text.starts_with(' ')) prepend(piece, " ");
    if (split) cut(pieces);
    for (Piece& piece : pieces) to_byte_alphabet(piece);
  };
}

PreTokenizer make_metaspace(const Json& part, const std::string& where) {
  const std::string mark = character_of(part, "replacement", where, "\xE2\x96\x81");
  const auto scheme = entry<std::string>(part, "prepend_scheme", where, "always");
  if (scheme != "always" && scheme != "first" && scheme != "never")
    throw_input("{}.prepend_scheme: is {}, supported are always, first and never", where, in_quotes(scheme));
  if (!entry(part, "add_prefix_space", where, true) && scheme != "never")
    throw_input("{}.add_prefix_space: is false, and prepend_scheme is {}; set that to never", where,
                in_quotes(scheme));
  const bool split = entry(part, "split", where, true);
  const Pattern space = Pattern::literal(" "), marks = Pattern::literal(mark);
  return [=](std::vector<Piece>& pieces) {
    std::vector<Piece> out;
    for (Piece& piece : pieces) {
      replace(piece, space.cut(piece.text), mark);
      const bool wanted = scheme == "always" || (scheme == "first" && piece.begins_text);
      if (wanted && !piece.text.starts_with(mark)) prepend(piece, mark);
      if (split)
        split_piece(piece, marks.cut(piece.text), Behavior::merged_with_next, out);
      else
        out.push_back(std::move(piece));
    }
    pieces = std::move(out);
  };
}

PreTokenizer make_fixed_length(const Json& part, const std::string& where) {
  const auto length = entry<std::int64_t>(part, "length", where, 5);
  if (length < 1) throw_input("{}.length: is {}, expected 1 or more", where, length);
  return splitter(
      [length](const std::string& text) {
        std::vector<Match> all;
        std::int64_t n = 0;
        for (std::size_t at = 0; at < text.size(); ++n) {
          const std::size_t end = at + character_size(text, at);
          if (n % length == 0)
            all.push_back({at, end, false});
          else
            all.back().end = end;
          at = end;
        }
        return all;
      },
      Behavior::isolated);
}

// Words, and runs of what is neither word nor white space.
std::vector<Match> cut_words(const std::string& text) {
  std::vector<Match> all;
  int before = -1;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t size = character_size(text, at);
    const char32_t code = code_of(std::string_view(text).substr(at, size));
    const int kind = is_word(code) ? 0 : is_space(code) ? 1 : 2;
    if (kind == before)
      all.back().end = at + size;
    else
      all.push_back({at, at + size, kind == 1});
    before = kind;
    at += size;
  }
  return all;
}

}  // namespace

PreTokenizer make_pre_tokenizer(const Json& part, const std::string& where) {
  if (part.is_null()) return [](std::vector<Piece>&) {};
  const std::string type = type_of(part, where);
  if (type == "ByteLevel") return make_byte_level(part, where);
  if (type == "Split") return make_split(part, where);
  if (type == "Metaspace") return make_metaspace(part, where);
  if (type == "FixedLength") return make_fixed_length(part, where);
  if (type == "Digits") {
    const bool single = entry(part, "individual_digits", where, false);
    return character_splitter(is_numeric, single ? Behavior::isolated : Behavior::contiguous);
  }
  if (type == "Punctuation") return character_splitter(is_punctuation, behavior_of(part, where, "Isolated"));
  if (type == "WhitespaceSplit") return character_splitter(is_space, Behavior::removed);
  if (type == "Whitespace") return splitter(cut_words, Behavior::removed);
  if (type == "CharDelimiterSplit") {
    const char32_t delimiter = code_of(character_of(part, "delimiter", where, ""));
    return character_splitter([delimiter](char32_t code) { return code == delimiter; }, Behavior::removed);
  }
  std::vector<PreTokenizer> all;
  if (type == "BertPreTokenizer") {
    all = {character_splitter(is_space, Behavior::removed),
           character_splitter(is_punctuation, Behavior::isolated)};
  } else if (type == "Sequence") {
    const Json::Array& parts = list_of(part, "pretokenizers", where);
    for (std::size_t i = 0; i < parts.size(); ++i)
      all.push_back(make_pre_tokenizer(parts[i], fmt::format("{}.pretokenizers[{}]", where, i)));
  } else {
    throw_input(
        "{}.type: pre-tokenizer {} is not supported; ByteLevel, Split, Metaspace, Digits, Punctuation, "
        "Whitespace, WhitespaceSplit, CharDelimiterSplit, FixedLength, BertPreTokenizer and Sequence are",
        where, in_quotes(type));
  }
  return [all](std::vector<Piece>& pieces) {
    for (const PreTokenizer& each : all) each(pieces);
  };
}

namespace {

// Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on, in order.
struct ByteAlphabet {
  std::array<std::string, 256> of_byte;
  std::array<int, 512> of_code{};
  ByteAlphabet() {
    of_code.fill(-1);
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const char32_t code = printable ? static_cast<char32_t>(b) : next++;
      append_utf8(of_byte[static_cast<std::size_t>(b)], code);
      of_code[code] = b;
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet instance;
  return instance;
}

}  // namespace

const std::string& character_of_byte(unsigned char byte) { return byte_alphabet().of_byte[byte]; }
int byte_of_character(char32_t code) { return code < 512 ? byte_alphabet().of_code[code] : -1; }

void to_byte_alphabet(Piece& piece) {
  std::string out;
  out.reserve(piece.text.size() + 8);
  std::size_t from_first = 0;
  for (std::size_t i = 0; i < piece.text.size(); ++i) {
    out += character_of_byte(static_cast<unsigned char>(piece.text[i]));
    if (i + 1 == piece.from_first) from_first = out.size();
  }
  rewrite(piece, std::move(out), from_first);
}

}  // namespace switchyard::tokenizer
