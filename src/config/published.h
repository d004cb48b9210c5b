// Keys of a published config.json that no layout here has. Many say that something is off, or what the layout
// does anyway, and such a model is this layout all the same.
#pragma once

#include <string_view>

#include "config/config.h"
#include "core/json.h"

namespace switchyard::config {

enum class Statement {
  without_effect,  // it is off, or is what the layout does
  contrary,        // it denies what the layout always does
  unknown          // it may ask for what is not there
};

// What `key`: `value` says of a model of this layout; `key` is not one that the layout's table has, nor another
// spelling of one.
Statement judge(const Layout& layout, std::string_view key, const Json& value);

}  // namespace switchyard::config
