#include "ops/routing.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda_support.h"

#ifdef SWITCHYARD_SIMT
#include "engine.h"
#endif

namespace switchyard::test {
namespace {

struct Sizes {
  std::int64_t sequences, seq_len, n_experts, slots, margin;  // margin > 0: strided rows
};
// One token; ragged runs of tokens; more experts than a warp has lanes and than a block has threads; more slots
// than lanes; no tokens.
const Sizes kSizes[] = {{1, 1, 1, 1, 0},    {3, 7, 6, 2, 3},    {2, 130, 40, 8, 5},
                        {1, 200, 64, 4, 0}, {1, 5, 300, 40, 0}, {2, 0, 4, 2, 0}};

// Experts of a token differ, as those of a choice do; every third slot or so is free, and tokens may be
// padding, whose slots all are.
struct Slots {
  OwnedTensor token_T, expert_TK;
  explicit Slots(const Sizes& s)
      : token_T({s.sequences * s.seq_len}, DType::i32), expert_TK({token_T.numel(), s.slots}, DType::i32) {
    fill_int(token_T, "token", -1, 4);
    OwnedTensor filled(expert_TK.view().shape(), DType::i32);
    fill_int(filled, "filled", 0, 3);
    for (std::int64_t i = 0; i < expert_TK.numel(); ++i) {
      const std::int64_t t = i / s.slots, k = i % s.slots;
      const bool is_free = filled[i] == 0 || token_T[t] < 0;
      set(expert_TK, i, is_free ? -1.0 : static_cast<double>((7 * t + k) % s.n_experts));
    }
  }
};

struct Device {
  DeviceContext ctx;
  std::int64_t margin;
  DeviceTensor input(const Tensor& host, DType dtype) { return DeviceTensor::of(host, dtype, ctx, margin); }
  DeviceTensor output(std::int64_t rows, std::int64_t columns, DType dtype = DType::f32) {
    return margin > 0 ? DeviceTensor::strided(rows, columns, dtype, ctx, margin)
                      : DeviceTensor({rows, columns}, dtype, ctx);
  }
};

std::string describe(const Sizes& s) {
  return std::to_string(s.sequences) + " x " + std::to_string(s.seq_len) + " tokens, " +
         std::to_string(s.n_experts);
}

TEST(CudaRouting, SlotWeightsEqualTheCpu) {
  for (const bool normalise : {false, true}) {
    for (const Sizes& s : kSizes) {
      SCOPED_TRACE(describe(s));
      Device device{.ctx = {}, .margin = s.margin};
      Context host_ctx;
      const ops::SlotWeighting weighting{.normalise = normalise, .scale = 2.5, .eps = 1e-3};
      const Slots slots(s);
      const std::int64_t T = slots.token_T.numel();
      OwnedTensor host_chosen({T, s.slots}, DType::f64);  // probabilities, 0 in a free slot
      for (std::int64_t i = 0; i < host_chosen.numel(); ++i)
        set(host_chosen, i, slots.expert_TK[i] < 0 ? 0 : 0.01 * static_cast<double>(1 + i % 17));
      const auto expert = device.input(slots.expert_TK, DType::i32),
                 chosen = device.input(host_chosen, DType::f32);
      const auto dweight = device.input(normal({T, s.slots}, DType::f64, "dweight"), DType::f32);
      const auto weight = device.output(T, s.slots), dscore = device.output(T, s.n_experts);
      ops::cuda::slot_weights_forward(weight, chosen, expert, weighting, device.ctx);
      ops::cuda::slot_weights_backward(dscore, dweight, weight, chosen, expert, weighting, device.ctx);

      const OwnedTensor weight64({T, s.slots}, DType::f64), dscore64({T, s.n_experts}, DType::f64);
      const OwnedTensor chosen64 = chosen.as_f64();
      ops::slot_weights_forward(weight64, chosen64, slots.expert_TK, weighting, host_ctx);
      ops::slot_weights_backward(dscore64, dweight.as_f64(), weight.as_f64(), chosen64, slots.expert_TK,
                                 weighting, host_ctx);
      // Sums of up to 40 terms; the gradient is a difference of numbers of up to 10, divided by as little as
      // 0.01.
      EXPECT_TRUE(all_near(weight.values(), values(weight64), 1e-6, 0));
      EXPECT_TRUE(all_near(dscore.values(), values(dscore64), 1e-6, 5e-4));
      EXPECT_TRUE(weight.margins_untouched());
      EXPECT_TRUE(dscore.margins_untouched());
    }
  }
}

struct Sums {
  DeviceTensor count_BE, prob_sum_BE, prob2_sum_B, lse2_sum_B;
};

Sums device_sums(const Sizes& s, const Slots& slots, const DeviceTensor& prob, const DeviceTensor& lse,
                 Device& device) {
  Sums sums{
      device.output(s.sequences, s.n_experts, DType::i32), device.output(s.sequences, s.n_experts, DType::f64),
      DeviceTensor({s.sequences}, DType::f64, device.ctx), DeviceTensor({s.sequences}, DType::f64, device.ctx)};
  ops::cuda::routing_sums(sums.count_BE, sums.prob_sum_BE, sums.prob2_sum_B, sums.lse2_sum_B,
                          device.input(slots.expert_TK, DType::i32), prob, lse,
                          DeviceTensor::of(slots.token_T, device.ctx), device.ctx);
  return sums;
}

TEST(CudaRouting, SumsEqualTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(describe(s));
    Device device{.ctx = {}, .margin = s.margin};
    Context host_ctx;
    const Slots slots(s);
    const std::int64_t T = slots.token_T.numel();
    const auto prob = device.input(normal({T, s.n_experts}, DType::f64, "prob"), DType::f32);
    const auto lse = DeviceTensor::of(normal({T}, DType::f64, "lse", 2.0), DType::f32, device.ctx);
    const Sums sums = device_sums(s, slots, prob, lse, device);
    const OwnedTensor count({s.sequences, s.n_experts}, DType::i32),
        prob_sum({s.sequences, s.n_experts}, DType::f64), prob2_sum({s.sequences}, DType::f64),
        lse2_sum({s.sequences}, DType::f64);
    ops::routing_sums(count, prob_sum, prob2_sum, lse2_sum, slots.expert_TK, prob.as_f64(), lse.as_f64(),
                      slots.token_T, host_ctx);
    EXPECT_EQ(sums.count_BE.values(), values(count));
    // Up to 200 terms of order one in double, in another order.
    EXPECT_TRUE(all_near(sums.prob_sum_BE.values(), values(prob_sum), 1e-13, 1e-12));
    EXPECT_TRUE(
        all_near(sums.prob2_sum_B.values(), values(prob2_sum), 1e-12, 0));  // as many, times the experts
    EXPECT_TRUE(all_near(sums.lse2_sum_B.values(), values(lse2_sum), 1e-13, 0));
    EXPECT_TRUE(sums.count_BE.margins_untouched());
    EXPECT_TRUE(sums.prob_sum_BE.margins_untouched());
#ifdef SWITCHYARD_SIMT
    simt::set_block_order(simt::BlockOrder::descending);
    const Sums descending = device_sums(s, slots, prob, lse, device);
    simt::set_block_order(simt::BlockOrder::ascending);
    EXPECT_EQ(sums.count_BE.values(), descending.count_BE.values());
    EXPECT_EQ(sums.prob_sum_BE.values(), descending.prob_sum_BE.values());
    EXPECT_EQ(sums.prob2_sum_B.values(), descending.prob2_sum_B.values());
    EXPECT_EQ(sums.lse2_sum_B.values(), descending.lse2_sum_B.values());
#endif
  }
}

// A sequence longer than 128 runs of 64 tokens.
TEST(CudaRouting, SumsOfALongSequence) {
  const Sizes s{1, 8200, 2, 1, 0};
  Device device{.ctx = {}, .margin = 0};
  Context host_ctx;
  const Slots slots(s);
  const auto prob = device.input(normal({8200, 2}, DType::f64, "prob"), DType::f32);
  const auto lse = DeviceTensor::of(normal({8200}, DType::f64, "lse"), DType::f32, device.ctx);
  const Sums sums = device_sums(s, slots, prob, lse, device);
  const OwnedTensor count({1, 2}, DType::i32), prob_sum({1, 2}, DType::f64), prob2_sum({1}, DType::f64),
      lse2_sum({1}, DType::f64);
  ops::routing_sums(count, prob_sum, prob2_sum, lse2_sum, slots.expert_TK, prob.as_f64(), lse.as_f64(),
                    slots.token_T, host_ctx);
  EXPECT_EQ(sums.count_BE.values(), values(count));
  EXPECT_TRUE(all_near(sums.prob_sum_BE.values(), values(prob_sum), 1e-12, 1e-11));  // 8200 terms of order one
  EXPECT_TRUE(all_near(sums.prob2_sum_B.values(), values(prob2_sum), 1e-12, 0));
  EXPECT_TRUE(all_near(sums.lse2_sum_B.values(), values(lse2_sum), 1e-12, 0));
}

TEST(CudaRouting, LossGradientsEqualTheCpu) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(describe(s));
    Device device{.ctx = {}, .margin = s.margin};
    Context host_ctx;
    const Slots slots(s);
    const std::int64_t T = slots.token_T.numel();
    const auto normal_TE = [&](const char* name) {
      return device.input(normal({T, s.n_experts}, DType::f64, name), DType::f32);
    };
    const auto dprob = normal_TE("dprob"), prob = normal_TE("prob"), dlogit = normal_TE("dlogit");
    const auto lse = DeviceTensor::of(normal({T}, DType::f64, "lse", 2.0), DType::f32, device.ctx);
    const auto token = DeviceTensor::of(slots.token_T, device.ctx);
    const OwnedTensor host_dprob_BE = normal({s.sequences, s.n_experts}, DType::f64, "sequences");
    const OwnedTensor dprob64 = dprob.as_f64(), dlogit64 = dlogit.as_f64();
    ops::add_sequence_gradient(dprob64, host_dprob_BE, prob.as_f64(), -0.5, slots.token_T, host_ctx);
    ops::z_loss_backward(dlogit64, prob.as_f64(), lse.as_f64(), slots.token_T, 0.25, host_ctx);

    const auto again = DeviceTensor::of(dprob.as_f64(), DType::f32, device.ctx, s.margin);
    ops::cuda::add_sequence_gradient(dprob, DeviceTensor::of(host_dprob_BE, device.ctx), prob, -0.5, token,
                                     device.ctx);
    ops::cuda::add_sequence_gradient(again, host_dprob_BE, prob, -0.5, token, device.ctx);
    ops::cuda::z_loss_backward(dlogit, prob, lse, token, 0.25, device.ctx);
    // One sum and up to two products of numbers of order one.
    EXPECT_TRUE(all_near(dprob.values(), values(dprob64), 2e-7, 2e-7));
    EXPECT_TRUE(all_near(dlogit.values(), values(dlogit64), 5e-7, 2e-6));
    EXPECT_EQ(again.values(), dprob.values());
    EXPECT_TRUE(dprob.margins_untouched());
    EXPECT_TRUE(dlogit.margins_untouched());
  }
}

}  // namespace
}  // namespace switchyard::test
