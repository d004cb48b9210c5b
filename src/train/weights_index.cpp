#include "train/weights_index.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/json_text.h"

namespace switchyard::train {

std::map<std::string, std::string> parse_weights_index(std::string_view text, const std::string& origin) {
  const nlohmann::json index = parse_json_text(text, origin);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw_input("{}: is not an index of weights: it has no object \"weight_map\"", origin);
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string() || !is_plain_file_name(file.get<std::string>()))
      throw_input("{}: the file of tensor {} is not the name of a file beside it", origin, in_quotes(name));
    files.emplace(name, file.get<std::string>());
  }
  return files;
}

}  // namespace switchyard::train
