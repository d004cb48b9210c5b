// How the operands of a product lie in memory.
#pragma once

namespace switchyard::ops::cuda {

// c_MN = a b, summed over K. All matrices are row-major; the names say the rows and columns that are stored.
enum class Form {
  mk_nk,  // a_MK, b_NK: a layer's output from its input and weight
  mk_kn,  // a_MK, b_KN: the input's gradient
  km_kn,  // a_KM, b_KN: the weight's gradient
};
// Whether neighbours in memory are neighbours in K.
constexpr bool a_along_k(Form form) { return form != Form::km_kn; }
constexpr bool b_along_k(Form form) { return form == Form::mk_nk; }

}  // namespace switchyard::ops::cuda
