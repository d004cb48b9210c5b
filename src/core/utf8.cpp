#include "core/utf8.h"

namespace switchyard {

namespace {
constexpr const char* kReplacement = "\xEF\xBF\xBD";
}

// The table of well-formed sequences of the Unicode standard (3-7).
Character character_at(std::string_view text, std::size_t at) {
  using State = Character::State;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {State::whole, 1};
  const std::size_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (size == 0) return {State::broken, 1};
  unsigned char low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (std::size_t i = 1; i < size; ++i) {
    if (at + i >= text.size()) return {State::cut, i};
    if (byte(i) < low || byte(i) > high) return {State::broken, i};
    low = 0x80, high = 0xBF;
  }
  return {State::whole, size};
}

std::optional<std::size_t> first_invalid_byte(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    if (character.state != Character::State::whole) return at;
    at += character.size;
  }
  return std::nullopt;
}

std::size_t character_size(std::string_view text, std::size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

void append_utf8(std::string& text, char32_t code) {
  const auto put = [&](char32_t bits) { text += static_cast<char>(static_cast<unsigned char>(bits)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xE0 | code >> 12);
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
    }
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

char32_t code_of(std::string_view character) {
  const auto lead = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return lead;
  char32_t code = lead & (0x7F >> character.size());
  for (std::size_t i = 1; i < character.size(); ++i)
    code = code << 6 | (static_cast<unsigned char>(character[i]) & 0x3F);
  return code;
}

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  return take(false);
}

std::string Utf8Stream::finish() { return take(true); }

std::string Utf8Stream::take(bool last) {
  std::string whole;
  std::size_t at = 0;
  while (at < pending_.size()) {
    const Character character = character_at(pending_, at);
    if (character.state == Character::State::cut && !last) break;
    if (character.state == Character::State::whole)
      whole.append(pending_, at, character.size);
    else
      whole += kReplacement;
    at += character.size;
  }
  pending_.erase(0, at);
  return whole;
}

}  // namespace switchyard
