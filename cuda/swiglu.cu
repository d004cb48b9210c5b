// A thread takes a pack of gates and the pack of ups that belongs to it: one pass over memory, which bounds it
// as long as a sigmoid is cheap. Of experts, a warp takes a row in the backward pass: the weight's gradient is
// a sum over what it has in registers. How many rows there are only the device knows; blocks beyond them leave.
// All tensors f32, or all bf16; weight_R and dweight_R always f32.
#include "ops/swiglu.h"

#include "for_each_pack.h"
#include "silu.h"
#include "warp_per_row.h"

namespace switchyard::ops::cuda {

namespace {

template <class T>
Rows<T> half_of(const Tensor& gate_up_R2F, int half) {
  const std::int64_t width = gate_up_R2F.dim(1) / 2;
  return rows_of<T>(gate_up_R2F.columns(half * width, width));
}

// Which rows there are, and how much each counts. Null: all of them, once.
struct Routed {
  const int* n_rows = nullptr;
  const float* weight_R = nullptr;

  __device__ bool has(std::int64_t r) const { return n_rows == nullptr || r < *n_rows; }
  __device__ float weight(std::int64_t r) const { return weight_R == nullptr ? 1.0f : weight_R[r]; }
};
Routed routed(const Tensor& weight_R, const Tensor& offset_Ep) {
  return {offset_Ep.as<int>() + offset_Ep.rows() - 1, weight_R.as<float>()};
}

template <class T, int kSize>
struct Forward {
  Rows<T> out_RF;
  Rows<const T> gate_RF, up_RF;
  Routed rows;

  __device__ void operator()(std::int64_t r, std::int64_t f) const {
    if (!rows.has(r)) return;
    const auto gate = load<kSize>(gate_RF[r] + f), up = load<kSize>(up_RF[r] + f);
    const float weight = rows.weight(r);
    Elements<T, kSize> out;
    for (int i = 0; i < kSize; ++i)
      out.element[i] = from_float<T>(weight * (silu(to_float(gate.element[i])) * to_float(up.element[i])));
    store<kSize>(out_RF[r] + f, out);
  }
};

template <class T, int kSize>
struct Backward {
  Rows<T> dgate_RF, dup_RF;  // may be gate_RF and up_RF: each thread writes where it alone has read
  Rows<const T> dout_RF, gate_RF, up_RF;

  __device__ void operator()(std::int64_t r, std::int64_t f) const { pack(r, f, 1.0f); }
  // Returns these elements' part of the weight's gradient.
  __device__ float pack(std::int64_t r, std::int64_t f, float weight) const {
    const auto gate = load<kSize>(gate_RF[r] + f), up = load<kSize>(up_RF[r] + f);
    const auto dout = load<kSize>(dout_RF[r] + f);
    Elements<T, kSize> dgate, dup;
    float dweight = 0;
    for (int i = 0; i < kSize; ++i) {
      const SwiGluGradient d = swiglu_gradient(to_float(dout.element[i]), to_float(gate.element[i]),
                                               to_float(up.element[i]), weight);
      dgate.element[i] = from_float<T>(d.gate);
      dup.element[i] = from_float<T>(d.up);
      dweight += d.weight;
    }
    store<kSize>(dgate_RF[r] + f, dgate);
    store<kSize>(dup_RF[r] + f, dup);
    return dweight;
  }
};

// One warp a row.
template <class T, int kSize>
__global__ void __launch_bounds__(kTokenWarps* kWarp)
    expert_backward_kernel(Backward<T, kSize> backward, float* dweight_R, Routed rows, int width) {
  const std::int64_t r = index_of_warp();
  if (!rows.has(r)) return;  // the whole warp
  const float weight = rows.weight(r);
  float dweight = 0;
  for (int f = lane_of_warp() * kSize; f < width; f += kWarp * kSize) dweight += backward.pack(r, f, weight);
  dweight = reduce_warp<Sum>(dweight);
  if (lane_of_warp() == 0) dweight_R[r] = dweight;
}

void forward(const char* op, const Tensor& out_RF, const Tensor& gate_up_R2F, const Routed& rows,
             Context& ctx) {
  with_element(out_RF.dtype(), [&]<class T>() {
    with_pack<T>(rows_are_packs<T>(out_RF) && rows_are_packs<T>(gate_up_R2F), [&]<int kSize>() {
      for_each_pack<kSize>(op, out_RF.rows(), out_RF.dim(1), ctx,
                           Forward<T, kSize>{rows_of<T>(out_RF), half_of<const T>(gate_up_R2F, 0),
                                             half_of<const T>(gate_up_R2F, 1), rows});
    });
  });
}

// f.operator()(a Backward of the tensors' types)
template <class F>
void with_backward(const Tensor& dgate_up_R2F, const Tensor& dout_RF, const Tensor& gate_up_R2F, F&& f) {
  with_element(dout_RF.dtype(), [&]<class T>() {
    const bool packs =
        rows_are_packs<T>(dgate_up_R2F) && rows_are_packs<T>(dout_RF) && rows_are_packs<T>(gate_up_R2F);
    with_pack<T>(packs, [&]<int kSize>() {
      f(Backward<T, kSize>{half_of<T>(dgate_up_R2F, 0), half_of<T>(dgate_up_R2F, 1), rows_of<const T>(dout_RF),
                           half_of<const T>(gate_up_R2F, 0), half_of<const T>(gate_up_R2F, 1)});
    });
  });
}

}  // namespace

void swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Context& ctx) {
  forward("swiglu_forward", out_RF, gate_up_R2F, {}, ctx);
}

void swiglu_backward(Tensor dgate_up_R2F, Tensor dout_RF, Tensor gate_up_R2F, Context& ctx) {
  with_backward(dgate_up_R2F, dout_RF, gate_up_R2F, [&]<class T, int kSize>(const Backward<T, kSize>& each) {
    for_each_pack<kSize>("swiglu_backward", dout_RF.rows(), dout_RF.dim(1), ctx, each);
  });
}

void expert_swiglu_forward(Tensor out_RF, Tensor gate_up_R2F, Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  forward("expert_swiglu_forward", out_RF, gate_up_R2F, routed(weight_R, offset_Ep), ctx);
}

void expert_swiglu_backward(Tensor dgate_up_R2F, Tensor dweight_R, Tensor dout_RF, Tensor gate_up_R2F,
                            Tensor weight_R, Tensor offset_Ep, Context& ctx) {
  with_backward(dgate_up_R2F, dout_RF, gate_up_R2F, [&]<class T, int kSize>(const Backward<T, kSize>& each) {
    launch("expert_swiglu_backward", expert_backward_kernel<T, kSize>, one_warp_each(dout_RF.rows()), ctx, each,
           dweight_R.as<float>(), routed(weight_R, offset_Ep), dout_RF.dim(1));
  });
}

}  // namespace switchyard::ops::cuda
