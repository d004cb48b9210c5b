#include "tensor_map.h"

#include "core/error.h"
#include "error.h"
#ifndef SWITCHYARD_SIMT
#include <cudaTypedefs.h>
#endif

namespace switchyard::ops::cuda {

namespace {

// The dimensions of a map, the innermost first, whose elements lie side by side.
struct Dimensions {
  static constexpr int kMost = 4;
  int count;
  DType dtype;
  std::int64_t size[kMost], stride[kMost], box[kMost];
};
Dimensions dimensions_of(const BoxedMatrices& m, int box_rows) {
  return {3,
          m.dtype,
          {m.columns, m.rows, m.matrices, 1},
          {1, m.stride, m.matrix_stride, 0},
          {kBoxBytes / size_of(m.dtype), box_rows, 1, 1}};
}
Dimensions dimensions_of(const BoxedHeads& m, int box_rows, int box_heads) {
  return {4,
          DType::bf16,
          {m.columns, m.heads, m.rows, m.matrices},
          {1, m.columns, m.stride, m.matrix_stride},
          {kBoxColumns, box_heads, box_rows, 1}};
}

bool fits(const void* data, const Dimensions& dimensions) {
  constexpr std::int64_t kMostSize = std::int64_t{1} << 31, kMostStride = std::int64_t{1} << 38;
  const std::int64_t aligned = 16 / size_of(dimensions.dtype);
  for (int i = 0; i < dimensions.count; ++i) {
    const std::int64_t size = dimensions.size[i], stride = dimensions.stride[i];
    if (size <= 0 || size >= kMostSize) return false;
    if (i > 0 && (stride % aligned != 0 || stride >= kMostStride)) return false;
  }
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

#ifdef SWITCHYARD_SIMT

TensorMap make(const char* op, const void* data, const Dimensions& d) {
  SY_CHECK(fits(data, d), "{}: a tensor of which no map can be made", op);
  TensorMap map{static_cast<const std::byte*>(data), {}, {}, {}};
  for (int i = 0; i < Dimensions::kMost; ++i) {
    SY_CHECK(d.box[i] > 0 && d.box[i] <= 256, "{}: a box of which no map can be made", op);
    map.size[i] = d.size[i];
    map.stride_bytes[i] = size_of(d.dtype) * d.stride[i];
    map.box[i] = static_cast<int>(d.box[i]);
  }
  return map;
}

#else

// The function is the driver's. Asked for at run time, so that the program starts where there is no driver.
PFN_cuTensorMapEncodeTiled_v12000 encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  SY_CUDA(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
  if (result != cudaDriverEntryPointSuccess || function == nullptr)
    throw_run("CUDA: the driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12.0 or newer");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

TensorMap make(const char* op, const void* data, const Dimensions& d) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encode_tiled();
  cuuint64_t size[Dimensions::kMost], stride_bytes[Dimensions::kMost - 1];
  cuuint32_t box[Dimensions::kMost], every[Dimensions::kMost];
  for (int i = 0; i < d.count; ++i) {
    size[i] = static_cast<cuuint64_t>(d.size[i]);
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(size_of(d.dtype) * d.stride[i]);
    box[i] = static_cast<cuuint32_t>(d.box[i]);
    every[i] = 1;
  }
  SY_CHECK(d.dtype == DType::bf16 || d.dtype == DType::f32, "{}: boxes of {}", op, name_of(d.dtype));
  const CUtensorMapDataType type =
      d.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  TensorMap map;
  const CUresult result =
      encode(&map, type, static_cast<cuuint32_t>(d.count), const_cast<void*>(data), size, stride_bytes, box,
             every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw_run(
        "CUDA: cuTensorMapEncodeTiled failed in {} with code {}, for sizes {}, {}, {}, {}, strides {}, {}, {}",
        op, static_cast<int>(result), d.size[0], d.size[1], d.size[2], d.size[3], d.stride[1], d.stride[2],
        d.stride[3]);
  return map;
}

#endif

}  // namespace

bool fits_tensor_map(const BoxedMatrices& m) { return fits(m.data, dimensions_of(m, 1)); }
bool fits_tensor_map(const BoxedHeads& m) { return fits(m.data, dimensions_of(m, 1, 1)); }
TensorMap make_tensor_map(const char* op, const BoxedMatrices& m, int box_rows) {
  return make(op, m.data, dimensions_of(m, box_rows));
}
TensorMap make_tensor_map(const char* op, const BoxedHeads& m, int box_rows, int box_heads) {
  return make(op, m.data, dimensions_of(m, box_rows, box_heads));
}

}  // namespace switchyard::ops::cuda
