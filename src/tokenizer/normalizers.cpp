#include <algorithm>

#include "core/error.h"
#include "tokenizer/json_parts.h"
#include "tokenizer/stages.h"
#include "tokenizer/unicode.h"

namespace switchyard::tokenizer {

namespace {

void keep_if(Piece& piece, bool (*keep)(char32_t)) {
  rewrite_characters(piece, [&](std::string& out, char32_t code) {
    if (keep(code)) append_utf8(out, code);
  });
}

std::size_t count_characters(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

void to_normal_form(Piece& piece, NormalForm form) {
  std::string out = normal_form(piece.text, form);
  // What the first character becomes may be joined with the next one, which leaves as many characters.
  std::size_t from_first = 0;
  for (std::size_t n = count_characters(normal_form(piece.text.substr(0, piece.from_first), form));
       n > 0 && from_first < out.size(); --n)
    from_first += character_size(out, from_first);
  rewrite(piece, std::move(out), from_first);
}

void strip(Piece& piece, bool left, bool right) {
  const std::string& text = piece.text;
  std::size_t begin = 0, end = 0;
  bool any = false;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t size = character_size(text, at);
    if (!is_space(code_of(std::string_view(text).substr(at, size)))) {
      if (!any) begin = at;
      any = true;
      end = at + size;
    }
    at += size;
  }
  if (!left) begin = 0;
  if (!right) end = text.size();
  if (!any && (left || right)) begin = end = 0;
  if (begin == 0 && end == text.size()) return;
  const std::size_t from_first = std::max(begin, std::min(end, piece.from_first)) - begin;
  rewrite(piece, text.substr(begin, end - begin), from_first);
}

void lowercase(Piece& piece) { rewrite_characters(piece, append_lowercase); }

// The cleaning of the NMT system: control characters go, other white space becomes a space.
void clean_as_nmt(Piece& piece) {
  rewrite_characters(piece, [](std::string& out, char32_t code) {
    if ((code >= 0x1 && code <= 0x8) || code == 0xB || (code >= 0xE && code <= 0x1F) || code == 0x7F ||
        code == 0x8F || code == 0x9F)
      return;
    const bool space = code == 0x9 || code == 0xA || code == 0xC || code == 0xD || code == 0x1680 ||
                       (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 ||
                       code == 0x2581 || code == 0xFEFF || code == 0xFFFD;
    append_utf8(out, space ? U' ' : code);
  });
}

bool is_chinese(char32_t code) {
  for (const auto& [first, last] : {std::pair<char32_t, char32_t>{0x4E00, 0x9FFF},
                                    {0x3400, 0x4DBF},
                                    {0x20000, 0x2A6DF},
                                    {0x2A700, 0x2B73F},
                                    {0x2B740, 0x2B81F},
                                    {0x2B920, 0x2CEAF},
                                    {0xF900, 0xFAFF},
                                    {0x2F800, 0x2FA1F}})
    if (code >= first && code <= last) return true;
  return false;
}

Normalizer make_bert(const Json& part, const std::string& where) {
  const bool clean = entry(part, "clean_text", where, true);
  const bool chinese = entry(part, "handle_chinese_chars", where, true);
  const bool lower = entry(part, "lowercase", where, true);
  const bool accents = entry(part, "strip_accents", where, lower);
  return [=](Piece& piece) {
    if (clean) {
      rewrite_characters(piece, [](std::string& out, char32_t code) {
        if (code == '\t' || code == '\n' || code == '\r')
          out += ' ';
        else if (code != 0 && code != 0xFFFD && !is_control(code))
          append_utf8(out, is_space(code) ? U' ' : code);
      });
    }
    if (chinese) {
      rewrite_characters(piece, [](std::string& out, char32_t code) {
        if (is_chinese(code)) out += ' ';
        append_utf8(out, code);
        if (is_chinese(code)) out += ' ';
      });
    }
    if (accents) {
      to_normal_form(piece, NormalForm::nfd);
      keep_if(piece, [](char32_t code) { return !is_nonspacing_mark(code); });
    }
    if (lower) lowercase(piece);
  };
}

}  // namespace

Normalizer make_normalizer(const Json& part, const std::string& where) {
  if (part.is_null()) return [](Piece&) {};
  const std::string type = type_of(part, where);
  if (type == "NFC") return [](Piece& piece) { to_normal_form(piece, NormalForm::nfc); };
  if (type == "NFD") return [](Piece& piece) { to_normal_form(piece, NormalForm::nfd); };
  if (type == "NFKC") return [](Piece& piece) { to_normal_form(piece, NormalForm::nfkc); };
  if (type == "NFKD") return [](Piece& piece) { to_normal_form(piece, NormalForm::nfkd); };
  if (type == "Lowercase") return lowercase;
  if (type == "StripAccents") {
    return [](Piece& piece) { keep_if(piece, [](char32_t code) { return !is_mark(code); }); };
  }
  if (type == "Nmt") return clean_as_nmt;
  if (type == "BertNormalizer") return make_bert(part, where);
  if (type == "ByteLevel") return to_byte_alphabet;
  if (type == "Strip") {
    return [left = entry(part, "strip_left", where, true),
            right = entry(part, "strip_right", where, true)](Piece& piece) { strip(piece, left, right); };
  }
  if (type == "Prepend") {
    return [before = entry<std::string>(part, "prepend", where, "")](Piece& piece) { prepend(piece, before); };
  }
  if (type == "Replace") {
    return [pattern = pattern_of(part, where), content = entry<std::string>(part, "content", where, "")](
               Piece& piece) { replace(piece, pattern.cut(piece.text), content); };
  }
  if (type == "Sequence") {
    std::vector<Normalizer> all;
    const Json::Array& parts = list_of(part, "normalizers", where);
    for (std::size_t i = 0; i < parts.size(); ++i)
      all.push_back(make_normalizer(parts[i], fmt::format("{}.normalizers[{}]", where, i)));
    return [all](Piece& piece) {
      for (const Normalizer& each : all) each(piece);
    };
  }
  throw_input(
      "{}.type: normalizer {} is not supported; NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, "
      "Replace, "
      "Prepend, Nmt, BertNormalizer, ByteLevel and Sequence are",
      where, in_quotes(type));
}

}  // namespace switchyard::tokenizer
