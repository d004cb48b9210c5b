// model.safetensors.index.json: which file holds which tensor.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace switchyard::train {

constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kWeightsIndex = "model.safetensors.index.json";

// Tensor name -> file name, from the text of an index. Throws InputError naming `origin`.
std::map<std::string, std::string> parse_weights_index(std::string_view text, const std::string& origin);

}  // namespace switchyard::train
