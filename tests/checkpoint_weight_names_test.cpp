#include "checkpoint/weight_names.h"
#include "config/layouts.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <optional>
namespace switchyard::checkpoint {
namespace {

TEST(WeightNames, WrappersAreTakenOff) {
  const char* kGate = "model.layers.0.mlp.gate.weight";
  for (const char* name :
       {"model.layers.0.mlp.gate.weight", "layers.0.mlp.gate.weight",
        "_orig_mod.model.layers.0.mlp.gate.weight", "module.model.layers.0.mlp.gate.weight",
        "module._orig_mod.layers.0.mlp.gate.weight", "model.layers.0._orig_mod.mlp.gate.weight",
        "language_model.model.layers.0.mlp.gate.weight", "model.language_model.layers.0.mlp.gate.weight",
        "model.model.layers.0.mlp.gate.weight", "base_model.model.model.layers.0.mlp.gate.weight",
        "_fsdp_wrapped_module.model.layers.0.mlp.gate.weight"})
    EXPECT_EQ(without_wrappers(name), kGate) << name;
  EXPECT_EQ(without_wrappers("model.lm_head.weight"), "lm_head.weight");
  EXPECT_EQ(without_wrappers("embed_tokens.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(without_wrappers("norm.weight"), "model.norm.weight");
  EXPECT_EQ(without_wrappers("something.else"), "something.else");
}

// One float a part: the value says which part it is.
StoredTensor stored(const std::string& name, std::vector<std::int64_t> shape,
                    const std::vector<float>& values) {
  return {name, StoredType::f32, std::move(shape), std::as_bytes(std::span(values))};
}

std::map<std::string, float> first_values(const std::vector<StoredRow>& rows) {
  std::map<std::string, float> values;
  for (const StoredRow& row : rows)
    std::memcpy(&values[row.tensor.name], row.tensor.bytes.data(), sizeof(float));
  return values;
}

class Names : public testing::Test {
 protected:
  Names() {
    for (const char* leaf : {"gate.weight", "experts.0.w1.weight", "experts.0.w2.weight", "experts.0.w3.weight",
                             "experts.1.w1.weight", "experts.1.w2.weight", "experts.1.w3.weight"})
      rows_.push_back({.name = kBlock + leaf, .shape = {1, 1}});
    names_.emplace(config::kMixtral, rows_);
  }
  const std::string kBlock = "model.layers.0.block_sparse_moe.";
  std::vector<Parameter> rows_;
  std::optional<WeightNames> names_;
};

TEST_F(Names, AMixtralUnderEitherSpelling) {
  const std::vector<float> one = {7};
  for (const char* name : {"model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight",
                           "layers.0.mlp.router.weight"})
    EXPECT_EQ(first_values(names_->rows_of(stored(name, {1, 1}, one))),
              (std::map<std::string, float>{{kBlock + "gate.weight", 7.f}}))
        << name;
  EXPECT_EQ(first_values(names_->rows_of(stored("model.layers.0.mlp.experts.1.up_proj.weight", {1, 1}, one))),
            (std::map<std::string, float>{{kBlock + "experts.1.w3.weight", 7.f}}));
}

TEST_F(Names, StackedExpertsAreCutToRows) {
  const std::vector<float> both = {0, 1, 2, 3}, each = {4, 5};
  for (const char* name :
       {"model.layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.gate_up_proj.weight",
        "model.layers.0.block_sparse_moe.experts.w13"})
    EXPECT_EQ(first_values(names_->rows_of(stored(name, {2, 2, 1}, both))),
              (std::map<std::string, float>{{kBlock + "experts.0.w1.weight", 0.f},
                                            {kBlock + "experts.0.w3.weight", 1.f},
                                            {kBlock + "experts.1.w1.weight", 2.f},
                                            {kBlock + "experts.1.w3.weight", 3.f}}))
        << name;
  EXPECT_EQ(first_values(names_->rows_of(stored("model.layers.0.mlp.experts.down_proj", {2, 1, 1}, each))),
            (std::map<std::string, float>{{kBlock + "experts.0.w2.weight", 4.f},
                                          {kBlock + "experts.1.w2.weight", 5.f}}));
  EXPECT_EQ(
      first_values(names_->rows_of(stored("model.layers.0.mlp.experts.1.gate_up_proj.weight", {2, 1}, each))),
      (std::map<std::string, float>{{kBlock + "experts.1.w1.weight", 4.f},
                                    {kBlock + "experts.1.w3.weight", 5.f}}));
}

TEST_F(Names, WhatIsNoRowStaysWhatItIs) {
  const std::vector<float> some = {0, 1, 2};
  for (const char* name :
       {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.99999999999999999999.mlp.gate.weight",
        "model.layers.0.mlp.experts.x.w1.weight", "a", "", ".", "model..mlp.gate"}) {
    const StoredTensor tensor = stored(name, {1, 3, 1}, some);  // an odd number of rows is no pair
    const auto rows = names_->rows_of(tensor);
    ASSERT_EQ(rows.size(), 1u) << name;
    EXPECT_EQ(rows[0].stored, &tensor);
    EXPECT_EQ(rows[0].tensor.bytes.size(), sizeof(float) * 3);
  }
}

}  // namespace
}  // namespace switchyard::checkpoint
