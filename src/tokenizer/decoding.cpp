#include "tokenizer/decoding.h"

#include "core/error.h"
#include "core/utf8.h"
#include "tokenizer/json_parts.h"
#include "tokenizer/stages.h"

namespace switchyard::tokenizer {

namespace {

std::string replaced(const std::string& text, const std::vector<Match>& matches, const std::string& content) {
  std::string out;
  for (const Match& match : matches)
    out += match.matched ? content : text.substr(match.begin, match.end - match.begin);
  return out;
}

std::string bytes_of(const std::string& token) {
  std::string bytes;
  for (std::size_t at = 0; at < token.size();) {
    const std::size_t size = character_size(token, at);
    const int value = byte_of_character(code_of(std::string_view(token).substr(at, size)));
    if (value < 0) return token;  // not of the alphabet: it stands for itself
    bytes += static_cast<char>(value);
    at += size;
  }
  return bytes;
}

std::optional<char> named_byte(const std::string& token) {
  unsigned byte = 0;
  const auto is_digit = [&](std::size_t i) { return std::isxdigit(static_cast<unsigned char>(token[i])) != 0; };
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>' || !is_digit(3) || !is_digit(4) ||
      std::sscanf(token.c_str(), "<0x%2X>", &byte) != 1)
    return std::nullopt;
  return static_cast<char>(byte);
}

}  // namespace

class DecodedStream final : public TextStream {
 public:
  DecodedStream(const Decoding& decoding, const std::vector<std::optional<Decoding::Part>>& parts)
      : decoding_(decoding), parts_(parts) {}

  std::string push(std::int32_t token) override {
    const auto at = static_cast<std::size_t>(token);
    if (token < 0 || at >= parts_.size() || !parts_[at]) return "";
    const Decoding::Part& part = *parts_[at];
    if (part.byte) {
      run_ += part.text;
      return "";
    }
    std::string text = end_run() + part.text;
    if (decoding_.spaced_ && begun_) text.insert(text.begin(), ' ');
    begun_ = true;
    if (decoding_.hold_last_) {
      std::swap(text, held_);
      text = replaced(text, Pattern::literal(decoding_.suffix_).cut(text), " ");
    }
    return characters_.push(text);
  }

  std::string finish() override {
    std::string text = end_run();
    if (!held_.empty()) text += replaced(held_, Pattern::literal(decoding_.suffix_).cut(held_), "");
    held_.clear();
    return characters_.push(text) + characters_.finish();
  }

 private:
  // A run of named bytes is text as a whole, or one U+FFFD a byte.
  std::string end_run() {
    std::string text = std::exchange(run_, "");
    if (first_invalid_byte(text)) {
      std::string replacements;
      for (std::size_t i = 0; i < text.size(); ++i) replacements += "\xEF\xBF\xBD";
      text = replacements;
    }
    if (!text.empty())
      for (const Decoding::Change& change : decoding_.behind_) change(text);
    return text;
  }

  const Decoding& decoding_;
  const std::vector<std::optional<Decoding::Part>>& parts_;
  Utf8Stream characters_;
  std::string run_, held_;
  bool begun_ = false;
};

Decoding::Decoding(const Json& decoder, const std::string& where) {
  if (decoder.is_null())
    spaced_ = true;
  else
    read(decoder, where);
}

void Decoding::add(Change change) { (byte_fallback_ ? behind_ : before_).push_back(std::move(change)); }

void Decoding::read(const Json& decoder, const std::string& where) {
  const std::string type = type_of(decoder, where);
  if (type == "Sequence") {
    const Json::Array& parts = list_of(decoder, "decoders", where);
    for (std::size_t i = 0; i < parts.size(); ++i) read(parts[i], fmt::format("{}.decoders[{}]", where, i));
    return;
  }
  if (byte_level_ || hold_last_ || (byte_fallback_ && type != "Fuse" && type != "Strip" && type != "Replace"))
    throw_input("{}.type: {} behind ByteLevel, BPEDecoder or ByteFallback is not supported", where,
                in_quotes(type));
  if (fused_ && type != "Strip" && type != "Fuse")
    throw_input("{}.type: {} behind Fuse is not supported", where, in_quotes(type));
  if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Replace") {
    add([pattern = pattern_of(decoder, where), content = entry<std::string>(decoder, "content", where, "")](
            std::string& text) { text = replaced(text, pattern.cut(text), content); });
  } else if (type == "Metaspace") {
    add([mark = Pattern::literal(character_of(decoder, "replacement", where, "\xE2\x96\x81"))](
            std::string& text) { text = replaced(text, mark.cut(text), " "); });
  } else if (type == "BPEDecoder") {
    suffix_ = entry<std::string>(decoder, "suffix", where, "</w>");
    if (suffix_.empty()) throw_input("{}.suffix: is empty", where);
    hold_last_ = true;
  } else if (type == "Strip") {
    read_strip(decoder, where);
  } else {
    throw_input(
        "{}.type: decoder {} is not supported; ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, "
        "BPEDecoder and Sequence are",
        where, in_quotes(type));
  }
}

void Decoding::read_strip(const Json& decoder, const std::string& where) {
  const std::string content = character_of(decoder, "content", where, " ");
  const auto start = entry<std::int64_t>(decoder, "start", where, 0);
  const auto stop = entry<std::int64_t>(decoder, "stop", where, 0);
  if (fused_) {
    // Of the whole text: its beginning is in front of what is decoded here, its end is not known before it
    // comes.
    if (stop > 0) throw_input("{}.stop: is {} behind Fuse, supported is 0", where, stop);
    return;
  }
  add([=](std::string& text) {
    for (std::int64_t i = 0; i < start && text.starts_with(content); ++i) text.erase(0, content.size());
    for (std::int64_t i = 0; i < stop && text.ends_with(content); ++i) text.erase(text.size() - content.size());
  });
}

Decoding::Part Decoding::part_of(std::string token) const {
  for (const Change& change : before_) change(token);
  if (byte_fallback_)
    if (const auto byte = named_byte(token)) return {std::string(1, *byte), true};
  for (const Change& change : behind_) change(token);
  return {byte_level_ ? bytes_of(token) : std::move(token), false};
}

std::unique_ptr<TextStream> Decoding::stream(const std::vector<std::optional<Part>>& parts) const {
  return std::make_unique<DecodedStream>(*this, parts);
}

}  // namespace switchyard::tokenizer
