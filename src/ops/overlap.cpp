#include "ops/overlap.h"

#include <omp.h>

#include <cmath>
#include <vector>

#include "ops/cpu/reduce.h"

namespace switchyard::ops {

namespace {

using namespace cpu;

// The outputs of one token: products of all of them with all.
template <class T>
class Outputs {
 public:
  explicit Outputs(std::int64_t n_slots)
      : row_(static_cast<std::size_t>(n_slots)), dot_(static_cast<std::size_t>(n_slots * n_slots)) {}
  void read(const Tensor& row_RD, const std::int32_t* slot_row, std::int64_t n_slots) {
    size_ = 0;
    for (std::int64_t k = 0; k < n_slots; ++k)
      if (slot_row[k] >= 0) row_[size_++] = slot_row[k];
    for (std::size_t j = 0; j < size(); ++j)
      for (std::size_t k = 0; k < size(); ++k)
        dot_[j * size_ + k] =
            k < j ? dot(k, j) : product(row_RD.row<T>(row_[j]), row_RD.row<T>(row_[k]), row_RD.dim(1));
  }
  std::size_t size() const { return size_; }
  std::int32_t row(std::size_t k) const { return row_[k]; }
  T pairs() const { return static_cast<T>(size() * (size() - 1)); }
  T norm(std::size_t k) const { return std::sqrt(dot(k, k) + static_cast<T>(kOverlapEps)); }
  T cosine(std::size_t j, std::size_t k) const { return dot(j, k) / (norm(j) * norm(k)); }

 private:
  static T product(const T* a, const T* b, std::int64_t n) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t d = 0; d < n; ++d) sum += a[d] * b[d];
    return sum;
  }
  T dot(std::size_t j, std::size_t k) const { return dot_[j * size_ + k]; }
  std::size_t size_ = 0;
  std::vector<std::int32_t> row_;
  std::vector<T> dot_;
};

// One a thread. Made before the threads begin: memory that runs out among them would end the program.
template <class T>
std::vector<Outputs<T>> outputs_of_threads(std::int64_t n_slots) {
  return std::vector<Outputs<T>>(static_cast<std::size_t>(omp_get_max_threads()), Outputs<T>(n_slots));
}

template <class T>
void expert_overlap_forward_on_cpu(Tensor sum_1, Tensor row_RD, Tensor slot_row_TK, Context& ctx) {
  const std::int64_t n_tokens = slot_row_TK.rows(), K = slot_row_TK.dim(1);
  ScratchScope scope(ctx.scratch);
  const Tensor of_token_T = ctx.scratch.take(Shape{n_tokens}, DType::f64);
  if (ctx.measures()) return;
  double* const overlap_T = of_token_T.as<double>();
  std::vector<Outputs<T>> outputs_X = outputs_of_threads<T>(K);
#pragma omp parallel if (row_RD.numel() >= kParallelElements)
  {
    Outputs<T>& outputs = outputs_X[static_cast<std::size_t>(omp_get_thread_num())];
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      outputs.read(row_RD, slot_row_TK.row<std::int32_t>(t), K);
      T sum = 0;
      for (std::size_t j = 0; j < outputs.size(); ++j)
        for (std::size_t k = 0; k < j; ++k) sum += 2 * outputs.cosine(j, k) * outputs.cosine(j, k);
      overlap_T[t] = outputs.size() > 1 ? static_cast<double>(sum / outputs.pairs()) : 0;
    }
  }
  double sum = 0;
  for (std::int64_t t = 0; t < n_tokens; ++t) sum += overlap_T[t];
  *sum_1.as<double>() = sum;
}

template <class T>
void expert_overlap_backward_on_cpu(Tensor drow_RD, Tensor row_RD, Tensor slot_row_TK, double scale) {
  const std::int64_t n_tokens = slot_row_TK.rows(), K = slot_row_TK.dim(1), D = row_RD.dim(1);
  std::vector<Outputs<T>> outputs_X = outputs_of_threads<T>(K);
#pragma omp parallel if (row_RD.numel() >= kParallelElements)
  {
    Outputs<T>& outputs = outputs_X[static_cast<std::size_t>(omp_get_thread_num())];
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      outputs.read(row_RD, slot_row_TK.row<std::int32_t>(t), K);
      if (outputs.size() < 2) continue;
      const T factor = static_cast<T>(4 * scale) / outputs.pairs();
      for (std::size_t j = 0; j < outputs.size(); ++j) {
        T* const drow = drow_RD.row<T>(outputs.row(j));
        T squares = 0;
        for (std::size_t k = 0; k < outputs.size(); ++k) {
          if (k == j) continue;
          const T cosine = outputs.cosine(j, k), share = factor * cosine / (outputs.norm(j) * outputs.norm(k));
          squares += cosine * cosine;
          const T* const other = row_RD.row<T>(outputs.row(k));
#pragma omp simd
          for (std::int64_t d = 0; d < D; ++d) drow[d] += share * other[d];
        }
        const T share = factor * squares / (outputs.norm(j) * outputs.norm(j));
        const T* const own = row_RD.row<T>(outputs.row(j));
#pragma omp simd
        for (std::int64_t d = 0; d < D; ++d) drow[d] -= share * own[d];
      }
    }
  }
}

}  // namespace

void expert_overlap_forward(Tensor sum_1, Tensor row_RD, Tensor slot_row_TK, Context& ctx) {
  const DType real = row_RD.dtype();
  Signature args(ctx);
  args(SY_ARG(sum_1), DType::f64)(SY_ARG(row_RD), real)(SY_ARG(slot_row_TK), DType::i32);
  measure(ctx, real, SY_CPU(expert_overlap_forward_on_cpu), sum_1, row_RD, slot_row_TK);
  run<&cuda::expert_overlap_forward>(ctx, real, SY_CPU(expert_overlap_forward_on_cpu), sum_1, row_RD,
                                     slot_row_TK);
}

void expert_overlap_backward(Tensor drow_RD, Tensor row_RD, Tensor slot_row_TK, double scale, Context& ctx) {
  const DType real = row_RD.dtype();
  Signature args(ctx);
  args(SY_ARG(drow_RD), real)(SY_ARG(row_RD), real)(SY_ARG(slot_row_TK), DType::i32);
  run<&cuda::expert_overlap_backward>(ctx, real, SY_CPU(expert_overlap_backward_on_cpu), drow_RD, row_RD,
                                      slot_row_TK, scale);
}

}  // namespace switchyard::ops
