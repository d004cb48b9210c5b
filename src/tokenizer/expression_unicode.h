// What regular expressions know of Unicode.
#pragma once

#include <oniguruma.h>

namespace switchyard::tokenizer {

// Oniguruma's UTF-8, whose properties are those of the Oniguruma that Hugging Face's library is built with
// (6.9.10, Unicode 16), also where the system's is older. Lasts as long as the program.
OnigEncoding expression_encoding();

}  // namespace switchyard::tokenizer
