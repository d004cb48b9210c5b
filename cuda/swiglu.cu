// A thread takes a pack of gates and the pack of ups that belongs to it: one pass over memory, which bounds it
// as long as a sigmoid costs a dozen instructions; hence the fast exponential and division.
#include "swiglu.h"

#include "for_each_pack.h"

namespace switchyard::cuda {

namespace {

// Within 2e-6 of the exact one, relatively, for gates of up to 20; 0 where the exponential overflows.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1, 1 + __expf(-x)); }

template <class T>
Rows<T> half_of(const Tensor& gate_up_R2F, int half) {
  const std::int64_t width = gate_up_R2F.dim(1) / 2;
  return rows_of<T>(gate_up_R2F.columns(half * width, width));
}

template <class T, int kSize>
struct Forward {
  Rows<T> out_RF;
  Rows<const T> gate_RF, up_RF;

  __device__ void operator()(std::int64_t r, std::int64_t f) const {
    const auto gate = load<kSize>(gate_RF[r] + f), up = load<kSize>(up_RF[r] + f);
    Elements<T, kSize> out;
    for (int i = 0; i < kSize; ++i) {
      const float g = to_float(gate.element[i]);
      out.element[i] = from_float<T>(g * sigmoid(g) * to_float(up.element[i]));
    }
    store<kSize>(out_RF[r] + f, out);
  }
};

template <class T, int kSize>
struct Backward {
  Rows<T> dgate_RF, dup_RF;  // may be gate_RF and up_RF: each thread writes where it alone has read
  Rows<const T> dout_RF, gate_RF, up_RF;

  __device__ void operator()(std::int64_t r, std::int64_t f) const {
    const auto gate = load<kSize>(gate_RF[r] + f), up = load<kSize>(up_RF[r] + f);
    const auto dout = load<kSize>(dout_RF[r] + f);
    Elements<T, kSize> dgate, dup;
    for (int i = 0; i < kSize; ++i) {
      const float g = to_float(gate.element[i]), s = sigmoid(g), d = to_float(dout.element[i]);
      dgate.element[i] = from_float<T>(d * to_float(up.element[i]) * s * (1 + g * (1 - s)));
      dup.element[i] = from_float<T>(d * g * s);
    }
    store<kSize>(dgate_RF[r] + f, dgate);
    store<kSize>(dup_RF[r] + f, dup);
  }
};

}  // namespace

void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Context& ctx) {
  with_element(out_RF.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(out_RF) && rows_are_packs<T>(gate_up_R2F), [&]<int kSize>() {
      for_each_pack<kSize>("swiglu_forward", out_RF.rows(), out_RF.dim(1), ctx,
                           Forward<T, kSize>{rows_of<T>(out_RF), half_of<const T>(gate_up_R2F, 0),
                                             half_of<const T>(gate_up_R2F, 1)});
    });
  });
}

void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F, Context& ctx) {
  with_element(dout_RF.dtype(), [&]<class T>() {
    const bool packs =
        rows_are_packs<T>(dgate_up_R2F) && rows_are_packs<T>(dout_RF) && rows_are_packs<T>(gate_up_R2F);
    with_pack<T>(packs, [&]<int kSize>() {
      for_each_pack<kSize>("swiglu_backward", dout_RF.rows(), dout_RF.dim(1), ctx,
                           Backward<T, kSize>{half_of<T>(dgate_up_R2F, 0), half_of<T>(dgate_up_R2F, 1),
                                              rows_of<const T>(dout_RF), half_of<const T>(gate_up_R2F, 0),
                                              half_of<const T>(gate_up_R2F, 1)});
    });
  });
}

}  // namespace switchyard::cuda
