// Two tensors of one meaning, of queries and of keys, where an operator treats both alike.
#pragma once

#include "core/tensor.h"

namespace switchyard {

struct QueryKey {
  Tensor q, k;
};

}  // namespace switchyard
