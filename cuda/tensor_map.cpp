#include "tensor_map.h"

#include "core/error.h"
#include "error.h"
#ifndef SWITCHYARD_SIMT
#include <cudaTypedefs.h>
#endif

namespace switchyard::ops::cuda {

bool fits_tensor_map(const BoxedMatrices& m) {
  constexpr std::int64_t kAligned = 8, kMostRows = std::int64_t{1} << 31, kMostStride = std::int64_t{1} << 38;
  return reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && m.stride % kAligned == 0 &&
         m.matrix_stride % kAligned == 0 && m.stride < kMostStride && m.matrix_stride < kMostStride &&
         m.matrices > 0 && m.rows > 0 && m.columns > 0 && m.matrices < kMostRows && m.rows < kMostRows &&
         m.columns < kMostRows;
}

#ifdef SWITCHYARD_SIMT

TensorMap make_tensor_map(const char* op, const BoxedMatrices& m, int box_rows) {
  SY_CHECK(fits_tensor_map(m) && box_rows > 0 && box_rows <= 256, "{}: matrices of which no map can be made",
           op);
  return {static_cast<const std::byte*>(m.data),
          {m.columns, m.rows, m.matrices},
          {2, 2 * m.stride, 2 * m.matrix_stride},
          {kBoxColumns, box_rows, 1}};
}

#else

namespace {

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

}  // namespace

TensorMap make_tensor_map(const char* op, const BoxedMatrices& m, int box_rows) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encode_tiled();
  const cuuint64_t size[3] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.rows),
                              static_cast<cuuint64_t>(m.matrices)};
  const cuuint64_t stride_bytes[2] = {static_cast<cuuint64_t>(2 * m.stride),
                                      static_cast<cuuint64_t>(2 * m.matrix_stride)};
  const cuuint32_t box[3] = {kBoxColumns, static_cast<cuuint32_t>(box_rows), 1}, every[3] = {1, 1, 1};
  TensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(m.data), size, stride_bytes, box,
             every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw_run(
        "CUDA: cuTensorMapEncodeTiled failed in {} with code {}, for {} matrices of {} x {}, strides {} and {}",
        op, static_cast<int>(result), m.matrices, m.rows, m.columns, m.stride, m.matrix_stride);
  return map;
}

#endif

}  // namespace switchyard::ops::cuda
