#include "cpu/swiglu.h"

#include "cpu/reduce.h"
#include "cpu/vector_math.h"

namespace switchyard::cpu {

template <class T>
void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F) {
  const Rows<T> out_rows(out_RF), gate_up_rows(gate_up_R2F);
  const std::int64_t width = out_RF.row_size();
#pragma omp parallel for schedule(static) if (out_RF.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < out_RF.rows(); ++r) {
    const T* gate = gate_up_rows[r];
    const T* up = gate + width;
    T* out = out_rows[r];
#pragma omp simd
    for (std::int64_t f = 0; f < width; ++f) out[f] = gate[f] * sigmoid_of(gate[f]) * up[f];
  }
}

template <class T>
void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F) {
  const Rows<T> dgate_up_rows(dgate_up_R2F), dout_rows(dout_RF), gate_up_rows(gate_up_R2F);
  const std::int64_t width = dout_RF.row_size();
#pragma omp parallel for schedule(static) if (dout_RF.numel() >= kParallelElements)
  for (std::int64_t r = 0; r < dout_RF.rows(); ++r) {
    const T* dout = dout_rows[r];
    const T* gate = gate_up_rows[r];
    const T* up = gate + width;
    T* dgate = dgate_up_rows[r];
    T* dup = dgate + width;
#pragma omp simd
    for (std::int64_t f = 0; f < width; ++f) {
      const T g = gate[f], u = up[f],
              sigmoid = sigmoid_of(g);  // read before dgate and dup, which may be their memory
      dgate[f] = dout[f] * u * sigmoid * (1 + g * (1 - sigmoid));
      dup[f] = dout[f] * g * sigmoid;
    }
  }
}

template void swiglu_forward<float>(Tensor, Tensor);
template void swiglu_forward<double>(Tensor, Tensor);
template void swiglu_backward<float>(Tensor, Tensor, Tensor);
template void swiglu_backward<double>(Tensor, Tensor, Tensor);

}  // namespace switchyard::cpu
