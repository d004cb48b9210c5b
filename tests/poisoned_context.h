// A context whose scratch space holds NaN wherever an operator has not yet written.
#pragma once

#include "core/context.h"

namespace switchyard::test {

struct PoisonedContext : Context {
  PoisonedContext() { scratch.set_poison(true); }
};

}  // namespace switchyard::test
