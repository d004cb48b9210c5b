// How alike experts' outputs are, against PyTorch's gradient of the plain formula: tests/golden/expert_overlap.
#include "golden_support.h"
#include "ops/overlap.h"

namespace switchyard::golden {
namespace {

test::OwnedTensor read(const checkpoint::SafetensorsFile& file, const std::string& name, DType dtype) {
  const checkpoint::StoredTensor* stored = file.find(name);
  if (stored == nullptr) throw std::runtime_error("no tensor " + name);
  test::OwnedTensor tensor(
      stored->shape.size() == 1 ? Shape{stored->shape[0]} : Shape{stored->shape[0], stored->shape[1]}, dtype);
  file.read(*stored, tensor);
  return tensor;
}

TEST(GoldenOverlap, EqualsThePlainVersion) {
  const checkpoint::SafetensorsFile file(std::filesystem::path(SWITCHYARD_GOLDEN_DIR) / "expert_overlap" /
                                         "tensors.safetensors");
  Context ctx;
  const test::OwnedTensor row = read(file, "row", DType::f32), slot_row = read(file, "slot_row", DType::i32),
                          want_sum = read(file, "sum", DType::f32), want_drow = read(file, "drow", DType::f32);
  const test::OwnedTensor sum({1}, DType::f64), drow(row.view().shape(), DType::f32);
  test::fill(drow, std::vector<double>(static_cast<std::size_t>(drow.numel()), 0.0));
  ops::expert_overlap_forward(sum, row, slot_row, ctx);
  ops::expert_overlap_backward(drow, row, slot_row, 1, ctx);
  // Float32 beside float64: a few roundings of numbers of order one; gradients of equal outputs cancel.
  EXPECT_NEAR(sum[0], want_sum[0], 1e-5);
  EXPECT_TRUE(test::all_near(test::values(drow), test::values(want_drow), 1e-5, 1e-6));
}

}  // namespace
}  // namespace switchyard::golden
