#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/error.h"

namespace switchyard {
namespace {

bool aligned(const Tensor& tensor) { return reinterpret_cast<std::uintptr_t>(tensor.raw()) % kAlignment == 0; }

TEST(Arena, PlanThenTakeTheSame) {
  const auto plan = [](Arena& arena) {
    const Tensor a = arena.take({3, 5}, DType::f32);
    const Tensor b = arena.take({7}, DType::f64);
    const Tensor c = arena.take({1}, DType::i32);
    return std::array{a, b, c};
  };
  Arena measuring = Arena::measuring();
  for (const Tensor& tensor : plan(measuring)) EXPECT_EQ(tensor.raw(), nullptr);
  EXPECT_EQ(measuring.used(), 64 + 64 + 64);  // each rounded up to the alignment

  Arena arena(measuring.used(), "a test");
  const auto [a, b, c] = plan(arena);
  EXPECT_EQ(arena.used(), measuring.used());
  for (const Tensor& tensor : {a, b, c}) EXPECT_TRUE(aligned(tensor));
  // Neighbours do not overlap.
  std::fill_n(a.as<float>(), 15, 1.0f);
  std::fill_n(b.as<double>(), 7, 2.0);
  c.as<std::int32_t>()[0] = 3;
  EXPECT_EQ(a.as<float>()[14], 1.0f);
  EXPECT_EQ(b.as<double>()[6], 2.0);

  EXPECT_THROW(arena.take({1}, DType::f32), std::logic_error);
}

TEST(Arena, PoisonIsNanInEveryFloat) {
  Arena arena(1024, "a test");
  const Tensor single = arena.take({100}, DType::f32);
  const Tensor twice = arena.take({60}, DType::f64);
  std::fill_n(single.as<float>(), 100, 1.0f);
  arena.poison();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(std::isnan(single.as<float>()[i]));
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(std::isnan(twice.as<double>()[i]));
}

TEST(Arena, SaysWhatNeedsTheMemoryThatIsNotThere) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers end the program on an allocation of this size";
#endif
  try {
    allocate_aligned(std::int64_t{1} << 60, "the activations");
    FAIL() << "2^60 bytes were allocated";
  } catch (const RunError& error) {
    EXPECT_NE(std::string(error.what()).find("the activations"), std::string::npos) << error.what();
  }
}

TEST(Scratch, ScopesGiveBackAndMemoryIsUsedAgain) {
  Scratch scratch;
  const auto use = [&] {
    const ScratchScope outer(scratch);
    const Tensor a = scratch.take({1000}, DType::f32);
    void* inner_memory = nullptr;
    {
      const ScratchScope inner(scratch);
      inner_memory = scratch.take({2000}, DType::f32).raw();
    }
    const Tensor b = scratch.take({2000}, DType::f32);  // fits where the inner one was
    EXPECT_EQ(b.raw(), inner_memory);
    EXPECT_NE(a.raw(), b.raw());
    EXPECT_TRUE(aligned(a) && aligned(b));
    return std::pair{a.raw(), b.raw()};
  };
  const auto first = use();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(use(), first);
}

TEST(Scratch, LiveTensorsDoNotOverlap) {
  Scratch scratch;
  const ScratchScope scope(scratch);
  std::vector<Tensor> taken;
  for (const std::int64_t n : {10, 1000, 3, 50000, 7, 1}) {
    taken.push_back(scratch.take({n}, DType::i32));
    std::fill_n(taken.back().as<std::int32_t>(), n, static_cast<std::int32_t>(n));
  }
  for (const Tensor& tensor : taken)
    for (std::int64_t i = 0; i < tensor.numel(); ++i) ASSERT_EQ(tensor.as<std::int32_t>()[i], tensor.numel());
}

TEST(Scratch, SettlesInWhatWasInUseAtOnce) {
  Scratch scratch;
  {
    const ScratchScope outer(scratch);
    scratch.take({100}, DType::f64);
    for (int i = 0; i < 2; ++i) {  // one after the other
      const ScratchScope inner(scratch);
      scratch.take({200 + i}, DType::f64);
    }
    EXPECT_THROW(scratch.settle(), std::logic_error);
  }
  const std::int64_t grown = scratch.reserved();
  scratch.settle();
  EXPECT_EQ(scratch.reserved(), 832 + 1664);  // 100 and 201 of 8 bytes, to whole lines
  EXPECT_LT(scratch.reserved(), grown);
  {
    const ScratchScope outer(scratch);
    const Tensor first = scratch.take({100}, DType::f64), second = scratch.take({201}, DType::f64);
    EXPECT_EQ(static_cast<std::byte*>(second.raw()) - static_cast<std::byte*>(first.raw()), 832);
  }
  EXPECT_EQ(scratch.reserved(), 832 + 1664);
}

TEST(Scratch, PoisonsWhatItHandsOut) {
  Scratch scratch;
  scratch.set_poison(true);
  for (int round = 0; round < 2; ++round) {
    const ScratchScope scope(scratch);
    const Tensor x = scratch.take({33}, DType::f32);
    for (int i = 0; i < 33; ++i) ASSERT_TRUE(std::isnan(x.as<float>()[i]));
    std::fill_n(x.as<float>(), 33, 0.0f);
  }
}

}  // namespace
}  // namespace switchyard
