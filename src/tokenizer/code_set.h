// A set of code points, written as ranges of hexadecimal numbers: "a7f2-a7f4,ab69".
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace switchyard::tokenizer {

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
