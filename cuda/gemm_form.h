// How the operands of a product lie in memory.
#pragma once

namespace switchyard::ops::cuda {

// c_MN = a b, summed over K. All matrices are row-major; the names say the rows and columns that are stored.
enum class GemmLayout {
  nt,  // a_MK, b_NK: a layer's output from its input and weight
  nn,  // a_MK, b_KN: the input's gradient
  tn,  // a_KM, b_KN: the weight's gradient
};
// Whether neighbours in memory are neighbours in K.
constexpr bool a_along_k(GemmLayout layout) { return layout != GemmLayout::tn; }
constexpr bool b_along_k(GemmLayout layout) { return layout == GemmLayout::nt; }

}  // namespace switchyard::ops::cuda
