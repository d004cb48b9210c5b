// The frequencies of the rotary embedding: plain, scaled linearly, or by YaRN (Peng et al., arXiv 2309.00071).
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"

namespace switchyard::model {

// Radians a position for each of dim/2 pairs; `dim` elements of a head are rotated.
//   unscaled  theta^(-2i/dim);   linear  that / factor
//   yarn      a blend of both: pairs that turn often within the original context keep their frequency, those
//   that turn
//             less than once are slowed down by `factor` (section 3.2; bounds as transformers computes them)
std::vector<double> rope_frequencies(const config::Rope& rope, std::int64_t dim);

}  // namespace switchyard::model
