#include "tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <tuple>

#include "core/error.h"
#include "core/utf8.h"

namespace switchyard::tokenizer {

CodeSet::CodeSet(std::string_view text) {
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&] {
    std::uint32_t value = 0;
    const auto [stop, error] = std::from_chars(at, end, value, 16);
    SY_CHECK(error == std::errc(), "\"{}\" has no number at {}", text, at - text.data());
    at = stop;
    return static_cast<char32_t>(value);
  };
  for (; at < end; ++at) {
    const char32_t first = number();
    char32_t last = first;
    if (at < end && *at == '-') ++at, last = number();
    ranges_.emplace_back(first, last);
  }
  std::sort(ranges_.begin(), ranges_.end());
}

bool CodeSet::contains(char32_t code) const {
  const auto behind = std::upper_bound(ranges_.begin(), ranges_.end(), code,
                                       [](char32_t c, const auto& range) { return c < range.first; });
  return behind != ranges_.begin() && code <= std::prev(behind)->second;
}

namespace {

// Code points that have a property to the library and not to utf8proc, and the other way round.
struct Change {
  CodeSet more, less;
  bool operator()(bool of_utf8proc, char32_t code) const {
    return (of_utf8proc || more.contains(code)) && !less.contains(code);
  }
};

// Where Hugging Face's `tokenizers` 0.23.3 and utf8proc 2.8 differ over a code point, asked of both for each
// one: the library takes its properties from tables of Unicode 8 to 17, utf8proc from Unicode 15.
const Change kMark{
    CodeSet("1cf2-1cf3"),
    CodeSet("7fd,898-89f,8ca-8d3,9fe,afa-aff,b55,c04,c3c,cf3,d00,d3b-d3c,d81,eba,ece,1715,180f,1abf-1ace,"
            "1cf7,1df6-1dfa,a82c,a8ff,10d24-10d27,10eab-10eac,10efd-10eff,10f46-10f50,10f82-10f85,11070,"
            "11073-11074,110c2,11145-11146,111c9,111ce-111cf,11241,1133b,1145e,1182c-1183a,11930-11935,"
            "11937-11938,1193b-1193e,11940,11942-11943,119d1-119d7,119da-119e0,119e4,11a01-11a0a,"
            "11a33-11a39,11a3b-11a3e,11a47,11a51-11a5b,11a8a-11a99,11d31-11d36,11d3a,11d3c-11d3d,"
            "11d3f-11d45,11d47,11d8a-11d8e,11d90-11d91,11d93-11d97,11ef3-11ef6,11f00-11f01,11f03,"
            "11f34-11f3a,11f3e-11f42,13440,13447-13455,16f4f,16f7f-16f87,16fe4,16ff0-16ff1,1cf00-1cf2d,"
            "1cf30-1cf46,1e08f,1e130-1e136,1e2ae,1e2ec-1e2ef,1e4ec-1e4ef")};
const Change kNonspacing{
    CodeSet("1734"),
    CodeSet("7fd,898-89f,8ca-8e1,9fe,afa-aff,b55,c04,c3c,d00,d3b-d3c,d81,eba,ece,180f,1885-1886,1abf-1ace,"
            "1df6-1dfb,a82c,a8c5,a8ff,a9bd,10d24-10d27,10eab-10eac,10efd-10eff,10f46-10f50,10f82-10f85,"
            "11070,11073-11074,110c2,111c9,111cf,1123e,11241,1133b,11438-1143f,11442-11444,11446,1145e,"
            "1182f-11837,11839-1183a,1193b-1193c,1193e,11943,119d4-119d7,119da-119db,119e0,11a01-11a0a,"
            "11a33-11a38,11a3b-11a3e,11a47,11a51-11a56,11a59-11a5b,11a8a-11a96,11a98-11a99,11c30-11c36,"
            "11c38-11c3d,11c3f,11c92-11ca7,11caa-11cb0,11cb2-11cb3,11cb5-11cb6,11d31-11d36,11d3a,"
            "11d3c-11d3d,11d3f-11d45,11d47,11d90-11d91,11d95,11d97,11ef3-11ef4,11f00-11f01,11f36-11f3a,"
            "11f40,11f42,13440,13447-13455,16f4f,16fe4,1cf00-1cf2d,1cf30-1cf46,1e000-1e006,1e008-1e018,"
            "1e01b-1e021,1e023-1e024,1e026-1e02a,1e08f,1e130-1e136,1e2ae,1e2ec-1e2ef,1e4ec-1e4ef,"
            "1e944-1e94a")};
const Change kControl{CodeSet(""), CodeSet("890-891,8e2,110cd,13430-1343f")};
const Change kPunctuation{
    CodeSet("166d,111c9"),
    CodeSet("61d,9fd,a76,c77,c84,1b7d-1b7e,2e43-2e4f,2e52-2e5d,10ead,10f55-10f59,10f86-10f89,1144b-1144f,"
            "1145a-1145b,1145d,11660-1166c,116b9,1183b,11944-11946,119e2,11a3f-11a46,11a9a-11a9c,"
            "11a9e-11aa2,11b00-11b09,11c41-11c45,11c70-11c71,11ef7-11ef8,11f43-11f4f,11fff,12ff1-12ff2,"
            "16e97-16e9a,16fe2,1e95e-1e95f")};
const Change kNumeric{
    CodeSet("10d40-10d49,116d0-116e3,11bf0-11bf9,11de0-11de9,16130-16139,16d70-16d79,16ff4-16ff6,"
            "1ccf0-1ccf9,1e5f1-1e5fa"),
    CodeSet("")};
const Change kWord{
    CodeSet("897,1c89-1c8a,a7cb-a7cd,a7da-a7dc,105c0-105f3,10d40-10d65,10d69-10d6d,10d6f-10d85,10ec2-10ec4,"
            "10efc,11380-11389,1138b,1138e,11390-113b5,113b7-113c0,113c2,113c5,113c7-113ca,113cc-113d3,"
            "113e1-113e2,116d0-116e3,11bc0-11be0,11bf0-11bf9,11f5a,13460-143fa,16100-16139,16d40-16d6c,"
            "16d70-16d79,18cff,1ccf0-1ccf9,1e5d0-1e5fa,2ebf0-2ee5d"),
    CodeSet("")};
const CodeSet kUnknownToForms(
    "7fd,898-89f,8ca-8d3,9fe,c3c,d3b-d3c,eba,1715,1abf-1ace,1df6-1dfa,32ff,a7f2-a7f4,a82c,ab69,"
    "10781-10785,10787-107b0,107b2-107ba,10d24-10d27,10eab-10eac,10efd-10eff,10f46-10f50,10f82-10f85,"
    "11070,1133b,1145e,11839-1183a,11930,11935,11938,1193d-1193e,11943,119e0,11a34,11a47,11a99,11d42,"
    "11d44-11d45,11d97,11f41-11f42,16ff0-16ff1,1e030-1e06d,1e08f,1e130-1e136,1e2ae,1e2ec-1e2ef,"
    "1e4ec-1e4ef,1f16c,1fbf0-1fbf9");

utf8proc_category_t category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

bool between(utf8proc_category_t category, utf8proc_category_t first, utf8proc_category_t last) {
  return category >= first && category <= last;
}

std::string known_normal_form(std::string_view text, int options) {
  utf8proc_uint8_t* mapped = nullptr;
  const auto size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                 static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                                 static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, std::free);
  if (size < 0) throw_input("the text cannot be normalised: {}", utf8proc_errmsg(size));
  return {reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(size)};
}

}  // namespace

bool is_space(char32_t code) {
  return (code >= 0x9 && code <= 0xD) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
         code == 0x205F || code == 0x3000;
}

bool is_word(char32_t code) {
  const utf8proc_category_t found = category(code);
  // Letters and marks are all of Alphabetic but for numbers that are letters and the circled and squared ones.
  const bool word = between(found, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_NL) ||
                    found == UTF8PROC_CATEGORY_PC || code == 0x200C || code == 0x200D ||
                    (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
                    (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
  return kWord(word, code);
}

bool is_numeric(char32_t code) {
  return kNumeric(between(category(code), UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO), code);
}

bool is_punctuation(char32_t code) {
  if (code < 0x80)
    return (code > 0x20 && code < 0x30) || (code > 0x39 && code < 0x41) || (code > 0x5A && code < 0x61) ||
           (code > 0x7A && code < 0x7F);
  return kPunctuation(between(category(code), UTF8PROC_CATEGORY_PC, UTF8PROC_CATEGORY_PO), code);
}

bool is_mark(char32_t code) {
  return kMark(between(category(code), UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_ME), code);
}

bool is_nonspacing_mark(char32_t code) { return kNonspacing(category(code) == UTF8PROC_CATEGORY_MN, code); }

bool is_control(char32_t code) {
  const utf8proc_category_t found = category(code);
  const bool control =
      found == UTF8PROC_CATEGORY_CC || found == UTF8PROC_CATEGORY_CF || found == UTF8PROC_CATEGORY_CO;
  return kControl(control, code);
}

char32_t titlecase(char32_t code) {
  return static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code)));
}

void append_lowercase(std::string& text, char32_t code) {
  if (code == 0x130) {  // the only one whose full lowercase is two characters
    text += "i\xCC\x87";
    return;
  }
  // Cased letters that utf8proc does not know yet.
  for (const auto& [first, last, lower] : {std::tuple<char32_t, char32_t, char32_t>{0x1C89, 0x1C89, 0x1C8A},
                                           {0xA7CB, 0xA7CB, 0x264},
                                           {0xA7CC, 0xA7CC, 0xA7CD},
                                           {0xA7CE, 0xA7CE, 0xA7CF},
                                           {0xA7D2, 0xA7D2, 0xA7D3},
                                           {0xA7D4, 0xA7D4, 0xA7D5},
                                           {0xA7DA, 0xA7DA, 0xA7DB},
                                           {0xA7DC, 0xA7DC, 0x19B},
                                           {0x10D50, 0x10D65, 0x10D70},
                                           {0x16EA0, 0x16EB8, 0x16EBB}})
    if (code >= first && code <= last) return append_utf8(text, lower + (code - first));
  append_utf8(text, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
}

std::string normal_form(std::string_view text, NormalForm form) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; }))
    return std::string(text);
  const bool composed = form == NormalForm::nfc || form == NormalForm::nfkc;
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const int options =
      UTF8PROC_STABLE | (composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0);
  // Characters that the library's forms do not know stay as they are, and nothing is joined over them.
  std::string out;
  std::size_t done = 0;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t size = at < text.size() ? character_size(text, at) : 1;
    if (at == text.size() || kUnknownToForms.contains(code_of(text.substr(at, size)))) {
      if (at > done) out += known_normal_form(text.substr(done, at - done), options);
      if (at < text.size()) out += text.substr(at, size);
      done = at + size;
    }
    at += size;
  }
  return out;
}

}  // namespace switchyard::tokenizer
