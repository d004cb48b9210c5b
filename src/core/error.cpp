#include "core/error.h"

namespace switchyard {

void throw_broken_invariant(const char* expression, const char* file, int line, const std::string& why) {
  throw std::logic_error(
      fmt::format("internal error: {} [{} at {}:{}]; please report it", why, expression, file, line));
}

}  // namespace switchyard
