#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "core/tensor.h"

namespace switchyard {
namespace {

std::vector<float> counting(std::size_t n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

TEST(Shape, CountsAndPrints) {
  const Shape shape{4, 3, 2};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape.numel(), 24);
  EXPECT_EQ(shape.to_string(), "[4, 3, 2]");
  EXPECT_EQ(shape.with_rows(7), (Shape{7, 3, 2}));
  EXPECT_FALSE(shape == (Shape{4, 6}));
  EXPECT_EQ((Shape{0, 5}).numel(), 0);
  EXPECT_EQ(Shape().numel(), 0);
  EXPECT_THROW((Shape{2, -1}), std::logic_error);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1}), std::logic_error);
}

TEST(Tensor, SizesFollowTheDtype) {
  for (const auto& [dtype, bytes] :
       {std::pair{DType::f32, 4}, {DType::f64, 8}, {DType::bf16, 2}, {DType::i32, 4}})
    EXPECT_EQ(Tensor(nullptr, {3, 5}, dtype).nbytes(), 15 * bytes) << name_of(dtype);
  EXPECT_FALSE(Tensor().defined());
}

TEST(Tensor, TypedAccessRefusesAnotherType) {
  auto values = counting(6);
  const Tensor x_TD(values.data(), {2, 3}, DType::f32);
  EXPECT_EQ(x_TD.as<float>(), values.data());
  EXPECT_THROW(x_TD.as<double>(), std::logic_error);
  EXPECT_THROW(x_TD.as<std::int32_t>(), std::logic_error);
}

TEST(Tensor, SliceIsARangeOfRows) {
  auto values = counting(24);
  const Tensor x(values.data(), {4, 3, 2}, DType::f32);
  const Tensor view = x.slice(1, 2);
  EXPECT_EQ(view.shape(), (Shape{2, 3, 2}));
  EXPECT_EQ(view.row<float>(0)[0], 6.0f);
  EXPECT_EQ(view.row<float>(1)[5], 17.0f);
  EXPECT_TRUE(view.contiguous());
  EXPECT_EQ(x.slice(4, 0).numel(), 0);
  EXPECT_THROW(x.slice(3, 2), std::logic_error);
  EXPECT_THROW(x.slice(-1, 1), std::logic_error);
}

TEST(Tensor, ColumnsKeepTheRowStride) {
  auto values = counting(20);
  const Tensor x(values.data(), {4, 5}, DType::f32);
  const Tensor view = x.columns(2, 3);
  EXPECT_EQ(view.shape(), (Shape{4, 3}));
  EXPECT_EQ(view.row_size(), 3);
  EXPECT_EQ(view.row_stride(), 5);
  EXPECT_FALSE(view.contiguous());
  EXPECT_TRUE(x.slice(0, 1).columns(2, 3).contiguous());  // one row has no gap
  for (std::int64_t r = 0; r < 4; ++r)
    for (std::int64_t c = 0; c < 3; ++c) EXPECT_EQ(view.row<float>(r)[c], static_cast<float>(5 * r + 2 + c));

  const Tensor inner = view.slice(1, 2).columns(1, 1);
  EXPECT_EQ(inner.row<float>(0)[0], 8.0f);
  EXPECT_EQ(inner.row<float>(1)[0], 13.0f);
  EXPECT_THROW(x.columns(3, 3), std::logic_error);
  EXPECT_THROW(Tensor(values.data(), {2, 2, 5}, DType::f32).columns(0, 1), std::logic_error);
}

TEST(Tensor, ReshapeKeepsTheElements) {
  auto values = counting(24);
  const Tensor x(values.data(), {4, 6}, DType::f32);
  const Tensor heads = x.reshape({4, 3, 2});
  EXPECT_EQ(heads.row<float>(2)[5], 17.0f);
  EXPECT_EQ(x.reshape({24}).row<float>(23)[0], 23.0f);
  EXPECT_THROW(x.reshape({5, 5}), std::logic_error);

  const Tensor strided = x.columns(2, 4);
  const Tensor split = strided.reshape({4, 2, 2});  // the rows stay rows
  EXPECT_EQ(split.row_stride(), 6);
  EXPECT_EQ(split.row<float>(3)[0], 20.0f);
  EXPECT_THROW(strided.reshape({16}), std::logic_error);  // the gaps would be read
}

TEST(Tensor, ViewsOfNoMemoryStayWithoutMemory) {
  const Tensor planned(nullptr, {4, 6}, DType::f32);
  EXPECT_EQ(planned.slice(1, 2).raw(), nullptr);
  EXPECT_EQ(planned.columns(1, 2).raw(), nullptr);
}

}  // namespace
}  // namespace switchyard
