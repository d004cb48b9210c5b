// How a router's chosen scores become weights, shared by the operator's contract and its backends.
#pragma once

namespace switchyard {

struct SlotWeighting {
  bool normalise = false;  // divide by the sum over the token's slots, plus eps
  double scale = 1.0;      // multiplies the result
  double eps = 0.0;
};

}  // namespace switchyard
