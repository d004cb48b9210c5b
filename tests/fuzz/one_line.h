// What every fuzz target holds a refusal to: an InputError of one line.
#pragma once

#include <cstdlib>
#include <string>

#include "core/error.h"

template <class F>
void attempt(F&& f) {
  try {
    f();
  } catch (const switchyard::InputError& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
}
