// Operators' arguments are held to the dimensions in their names (ops/operator.h).
#include "ops/operator.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tensors.h"

namespace switchyard::test {
namespace {

using ops::kAnywhere;
using ops::kContiguous;
using ops::kOptional;
using ops::Signature;

constexpr DType f32 = DType::f32, f64 = DType::f64, i32 = DType::i32;

// No memory is behind these: a signature reads none.
Tensor of(Shape shape, DType dtype = f32, Device device = Device::cpu) {
  return {nullptr, shape, dtype, device};
}

// What a signature says of wrong arguments; empty: nothing.
std::string complaint(const std::function<void(Signature&)>& call, Device device = Device::cpu) {
  Context ctx(device);
  Signature args(ctx);
  try {
    call(args);
  } catch (const std::logic_error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("ops_operator_test.cpp"), std::string::npos) << message;
    const std::string before = "internal error: ";
    return message.substr(before.size(), message.find(" [arguments at") - before.size());
  }
  return "";
}

TEST(Signature, LettersAreSizes) {
  Context ctx;
  Signature args(ctx);
  args("x_TD", of({2, 3}), f32)("weight_E2FK", of({4, 10, 7}), f32)("offset_Ep", of({5}, i32), i32)(
      "rstd_T1", of({2, 1}), f32)("rng_offset_2", of({2}, i32), i32)("attention_lse_TD", of({2, 3}), f32)(
      "gram_dd", of({6, 6}, f64), f64)("table_12T", of({24}), f32);
  EXPECT_EQ(args['T'], 2);
  EXPECT_EQ(args['D'], 3);
  EXPECT_EQ(args['E'], 4);
  EXPECT_EQ(args['F'], 5);
  EXPECT_EQ(args['K'], 7);
  EXPECT_EQ(args['d'], 6);
  EXPECT_THROW(args['S'], std::logic_error);
}

TEST(Signature, ASizeOfZeroIsKnown) {
  EXPECT_EQ(complaint([](Signature& args) {
              args("x_TD", of({0, 3}), f32)("token_T", of({1}, i32), i32);
            }),
            "token_T is [1]: its T is 0 elsewhere");
}

TEST(Signature, ShapesThatDoNotFit) {
  const auto after_x = [](const char* name, Shape shape) {
    return complaint([&](Signature& args) { args("x_TD", of({2, 3}), f32)(name, of(shape), f32); });
  };
  EXPECT_EQ(after_x("token_T", {1}), "token_T is [1]: its T is 2 elsewhere");
  EXPECT_EQ(after_x("token_T", {2, 1}), "token_T is [2, 1]: its name has 1 dimensions");
  EXPECT_EQ(after_x("out_TD", {2}), "out_TD is [2]: its name has more dimensions");
  EXPECT_EQ(after_x("wide_T2D", {2, 3}), "wide_T2D is [2, 3]: its D is 3 elsewhere");
  EXPECT_EQ(after_x("offset_Tp", {2}), "offset_Tp is [2]: its T is 2 elsewhere");
  EXPECT_EQ(after_x("half_2F", {3}), "half_2F is [3]: its dimension 0 is not 2F");
  EXPECT_EQ(after_x("offset_Ep", {0}), "offset_Ep is [0]: its dimension 0 is not Ep");
  EXPECT_EQ(after_x("rstd_T1", {2, 2}), "rstd_T1 is [2, 2]: its dimension 1 is not 1");
  EXPECT_EQ(after_x("x", {2}), "x has no dimensions in its name");
  EXPECT_EQ(after_x("x_T*", {2, 1}), "x_T*: '*' stands for no dimension");
  EXPECT_EQ(after_x("x_TD", {2, 3}), "");
}

TEST(Signature, BoundAndExplicitSizes) {
  EXPECT_EQ(complaint([](Signature& args) { args.bind('E', 3)("bias_E", of({4}), f32); }),
            "bias_E is [4]: its E is 3 elsewhere");
  EXPECT_EQ(complaint([](Signature& args) {
              args("q_THN", of({2, 8}), Shape{2, 6}, f32);
            }),
            "q_THN is [2, 8], expected [2, 6]");
  EXPECT_EQ(complaint([](Signature& args) {
              args.like(of({2, 3}), "m_P", of({3, 2}));
            }),
            "m_P is [3, 2], expected [2, 3]");
  EXPECT_EQ(complaint([](Signature& args) {
              args.like(of({2, 3}, f64), "m_P", of({2, 3}));
            }),
            "m_P is f32, expected f64");
}

TEST(Signature, DtypeDefinitionAndLayout) {
  EXPECT_EQ(complaint([](Signature& args) { args("token_T", of({2}), i32); }), "token_T is f32, expected i32");
  EXPECT_EQ(complaint([](Signature& args) { args("token_T", Tensor(), i32); }), "token_T is not defined");
  EXPECT_EQ(complaint([](Signature& args) { args("token_T", Tensor(), i32, kOptional); }), "");
  EXPECT_EQ(complaint([](Signature& args) { args("token_T", of({2}), i32, kOptional); }),
            "token_T is f32, expected i32");
  const Tensor strided = of({4, 6}).columns(1, 2);
  EXPECT_EQ(complaint([&](Signature& args) { args("x_TD", strided, f32); }), "");
  EXPECT_EQ(complaint([&](Signature& args) { args("x_TD", strided, f32, kContiguous); }),
            "x_TD [4, 2] has a row stride of 6");
}

TEST(Signature, EveryTensorLiesWhereTheRunComputes) {
  const Tensor host = of({2}), device = of({2}, f32, Device::cuda);
  EXPECT_EQ(complaint([&](Signature& args) { args("x_T", host, f32); }, Device::cuda),
            "x_T lies on cpu, and the run computes on cuda");
  EXPECT_EQ(complaint([&](Signature& args) { args("x_T", device, f32); }, Device::cpu),
            "x_T lies on cuda, and the run computes on cpu");
  EXPECT_EQ(complaint([&](Signature& args) { args("x_T", device, f32, kAnywhere); }, Device::cpu),
            "x_T lies on cuda, and the run computes on cpu");
  EXPECT_EQ(complaint([&](Signature& args) { args("x_T", host, f32, kAnywhere); }, Device::cuda), "");
  EXPECT_EQ(complaint([&](Signature& args) { args("x_T", device, f32); }, Device::cuda), "");
}

}  // namespace
}  // namespace switchyard::test
