#include "ops/slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "cuda_support.h"

namespace switchyard::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Sizes {
  std::int64_t tokens, slots, margin;  // margin > 0: strided rows
};
const Sizes kSizes[] = {{1, 1, 0}, {300, 3, 0}, {17, 8, 5}, {5, 40, 3}, {0, 4, 0}};

using Keep = std::function<void(Tensor expert_TK, Tensor chosen_TK, Context& ctx, bool device)>;

// The slots that stay are a choice in float32, made in the CPU's order: exact. Chosen scores descend, and some
// end in minus infinities.
void expect_slots_of_cpu(const Keep& keep) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.slots);
    DeviceContext ctx;
    Context host_ctx;
    const OwnedTensor expert({s.tokens, s.slots}, DType::i32), chosen({s.tokens, s.slots}, DType::f32);
    for (std::int64_t i = 0; i < expert.numel(); ++i) {
      const std::int64_t t = i / s.slots, k = i % s.slots;
      set(expert, i, static_cast<double>((t + k) % 50));
      set(chosen, i, k > 1 + t % 5 && t % 2 == 0 ? -kInf : 0.3 / static_cast<double>(1 + k + t % 3));
    }
    const auto device_expert = DeviceTensor::of(expert, DType::i32, ctx, s.margin);
    const auto device_chosen = DeviceTensor::of(chosen, DType::f32, ctx, s.margin);
    keep(device_expert, device_chosen, ctx, true);
    keep(expert, chosen, host_ctx, false);
    EXPECT_EQ(device_expert.values(), values(expert));
    EXPECT_EQ(device_chosen.values(), values(chosen));
    EXPECT_TRUE(s.margin == 0 || (device_expert.margins_untouched() && device_chosen.margins_untouched()));
  }
}

TEST(CudaSlots, KeptByASumAreTheCpus) {
  for (const double p : {0.0, 0.3, 0.5, 100.0}) {
    expect_slots_of_cpu([p](Tensor expert, Tensor chosen, Context& ctx, bool device) {
      device ? ops::cuda::keep_prefix_sum(expert, chosen, p, ctx)
             : ops::keep_prefix_sum(expert, chosen, p, ctx);
    });
  }
}

// Counts from -1 to beyond the number of slots.
TEST(CudaSlots, KeptByACountAreTheCpus) {
  expect_slots_of_cpu([](Tensor expert, Tensor chosen, Context& ctx, bool device) {
    OwnedTensor count({expert.rows()}, DType::i32);
    for (std::int64_t t = 0; t < count.numel(); ++t)
      set(count, t, static_cast<double>(t % (expert.dim(1) + 4) - 1));
    DeviceContext device_ctx;
    device ? ops::cuda::keep_count(expert, chosen, DeviceTensor::of(count, device_ctx), ctx)
           : ops::keep_count(expert, chosen, count, ctx);
  });
}

TEST(CudaSlots, KeptWhileFiniteAreTheCpus) {
  expect_slots_of_cpu([](Tensor expert, Tensor chosen, Context& ctx, bool device) {
    device ? ops::cuda::keep_finite(expert, chosen, ctx) : ops::keep_finite(expert, chosen, ctx);
  });
}

TEST(CudaSlots, ThresholdChoiceIsTheCpus) {
  for (const std::int64_t n_experts : {1, 70}) {
    DeviceContext ctx;
    Context host_ctx;
    OwnedTensor score({9, n_experts}, DType::f32), threshold({n_experts}, DType::f32);
    fill_int(score, "score", -2, 3);  // some are equal to the threshold
    fill_int(threshold, "threshold", -1, 2);
    const OwnedTensor choice({9, n_experts}, DType::f32);
    const auto device_choice = DeviceTensor::strided(9, n_experts, DType::f32, ctx);
    ops::cuda::threshold_choice(device_choice, DeviceTensor::of(score, DType::f32, ctx, 3),
                                DeviceTensor::of(threshold, ctx), ctx);
    ops::threshold_choice(choice, score, threshold, host_ctx);
    EXPECT_EQ(device_choice.values(), values(choice));
    EXPECT_TRUE(device_choice.margins_untouched());
  }
}

TEST(CudaSlots, SoftmaxEqualsTheCpu) {
  constexpr std::int64_t kExperts = 60;
  constexpr double kScale = 1.5;
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " x " << s.slots);
    DeviceContext ctx;
    Context host_ctx;
    const Shape slots{s.tokens, s.slots}, scores{s.tokens, kExperts};
    const OwnedTensor host_expert(slots, DType::i32);  // each third token fills all slots, others some or none
    for (std::int64_t i = 0; i < host_expert.numel(); ++i) {
      const std::int64_t t = i / s.slots, k = i % s.slots;
      set(host_expert, i, t % 3 == 0 || k < t % 5 ? static_cast<double>((11 * t + k) % kExperts) : -1.0);
    }
    const auto output = [&](Shape shape) {
      return s.margin > 0 ? DeviceTensor::strided(shape[0], shape[1], DType::f32, ctx, s.margin)
                          : DeviceTensor(shape, DType::f32, ctx);
    };
    const auto expert = DeviceTensor::of(host_expert, DType::i32, ctx, s.margin);
    // exp(200) overflows: the largest is to be subtracted.
    const auto chosen =
        DeviceTensor::of(normal(slots, DType::f64, "chosen", 2.0, 200.0), DType::f32, ctx, s.margin);
    const auto dweight = DeviceTensor::of(normal(slots, DType::f64, "dweight"), DType::f32, ctx, s.margin);
    const DeviceTensor weight = output(slots), dscore = output(scores);
    const OwnedTensor weight64(slots, DType::f64), dscore64(scores, DType::f64);
    ops::cuda::slot_softmax_forward(weight, chosen, expert, kScale, ctx);
    ops::cuda::slot_softmax_backward(dscore, dweight, weight, expert, kScale, ctx);
    ops::slot_softmax_forward(weight64, chosen.as_f64(), host_expert, kScale, host_ctx);
    ops::slot_softmax_backward(dscore64, dweight.as_f64(), weight.as_f64(), host_expert, kScale, host_ctx);
    // Exponents of up to some 12, rounded to 6e-8 of that, and sums of up to 40 terms.
    EXPECT_TRUE(all_near(weight.values(), values(weight64), 3e-6, 0));
    EXPECT_TRUE(all_near(dscore.values(), values(dscore64), 1e-6, 1e-6));
    EXPECT_TRUE(s.margin == 0 || (weight.margins_untouched() && dscore.margins_untouched()));
  }
}

}  // namespace
}  // namespace switchyard::test
