// Not part of the emulated sources: the library runs on a device only.
#ifndef SWITCHYARD_SIMT

#include "gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <compare>
#include <map>
#include <memory>

#include "core/error.h"
#include "launch.h"

namespace switchyard::ops::cuda {

namespace {

constexpr std::int64_t kWorkspaceBytes = 32 << 20;  // what NVIDIA advises for Hopper

void check(cublasStatus_t status, const char* op, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw_run("cuBLASLt: {} failed in {} with '{}'; run with CUBLASLT_LOG_LEVEL=2 to see what it was asked for",
            call, op, cublasLtGetStatusString(status));
}

template <auto kDestroy>
struct Destroy {
  template <class T>
  void operator()(T* object) const {
    (void)kDestroy(object);  // a destructor has nobody to tell
  }
};
using Handle = std::unique_ptr<cublasLtContext, Destroy<cublasLtDestroy>>;
using Description = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy<cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy<cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy<cublasLtMatmulPreferenceDestroy>>;

// A matrix as far as the choice of an algorithm depends on it.
struct MatrixKind {
  DType dtype;
  std::int64_t rows, columns, stride;
  // Bytes. cuBLASLt tells apart up to 256; every tensor begins at a multiple of kAlignment, and what more it
  // has by chance would choose another algorithm, with other bits, for the same tensor in another place.
  std::uint32_t alignment;

  explicit MatrixKind(const Matrix& m)
      : dtype(m.dtype), rows(m.rows), columns(m.columns), stride(m.rows > 1 ? m.stride : m.columns) {
    const auto address = reinterpret_cast<std::uintptr_t>(m.data) | kAlignment;
    alignment = static_cast<std::uint32_t>(address & (~address + 1));  // the lowest bit that is set
  }
  auto operator<=>(const MatrixKind&) const = default;
};
struct Problem {
  GemmLayout layout;
  MatrixKind c_MN, a, b, addend_MN;  // without an addend: as c
  auto operator<=>(const Problem&) const = default;
};

struct Plan {
  Description product;
  Layout c, a, b, addend;
  bool possible = false;
  cublasLtMatmulAlgo_t algorithm{};
};

cudaDataType_t type_of(DType dtype) {
  SY_CHECK(dtype == DType::f32 || dtype == DType::bf16, "a product of {}", name_of(dtype));
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

// cuBLASLt counts matrices by columns: our rows are its columns.
Layout layout_of(const MatrixKind& m, const char* op) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type_of(m.dtype), static_cast<std::uint64_t>(m.columns),
                                   static_cast<std::uint64_t>(m.rows), m.stride),
        op, "cublasLtMatrixLayoutCreate");
  return Layout(layout);
}

// By columns our c is c_NM = b^T a^T, which makes b the first operand.
Plan make_plan(cublasLtHandle_t handle, const Problem& problem, const char* op) {
  // Pedantic: neither TF32 nor sums of several bf16 stand for float32.
  const cublasComputeType_t compute =
      problem.a.dtype == DType::f32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
  cublasLtMatmulDesc_t description = nullptr;
  check(cublasLtMatmulDescCreate(&description, compute, CUDA_R_32F), op, "cublasLtMatmulDescCreate");
  Plan plan{Description(description), layout_of(problem.c_MN, op), layout_of(problem.a, op),
            layout_of(problem.b, op), layout_of(problem.addend_MN, op)};
  const auto describe = [&](cublasLtMatmulDescAttributes_t attribute, cublasOperation_t operation) {
    check(cublasLtMatmulDescSetAttribute(description, attribute, &operation, sizeof operation), op,
          "cublasLtMatmulDescSetAttribute");
  };
  describe(CUBLASLT_MATMUL_DESC_TRANSA, b_along_k(problem.layout) ? CUBLAS_OP_T : CUBLAS_OP_N);
  describe(CUBLASLT_MATMUL_DESC_TRANSB, a_along_k(problem.layout) ? CUBLAS_OP_N : CUBLAS_OP_T);

  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), op, "cublasLtMatmulPreferenceCreate");
  const Preference owned(preference);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), op,
          "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(kWorkspaceBytes));
  // A sum that is split stays in float32 until it is whole.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.b.alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.a.alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.addend_MN.alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.c_MN.alignment);
  cublasLtMatmulHeuristicResult_t best{};
  int n_found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, description, plan.b.get(), plan.a.get(), plan.addend.get(),
                                     plan.c.get(), preference, 1, &best, &n_found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return plan;
  check(status, op, "cublasLtMatmulAlgoGetHeuristic");
  if (n_found == 0) return plan;
  check(best.state, op, "cublasLtMatmulAlgoGetHeuristic");
  plan.possible = true;
  plan.algorithm = best.algo;
  return plan;
}

// A thread's handle and the plans it has made: to make one takes longer than a small product.
class Library {
 public:
  explicit Library(const char* op) {
    cublasLtHandle_t handle = nullptr;
    check(cublasLtCreate(&handle), op, "cublasLtCreate");
    handle_.reset(handle);
  }
  cublasLtHandle_t handle() const { return handle_.get(); }
  const Plan& plan_for(const Problem& problem, const char* op) {
    auto found = plans_.find(problem);
    if (found == plans_.end()) found = plans_.emplace(problem, make_plan(handle(), problem, op)).first;
    return found->second;
  }

 private:
  Handle handle_;
  std::map<Problem, Plan> plans_;
};

}  // namespace

std::string cublas_version() {
  const std::size_t version = cublasLtGetVersion();
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

bool cublaslt_multiply(const char* op, GemmLayout layout, const Matrix& c_MN, const Matrix& a, const Matrix& b,
                       const Tensor& addend_MN, Context& ctx) {
  if (is_turned_off("SWITCHYARD_NO_CUBLASLT")) return false;
  thread_local Library library(op);
  const Matrix added = addend_MN.defined() ? Matrix(addend_MN) : c_MN;  // not read where beta is 0
  const Plan& plan =
      library.plan_for({layout, MatrixKind(c_MN), MatrixKind(a), MatrixKind(b), MatrixKind(added)}, op);
  if (!plan.possible) return false;
  note_launch(op, &plan);
  ScratchScope scope(ctx.scratch);  // allocated once, and used in the stream's order
  const Tensor workspace = ctx.scratch.take({kWorkspaceBytes / size_of(DType::f32)}, DType::f32);
  const float alpha = 1, beta = addend_MN.defined() ? 1 : 0;
  check(cublasLtMatmul(library.handle(), plan.product.get(), &alpha, b.data, plan.b.get(), a.data, plan.a.get(),
                       &beta, added.data, plan.addend.get(), c_MN.data, plan.c.get(), &plan.algorithm,
                       workspace.raw(), static_cast<std::size_t>(kWorkspaceBytes), stream_of(ctx)),
        op, "cublasLtMatmul");
  return true;
}

}  // namespace switchyard::ops::cuda

#endif  // SWITCHYARD_SIMT
