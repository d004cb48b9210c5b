// What the checks of the emulator tell of kernels that touch memory which is not theirs, or hold nothing, and
// of threads that meet where they should not. Compiled with hooks.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/elements.h"
#include "cuda/mma.h"
#include "cuda/reduce.h"
#include "simt_check_support.h"

namespace switchyard::ops::cuda {
namespace {

struct Line {
  int value[64];
};

TEST(SimtCheckMemory, AccessesBesideAPieceAreTold) {
  const Ints data(6);
  int* const p = data.get();
  EXPECT_TOLD(told_of({1}, 1,
                      [p] {
                        if (p[6] == 7) p[0] = 1;
                      }),
              "reads beside a piece of device memory");
  EXPECT_TOLD(told_of({1}, 1,
                      [p] {
                        if (p[-1] == 7) p[0] = 1;
                      }),
              "reads beside a piece of device memory");
  // Half of it.
  EXPECT_TOLD(told_of({1}, 1,
                      [p] {
                        if (load<4>(p + 4).element[3] == 7) p[0] = 1;
                      }),
              "reads beside a piece of device memory");
  EXPECT_TOLD(told_of({1}, 1, [p] { p[6] = 1; }), "writes beside a piece of device memory");
  EXPECT_TOLD(told_of({1}, 64,
                      [] {
                        if (static_shared<Line>().value[me() + 1] == 7) __syncthreads();
                      }),
              "thread 63 reads beside a piece of shared memory");
  EXPECT_TOLD(told_of(
                  {1}, 1, [] { static_cast<int*>(dynamic_shared())[8] = 1; }, 32),
              "writes beside a piece of shared memory");
}

TEST(SimtCheckMemory, ReleasedMemoryIsTold) {
  int* gone = nullptr;
  {
    const Ints data(6);
    gone = data.get();
  }
  EXPECT_TOLD(told_of({1}, 1, [gone] { gone[0] = 1; }), "writes beside a piece of device memory");
}

constexpr const char* kReadsHost = "thread 0 reads memory of the host that is not page-locked: 0x";
constexpr const char* kWritesHost = "thread 0 writes memory of the host that is not page-locked: 0x";

TEST(SimtCheckMemory, HeapOfTheHostIsTold) {
  const Ints data(4);
  int* const to = data.get();
  std::vector<int> heap(64);
  int* const p = heap.data();
  const auto read = [p, to] {
    if (p[3] == 7) to[0] = 1;
  };
  EXPECT_TOLD(told_of({1}, 1, read), kReadsHost);
  EXPECT_TOLD(told_of({1}, 1, [p] { p[3] = 1; }), kWritesHost);
  EXPECT_TOLD(told_of({1}, 1, [p] { atomicAdd(p, 1); }), kWritesHost);
  EXPECT_TOLD(told_of(
                  {1}, 1,
                  [p] {
                    auto* const shared = static_cast<int*>(dynamic_shared());
                    const auto aligned = reinterpret_cast<std::uintptr_t>(p + 3) / 16 * 16;
                    async_copy_16(shared, reinterpret_cast<const void*>(aligned));
                    async_commit();
                    async_wait<0>();
                  },
                  16),
              "a copy of thread 0 reads memory of the host that is not page-locked: 0x");
  const std::string told = told_of({1}, 1, [p] { p[3] = 1; });
  EXPECT_TOLD(told, "at tests/simt_check_memory_test.cpp:");
}

struct Arguments {
  const int* number;
  int* to;
};
TEST(SimtCheckMemory, TheHostsStackInAnArgumentIsTold) {
  const Ints data(4);
  const auto kernel = [](const Arguments& arguments) {
    return [arguments] {
      if (*arguments.number == 7) arguments.to[0] = 1;
    };
  };
  volatile int number = 7;
  EXPECT_TOLD(told_of({1}, 1, kernel({const_cast<const int*>(&number), data.get()})), kReadsHost);
  EXPECT_EQ(told_of({1}, 1, kernel({data.get() + 1, data.get()})), "nothing");
}

int of_program[4] = {1, 2, 3, 4};
TEST(SimtCheckMemory, WhatADeviceReachesIsNotTold) {
  void* memory = nullptr;
  ASSERT_EQ(cudaHostAlloc(&memory, 64, cudaHostAllocMapped), cudaSuccess);
  int* const p = static_cast<int*>(memory);
  const auto kernel = [p] {
    int own[4] = {p[0], of_program[3]};
    int* volatile second = own + 1;
    p[15] = *second;
  };
  p[0] = 0;
  EXPECT_EQ(told_of({1}, 1, kernel), "nothing");
  EXPECT_EQ(p[15], 4);
  ASSERT_EQ(cudaFreeHost(memory), cudaSuccess);
}

TEST(SimtCheckMemory, WhatWasNeverWrittenIsTold) {
  EXPECT_TOLD(told_of({1}, 32,
                      [] {
                        if (static_shared<Line>().value[3] == 7) __syncwarp();
                      }),
              "thread 0 reads what was never written");
  // Not even where the block before has.
  EXPECT_TOLD(told_of({2}, 32,
                      [] {
                        auto& line = static_shared<Line>();
                        if (blockIdx.x == 0) line.value[me()] = 1;
                        if (blockIdx.x == 1 && line.value[me()] == 7) __syncwarp();
                      }),
              "block (1, 0, 0): thread 0 reads what was never written");
  void* memory = nullptr;
  cudaMalloc(&memory, 64);
  int* const p = static_cast<int*>(memory);
  const auto read = [p] {
    if (p[3] == 7) p[4] = 1;
  };
  EXPECT_TOLD(told_of({1}, 1, read), "reads what was never written");
  // -1, which is what poison looks like.
  EXPECT_EQ(told_of({1}, 1, [p] { p[3] = -1; }), "nothing");
  EXPECT_EQ(told_of({1}, 1, read), "nothing");
  cudaMemset(memory, 0xff, 64);  // as scratch memory is handed out
  EXPECT_TOLD(told_of({1}, 1, read), "reads what was never written");
  const int minus_one[16] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  cudaMemcpy(memory, minus_one, 64, cudaMemcpyHostToDevice);
  EXPECT_EQ(told_of({1}, 1, read), "nothing");
  cudaFree(memory);
}

TEST(SimtCheckMemory, MisalignedPacksAreTold) {
  const Ints data(16);
  int* const p = data.get();
  EXPECT_EQ(told_of({1}, 1, [p] { store<4>(p + 4, load<4>(p)); }), "nothing");
  EXPECT_TOLD(told_of({1}, 1, [p] { store<4>(p + 4, load<4>(p + 1)); }), "misaligned");
  EXPECT_TOLD(told_of({1}, 1, [p] { store<2>(p + 3, load<2>(p)); }), "misaligned");
  EXPECT_TOLD(told_of(
                  {1}, 1, [p] { async_copy_16(dynamic_shared(), p + 2); }, 16),
              "no multiple of that");
}

TEST(SimtCheckMemory, AShuffleFromALaneThatIsNotThereFails) {
  EXPECT_TOLD(told_of({1}, 32,
                      [] {
                        if (me() < 16) (void)__shfl_sync(0xffffu, me(), 20);
                      }),
              "a shuffle from lane 20, which takes no part in it");
  EXPECT_TOLD(told_of({1}, 20, [] { (void)__shfl_xor_sync(kFullWarp, me(), 16); }), "a shuffle from lane ");
  EXPECT_EQ(told_of({1}, 32, [] { (void)__shfl_down_sync(kFullWarp, me(), 16); }), "nothing");
}

TEST(SimtCheckMemory, BarriersAtDifferentPlacesAreTold) {
  const auto apart = [] {
    if (me() < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  EXPECT_TOLD(told_of({1}, 64, apart), "meets others in a barrier, who are at another place");
}

}  // namespace
}  // namespace switchyard::ops::cuda
