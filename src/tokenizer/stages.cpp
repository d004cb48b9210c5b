#include "tokenizer/stages.h"

#include <utf8proc.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tokenizer/pattern.h"
#include "tokenizer/utf8.h"

namespace switchyard::tokenizer {

namespace {

using nlohmann::json;

constexpr const char* kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

std::string type_of(const json& value, const std::string& where) {
  if (!value.is_object() || !value.contains("type") || !value["type"].is_string())
    throw_input("{}: is not an object with a type", where);
  return value["type"];
}

template <class T>
T entry(const json& value, const char* key, const std::string& where, T fallback) {
  if (!value.contains(key) || value[key].is_null()) return fallback;
  try {
    return value[key].get<T>();
  } catch (const json::exception&) {
    throw_input("{}.{}: is {}, of another type than expected", where, key, value[key].dump());
  }
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

void to_nfc(std::string& text) {
  utf8proc_uint8_t* composed = nullptr;
  const auto size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                 static_cast<utf8proc_ssize_t>(text.size()), &composed,
                                 static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, std::free);
  if (size < 0) throw_input("the text cannot be normalised: {}", utf8proc_errmsg(size));
  text.assign(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(size));
}

// Cuts at each match; what lies between matches stays as pieces too. `keep`: matches stay as well.
void split_by(const Pattern& pattern, bool keep, std::vector<std::string>& pieces) {
  std::vector<std::string> cut;
  for (const std::string& piece : pieces) {
    std::size_t done = 0;
    pattern.each_match(piece, [&](std::size_t begin, std::size_t end) {
      if (begin > done) cut.push_back(piece.substr(done, begin - done));
      if (keep) cut.push_back(piece.substr(begin, end - begin));
      done = end;
    });
    if (done < piece.size()) cut.push_back(piece.substr(done));
  }
  pieces = std::move(cut);
}

std::string escaped(const std::string& literal) {
  std::string expression;
  for (const char c : literal) {
    if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c)))
      expression += '\\';
    expression += c;
  }
  return expression;
}

PreTokenizer make_split(const json& value, const std::string& where) {
  const json pattern = value.value("pattern", json());
  std::string expression;
  if (pattern.is_object() && pattern.size() == 1 && pattern.contains("Regex") && pattern["Regex"].is_string())
    expression = pattern["Regex"];
  else if (pattern.is_object() && pattern.size() == 1 && pattern.contains("String") &&
           pattern["String"].is_string())
    expression = escaped(pattern["String"]);
  else
    throw_input("{}.pattern: is {}, expected {{\"Regex\": ...}} or {{\"String\": ...}}", where, pattern.dump());
  const auto behavior = entry<std::string>(value, "behavior", where, "");
  if (behavior != "Isolated" && behavior != "Removed")
    throw_input("{}.behavior: is \"{}\", supported are Isolated and Removed", where, behavior);
  if (entry(value, "invert", where, false)) throw_input("{}.invert: true is not supported", where);
  return [compiled = Pattern(expression, where + ".pattern"), keep = behavior == "Isolated"](
             std::vector<std::string>& pieces, bool) { split_by(compiled, keep, pieces); };
}

PreTokenizer make_byte_level(const json& value, const std::string& where) {
  const bool prefix = entry(value, "add_prefix_space", where, true);
  const bool split = entry(value, "use_regex", where, true);
  return [prefix, split, pattern = Pattern(kGpt2, where)](std::vector<std::string>& pieces, bool) {
    if (prefix)
      for (std::string& piece : pieces)
        if (!piece.starts_with(' ')) piece.insert(piece.begin(), ' ');
    if (split) split_by(pattern, true, pieces);
    for (std::string& piece : pieces) {
      std::string mapped;
      for (const char c : piece) mapped += character_of_byte(static_cast<unsigned char>(c));
      piece = std::move(mapped);
    }
  };
}

PreTokenizer make_metaspace(const json& value, const std::string& where) {
  const auto mark = entry<std::string>(value, "replacement", where, "\xE2\x96\x81");
  const auto scheme = entry<std::string>(value, "prepend_scheme", where,
                                         entry(value, "add_prefix_space", where, true) ? "always" : "never");
  const bool split = entry(value, "split", where, true);
  if (scheme != "always" && scheme != "first" && scheme != "never")
    throw_input("{}.prepend_scheme: is \"{}\", supported are always, first and never", where, scheme);
  return [=](std::vector<std::string>& pieces, bool begins_text) {
    std::vector<std::string> cut;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      std::string piece = std::move(pieces[i]);
      replace_all(piece, " ", mark);
      const bool prepend = scheme == "always" || (scheme == "first" && begins_text && i == 0);
      if (prepend && !piece.starts_with(mark)) piece.insert(0, mark);
      for (std::size_t begin = 0; begin < piece.size();) {
        const std::size_t end = split ? std::min(piece.find(mark, begin + 1), piece.size()) : piece.size();
        cut.push_back(piece.substr(begin, end - begin));
        begin = end;
      }
    }
    pieces = std::move(cut);
  };
}

}  // namespace

Normalizer make_normalizer(const json& value, const std::string& where) {
  if (value.is_null()) return [](std::string&) {};
  const std::string type = type_of(value, where);
  if (type == "NFC") return to_nfc;
  if (type == "Prepend") {
    return [prefix = entry<std::string>(value, "prepend", where, "")](std::string& text) {
      if (!text.empty()) text.insert(0, prefix);
    };
  }
  if (type == "Replace") {
    const json pattern = value.value("pattern", json());
    if (!pattern.is_object() || !pattern.contains("String") || !pattern["String"].is_string() ||
        pattern["String"].get<std::string>().empty())
      throw_input("{}.pattern: is {}, supported is {{\"String\": ...}}", where, pattern.dump());
    return [from = pattern["String"].get<std::string>(), to = entry<std::string>(value, "content", where, "")](
               std::string& text) { replace_all(text, from, to); };
  }
  if (type == "Sequence") {
    std::vector<Normalizer> all;
    const json parts = value.value("normalizers", json::array());
    for (std::size_t i = 0; i < parts.size(); ++i)
      all.push_back(make_normalizer(parts[i], fmt::format("{}.normalizers[{}]", where, i)));
    return [all](std::string& text) {
      for (const Normalizer& each : all) each(text);
    };
  }
  throw_input("{}.type: normalizer \"{}\" is not supported; NFC, Prepend, Replace and Sequence are", where,
              type);
}

PreTokenizer make_pre_tokenizer(const json& value, const std::string& where) {
  if (value.is_null()) return [](std::vector<std::string>&, bool) {};
  const std::string type = type_of(value, where);
  if (type == "ByteLevel") return make_byte_level(value, where);
  if (type == "Split") return make_split(value, where);
  if (type == "Metaspace") return make_metaspace(value, where);
  if (type == "Digits") {
    const bool single = entry(value, "individual_digits", where, false);
    return [pattern = Pattern(single ? "\\p{N}" : "\\p{N}+", where)](std::vector<std::string>& pieces, bool) {
      split_by(pattern, true, pieces);
    };
  }
  if (type == "Sequence") {
    std::vector<PreTokenizer> all;
    const json parts = value.value("pretokenizers", json::array());
    for (std::size_t i = 0; i < parts.size(); ++i)
      all.push_back(make_pre_tokenizer(parts[i], fmt::format("{}.pretokenizers[{}]", where, i)));
    return [all](std::vector<std::string>& pieces, bool begins_text) {
      for (const PreTokenizer& each : all) each(pieces, begins_text);
    };
  }
  throw_input(
      "{}.type: pre-tokenizer \"{}\" is not supported; ByteLevel, Split, Digits, Metaspace and Sequence are",
      where, type);
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

}  // namespace switchyard::tokenizer
