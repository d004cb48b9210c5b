// What a tokenizer.json does to a text before its model sees it: normalizers change it, pre-tokenizers cut it.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace switchyard::tokenizer {

using Normalizer = std::function<void(std::string& text)>;
// Cuts each piece further. `begins_text`: whether the first piece stands at the beginning of the text.
using PreTokenizer = std::function<void(std::vector<std::string>& pieces, bool begins_text)>;

// Each from its JSON, whose path in the file is `where`. Throw InputError naming the path of what is not
// supported.
Normalizer make_normalizer(const nlohmann::json& json, const std::string& where);
PreTokenizer make_pre_tokenizer(const nlohmann::json& json, const std::string& where);

// GPT-2's alphabet: the byte behind a printable character, and back.
const std::string& character_of_byte(unsigned char byte);
int byte_of_character(char32_t code);  // -1: none

}  // namespace switchyard::tokenizer
