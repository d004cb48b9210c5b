// Properties and normal forms of Unicode, by utf8proc.
#pragma once

#include <string>
#include <string_view>

namespace switchyard::tokenizer {

bool is_space(char32_t code);            // White_Space
bool is_word(char32_t code);             // \w of UTS 18: letters, marks, digits, connectors, the two joiners
bool is_numeric(char32_t code);          // general category N
bool is_punctuation(char32_t code);      // general category P, or ASCII punctuation
bool is_mark(char32_t code);             // general category M
bool is_nonspacing_mark(char32_t code);  // general category Mn
bool is_control(char32_t code);          // general categories Cc, Cf, Co
void append_lowercase(std::string& text, char32_t code);

enum class NormalForm { nfc, nfd, nfkc, nfkd };
std::string normal_form(std::string_view text, NormalForm form);

}  // namespace switchyard::tokenizer
