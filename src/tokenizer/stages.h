// What a tokenizer.json does to a text before its model sees it: normalizers change it, pre-tokenizers cut it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/json.h"
#include "tokenizer/piece.h"

namespace switchyard::tokenizer {

using Normalizer = std::function<void(Piece& piece)>;
using PreTokenizer = std::function<void(std::vector<Piece>& pieces)>;  // cuts each piece further

// Each from its JSON, whose path in the file is `where`. Throw InputError naming the path of what is not
// supported.
Normalizer make_normalizer(const Json& json, const std::string& where);
PreTokenizer make_pre_tokenizer(const Json& json, const std::string& where);

// GPT-2's alphabet: the byte behind a printable character, and back.
const std::string& character_of_byte(unsigned char byte);
int byte_of_character(char32_t code);  // -1: none
void to_byte_alphabet(Piece& piece);   // each byte as its character

}  // namespace switchyard::tokenizer
