#include "ops/token_rows.h"

#include <algorithm>
#include <vector>

#include "ops/elementwise.h"

namespace switchyard::ops {

namespace {

bool has_expert(const Tensor& expert_TK, std::int64_t t, std::int64_t place, std::int64_t experts_each) {
  const std::int32_t* const expert = expert_TK.row<std::int32_t>(t);
  return std::any_of(expert, expert + expert_TK.dim(1),
                     [&](std::int32_t e) { return e >= 0 && e / experts_each == place; });
}

template <class T>
void spread_rows_on_cpu(std::span<const Tensor> to_N, Tensor bytes_1, Tensor x_TD, Tensor expert_TK,
                        ExpertPlaces places) {
  for (std::int64_t t = 0; t < x_TD.rows(); ++t)
    for (std::size_t p = 0; p < to_N.size(); ++p) {
      if (!has_expert(expert_TK, t, static_cast<std::int64_t>(p), places.experts_each)) continue;
      std::copy_n(x_TD.row<T>(t), x_TD.row_size(), to_N[p].row<T>(places.place * x_TD.rows() + t));
      if (static_cast<int>(p) != places.place)
        *bytes_1.as<double>() += static_cast<double>(x_TD.row_size() * size_of(x_TD.dtype()));
    }
}

template <class T>
void collect_rows_on_cpu(Tensor out_TD, Tensor bytes_1, Tensor addend_TD, std::span<const Tensor> from_N,
                         Tensor expert_TK, ExpertPlaces places, Context& ctx) {
  std::vector<T> zero_D(static_cast<std::size_t>(out_TD.row_size()));
  const auto row_of = [&](const Tensor& x, std::int64_t row) {
    return x.defined() ? x.slice(row, 1) : Tensor{};
  };
  for (std::int64_t t = 0; t < out_TD.rows(); ++t) {
    std::vector<Tensor> leaf_N;
    for (std::size_t p = 0; p < from_N.size(); ++p) {
      const bool is_there = has_expert(expert_TK, t, static_cast<std::int64_t>(p), places.experts_each);
      leaf_N.push_back(is_there ? row_of(from_N[p], places.place * out_TD.rows() + t)
                                : Tensor(zero_D.data(), Shape{1, out_TD.row_size()}, out_TD.dtype()));
      if (is_there && static_cast<int>(p) != places.place)
        *bytes_1.as<double>() += static_cast<double>(out_TD.row_size() * size_of(out_TD.dtype()));
    }
    sum_by_halves(row_of(out_TD, t), row_of(addend_TD, t), leaf_N, ctx);
  }
}

void check_rows(const Tensor& x_TD, std::span<const Tensor> of_N, const Tensor& bytes_1,
                const Tensor& expert_TK, const ExpertPlaces& places, Signature& args) {
  args(SY_ARG(x_TD), x_TD.dtype(), kContiguous)(SY_ARG(expert_TK), DType::i32, kContiguous);
  args(SY_ARG(bytes_1), DType::f64);
  const auto n = static_cast<std::int64_t>(of_N.size());
  SY_CHECK(n >= 1 && n <= kMostPlaces && places.place >= 0 && places.place < n && places.experts_each >= 1,
           "place {} of {}, each with {} experts", places.place, n, places.experts_each);
  const Shape rows_SD = x_TD.shape().with_rows(n * x_TD.rows());
  for (const Tensor& of_place_SD : of_N) args("of_place_SD", of_place_SD, rows_SD, x_TD.dtype(), kContiguous);
}

}  // namespace

void spread_rows(std::span<const Tensor> to_N, Tensor bytes_1, Tensor x_TD, Tensor expert_TK,
                 ExpertPlaces places, Context& ctx) {
  Signature args(ctx);
  check_rows(x_TD, to_N, bytes_1, expert_TK, places, args);
  run<&cuda::spread_rows>(ctx, x_TD.dtype(), SY_CPU(spread_rows_on_cpu), to_N, bytes_1, x_TD, expert_TK,
                          places);
}

void collect_rows(Tensor out_TD, Tensor bytes_1, Tensor addend_TD, std::span<const Tensor> from_N,
                  Tensor expert_TK, ExpertPlaces places, Context& ctx) {
  Signature args(ctx);
  check_rows(out_TD, from_N, bytes_1, expert_TK, places, args);
  args.like(out_TD, SY_ARG(addend_TD), kContiguous | kOptional);
  run<&cuda::collect_rows>(ctx, out_TD.dtype(), SY_CPU(collect_rows_on_cpu), out_TD, bytes_1, addend_TD, from_N,
                           expert_TK, places);
}

}  // namespace switchyard::ops
