// What the checks of the emulator tell of kernels with a fault in them (simt/checks.cpp), and that they tell
// nothing of the same kernels without it. This file is compiled with the hooks that they need.
#include <gtest/gtest.h>

#include "cuda/elements.h"
#include "cuda/reduce.h"
#include "simt_check_support.h"

namespace switchyard::ops::cuda {
namespace {

struct Line {
  int value[64];
};

// Each thread reads what its neighbour has written, then writes over what the other neighbour has read.
void pass_along(bool first_barrier, bool second_barrier) {
  auto& line = static_shared<Line>();
  line.value[me()] = me();
  if (first_barrier) __syncthreads();
  const int other = line.value[(me() + 1) % 64];
  if (second_barrier) __syncthreads();
  line.value[me()] = other;
}

TEST(SimtCheckRaces, BarriersOrder) {
  EXPECT_EQ(told_of({3}, 64, [] { pass_along(true, true); }), "nothing");
}

TEST(SimtCheckRaces, AMissingBarrierIsToldWithBothPlaces) {
  const std::string told = told_of({1}, 64, [] { pass_along(false, true); });
  EXPECT_TOLD(told, "k:\n  block (0, 0, 0): thread ");
  EXPECT_TOLD(told, "writes what another reads: thread ");
  EXPECT_TOLD(told, "at tests/simt_check_races_test.cpp:");
  EXPECT_TOLD(told, "and tests/simt_check_races_test.cpp:");
  EXPECT_TOLD(told_of({1}, 64, [] { pass_along(true, false); }), "writes what another reads: thread ");
}

// In ascending order, the order of the threads hides it.
TEST(SimtCheckRaces, AReadAfterTheWriteByChanceIsTold) {
  const auto chance = [] {
    auto& line = static_shared<Line>();
    if (me() == 0) line.value[5] = 1;
    if (me() == 40 && line.value[5] == 2) line.value[6] = 0;
  };
  EXPECT_TOLD(told_of({1}, 64, chance), "thread 40 reads what another writes: thread 0 (");
}

TEST(SimtCheckRaces, TwoLanesThatWriteOneAddressAreTold) {
  const auto both = [] {
    if (me() < 2) static_shared<Line>().value[0] = 1;
  };
  EXPECT_TOLD(told_of({1}, 32, both), "thread 1 writes where another writes: thread 0");
}

// A shuffle brings lanes together, but orders no memory.
TEST(SimtCheckRaces, LockstepIsNoOrder) {
  const auto exchange = [](bool sync) {
    auto& line = static_shared<Line>();
    line.value[me()] = me();
    const int sum = __shfl_xor_sync(kFullWarp, me(), 1);
    if (sync) __syncwarp();
    if (line.value[me() ^ 1] == sum + 1) __syncwarp();
  };
  EXPECT_TOLD(told_of({1}, 32, [exchange] { exchange(false); }), "reads what another writes: thread ");
  EXPECT_EQ(told_of({1}, 32, [exchange] { exchange(true); }), "nothing");
  // Of its own warp alone.
  EXPECT_TOLD(told_of({1}, 64,
                      [] {
                        auto& line = static_shared<Line>();
                        if (me() == 0) line.value[0] = 1;
                        __syncwarp();
                        if (me() == 32 && line.value[0] == 2) line.value[1] = 1;
                      }),
              "thread 32 reads what another writes: thread 0");
}

TEST(SimtCheckRaces, ABarrierOrdersWhatCameThroughAWarp) {
  EXPECT_EQ(told_of({1}, 64,
                    [] {
                      auto& line = static_shared<Line>();
                      if (me() == 33) line.value[0] = 1;
                      __syncwarp();
                      if (me() == 32) line.value[0] += 1;
                      __syncthreads();
                      if (line.value[0] == 3) __syncthreads();
                    }),
            "nothing");
}

// Readers that nobody has waited for stay known, however many there are.
TEST(SimtCheckRaces, EachReaderCounts) {
  for (const int late : {0, 17, 63}) {
    const auto kernel = [late] {
      auto& line = static_shared<Line>();
      if (me() == 0) line.value[0] = 1;
      __syncthreads();
      if (line.value[0] == 7) line.value[1] = 0;
      if (me() != late) __syncwarp(late / 32 == me() / 32 ? ~(1u << late % 32) : kFullWarp);
      if (me() == (late + 1) % 64) line.value[0] = 2;
    };
    EXPECT_TOLD(told_of({1}, 64, kernel), "writes what another reads: thread ");
  }
}

TEST(SimtCheckRaces, BlocksThatShareAnAddressAreTold) {
  const Ints data(64);
  int* const p = data.get();
  EXPECT_TOLD(told_of({2}, 32, [p] { p[me()] = 1; }), "writes where another writes: another block");
  EXPECT_TOLD(told_of({3}, 1,
                      [p] {
                        if (p[0] == 7) p[1] = 1;
                        if (blockIdx.x == 2) p[0] = 2;
                      }),
              "block (2, 0, 0): thread 0 writes what another reads: another block");
  EXPECT_TOLD(told_of({2}, 1,
                      [p] {
                        if (blockIdx.x == 0) p[0] = 2;
                        if (blockIdx.x == 1 && p[0] == 1) p[1] = 1;
                      }),
              "block (1, 0, 0): thread 0 reads what another writes: another block");
  EXPECT_EQ(told_of({2}, 32, [p] { p[32 * static_cast<int>(blockIdx.x) + me()] = 3; }), "nothing");
}

TEST(SimtCheckRaces, AtomicOperationsMeetOneAnotherAlone) {
  const Ints data(4);
  int* const p = data.get();
  EXPECT_EQ(told_of({2}, 64, [p] { atomicAdd(p, 1); }), "nothing");
  EXPECT_TOLD(told_of({1}, 64,
                      [p] {
                        if (me() == 40) p[0] = 1;
                        if (me() != 40) atomicAdd(p, 1);
                      }),
              "writes where another writes: thread ");
  EXPECT_TOLD(told_of({2}, 1,
                      [p] {
                        if (atomicMax(p, 1) == 9 || p[0] == 9) p[1] = 1;
                      }),
              "writes what another reads: another block");
}

}  // namespace
}  // namespace switchyard::ops::cuda
