// What a word that is not known was meant to be: another spelling of one that is, or another name for it.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace switchyard::config {

// Of `words` the one that `word` is a misspelling of: the same words between the underscores but for a letter
// or two, or with the underscores elsewhere. Empty where there is none: a word too many, or a whole other one,
// is another meaning ("shared_expert_intermediate_size" is no "moe_intermediate_size").
std::string_view nearest(std::string_view word, std::span<const std::string_view> words);

// The full path of the key ("train.lr") that other programs call `key`, for one that stands in `section`
// ("train", "model", "data.train.N"); empty where no key has that meaning. `has` tells whether a path exists:
// the layouts call the number of experts by three names. `unsure`: also a meaning that a key has beside one of
// its own, for a value that does not fit the latter (top_k: of the experts, or of sampling).
std::string_view meant_by(std::string_view section, std::string_view key,
                          const std::function<bool(std::string_view path)>& has, bool unsure = false);

// Lower case, without '_' and '-'.
std::string letters_of(std::string_view word);

}  // namespace switchyard::config
