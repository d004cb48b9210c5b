// How a router's chosen scores become weights, shared by the operator's contract and its backends.
#pragma once

namespace switchyard {

// Added to a sum of sigmoid scores before it divides, as in DeepSeek-V3: far from every expert all scores of a
// token are 0.
constexpr double kScoreSumEps = 1e-20;

struct SlotWeighting {
  bool normalise = false;  // divide by the sum over the token's slots, plus eps
  double scale = 1.0;      // multiplies the result
  double eps = 0.0;
};

}  // namespace switchyard
