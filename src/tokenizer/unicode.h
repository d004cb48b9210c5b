// What is known of Unicode: properties and normal forms by utf8proc, and what regular expressions know.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct OnigEncodingTypeST;

namespace switchyard::tokenizer {

bool is_space(char32_t code);            // White_Space
bool is_word(char32_t code);             // \w of UTS 18: letters, marks, digits, connectors, the two joiners
bool is_numeric(char32_t code);          // general category N
bool is_punctuation(char32_t code);      // general category P, or ASCII punctuation
bool is_mark(char32_t code);             // general category M
bool is_nonspacing_mark(char32_t code);  // general category Mn
bool is_control(char32_t code);          // general categories Cc, Cf, Co
void append_lowercase(std::string& text, char32_t code);
char32_t titlecase(char32_t code);  // one character of the same length in letters; others stay

enum class NormalForm { nfc, nfd, nfkc, nfkd };
std::string normal_form(std::string_view text, NormalForm form);

// Oniguruma's UTF-8, whose properties are those of the Oniguruma that Hugging Face's library is built with
// (6.9.10, Unicode 16), also where the system's is older. Lasts as long as the program.
OnigEncodingTypeST* expression_encoding();

// A set of code points, written as ranges of hexadecimal numbers: "a7f2-a7f4,ab69".
class CodeSet {
 public:
  explicit CodeSet(std::string_view ranges);
  bool contains(char32_t code) const;
  const std::vector<std::pair<char32_t, char32_t>>& ranges() const {
    return ranges_;
  }  // both ends belong to it

 private:
  std::vector<std::pair<char32_t, char32_t>> ranges_;  // ascending
};

}  // namespace switchyard::tokenizer
