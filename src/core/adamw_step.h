// The numbers of one AdamW update, shared by the operator's contract and its backends.
#pragma once

#include <cstdint>

namespace switchyard {

struct AdamWStep {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  std::int64_t step;  // 1 for the first update: bias correction
};

}  // namespace switchyard
