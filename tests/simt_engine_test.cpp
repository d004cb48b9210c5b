// The emulator itself: what it computes, and that it reports what a kernel does wrong, with the kernel's name.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/mma.h"
#include "cuda/reduce.h"

namespace switchyard::ops::cuda {
namespace {

// The message of the error that f() throws.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}
void run(const char* kernel, unsigned blocks, unsigned threads, const std::function<void()>& body,
         std::size_t shared_bytes = 0) {
  simt::launch(kernel, {blocks, 1, 1}, {threads, 1, 1}, shared_bytes, body);
}

TEST(Simt, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> runs(2 * 3 * 4 * 5);
  simt::launch("k", {2, 3, 1}, {4, 5, 1}, 0, [&] {
    ++runs[((blockIdx.y * gridDim.x + blockIdx.x) * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
  });
  EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
}

struct Line {
  int value[64];
};

TEST(Simt, ABarrierShowsWhatOthersWrote) {
  std::vector<int> out(64);
  run("k", 1, 64, [&] {
    auto& line = static_shared<Line>();
    line.value[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = line.value[63 - threadIdx.x];
  });
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[static_cast<std::size_t>(i)], 63 - i);
}

TEST(Simt, SharedMemoryIsPoisonedInEachBlock) {
  int poisoned = 0;
  run(
      "k", 3, 32,
      [&] {
        auto& line = static_shared<Line>();
        if (threadIdx.x == 0 && line.value[5] == -1 && static_cast<int*>(dynamic_shared())[3] == -1) ++poisoned;
        __syncwarp();
        line.value[threadIdx.x] = static_cast<int*>(dynamic_shared())[threadIdx.x] = 7;
      },
      128);
  EXPECT_EQ(poisoned, 3);
}

TEST(Simt, ShufflesAndVotes) {
  std::vector<int> up(32), xor_half(32);
  unsigned odd = 0;
  int sum = 0;
  run("k", 1, 32, [&] {
    const int lane = static_cast<int>(threadIdx.x);
    up[threadIdx.x] = __shfl_up_sync(kFullWarp, lane, 1, 16);
    xor_half[threadIdx.x] = __shfl_xor_sync(kFullWarp, lane, 8);
    odd = __ballot_sync(kFullWarp, lane % 2);
    sum = reduce_warp<Sum>(lane);
  });
  EXPECT_EQ(up[0], 0);
  EXPECT_EQ(up[16], 16);  // the first of its segment keeps its own
  EXPECT_EQ(up[31], 30);
  EXPECT_EQ(xor_half[3], 11);
  EXPECT_EQ(odd, 0xaaaaaaaau);
  EXPECT_EQ(sum, 496);
}

TEST(Simt, LanesOfAMaskMeetWithoutTheOthers) {
  std::vector<int> out(32);
  run("k", 1, 32, [&] {
    const int lane = static_cast<int>(threadIdx.x);
    const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
    out[threadIdx.x] = __shfl_sync(half, lane, 3, 16);
  });
  EXPECT_EQ(out[10], 3);
  EXPECT_EQ(out[20], 19);
}

TEST(Simt, ReduceBlockMayBeCalledAgain) {
  std::vector<float> sums(128), maxima(128);
  run("k", 1, 128, [&] {
    sums[threadIdx.x] = reduce_block<Sum, 128>(static_cast<float>(threadIdx.x));
    maxima[threadIdx.x] = reduce_block<Max, 128>(static_cast<float>(threadIdx.x % 100));
  });
  EXPECT_EQ(sums, std::vector<float>(128, 8128));
  EXPECT_EQ(maxima, std::vector<float>(128, 99));
}

TEST(Simt, ABarrierThatSomeLeaveIsReported) {
  EXPECT_EQ(
      error_of([] {
        run("leaver", 1, 64, [] {
          if (threadIdx.x < 3) return;
          __syncthreads();
        });
      }),
      "leaver, block (0, 0, 0): 61 of 64 threads wait at a barrier that the others have left or never reach");
}

TEST(Simt, AWarpOperationThatSomeMissIsReported) {
  EXPECT_EQ(
      error_of([] {
        run("misser", 1, 32, [] {
          if (threadIdx.x != 1) __shfl_xor_sync(kFullWarp, 1.0f, 1);
        });
      }),
      "misser, block (0, 0, 0): warp 0 waits in __shfl_xor_sync for lanes 2 (a bit mask) that never come");
}

TEST(Simt, DifferentOperationsOfOneWarpAreReported) {
  const std::string error = error_of([] {
    run("mixer", 1, 32, [] {
      if (threadIdx.x < 16) {
        __shfl_xor_sync(kFullWarp, 1, 1);
      } else {
        __ballot_sync(kFullWarp, 1);
      }
    });
  });
  EXPECT_NE(error.find("mixer, block (0, 0, 0): lanes of warp 0 meet in different operations"),
            std::string::npos)
      << error;
}

TEST(Simt, AWriteBesideSharedMemoryIsReported) {
  EXPECT_EQ(error_of([] {
              run(
                  "spiller", 2, 32, [] { static_cast<int*>(dynamic_shared())[threadIdx.x + blockIdx.x] = 1; },
                  128);
            }),
            "spiller, block (1, 0, 0): writes outside its 128 bytes of dynamic shared memory");
}

TEST(Simt, AWriteBesideDeviceMemoryIsReported) {
  auto* memory = static_cast<float*>(simt::allocate(10 * sizeof(float)));
  {
    const simt::DeviceAccess access;
    EXPECT_TRUE(std::isnan(memory[9]));
  }
  EXPECT_EQ(
      error_of([&] { run("overrunner", 1, 32, [&] { memory[threadIdx.x < 11 ? threadIdx.x : 0] = 1; }); }),
      "overrunner: writes outside a piece of device memory of 40 bytes");
  simt::release(memory);
}

// What would be a kernel's pointer in the host's hands.
TEST(SimtDeathTest, TheHostMayNotTouchDeviceMemory) {
  auto* memory = static_cast<volatile float*>(simt::allocate(10 * sizeof(float)));
  EXPECT_DEATH(memory[3] = 1, "the host touches device memory");
  EXPECT_DEATH((void)memory[3], "the host touches device memory");
  run("writer", 1, 1, [&] { memory[3] = 7; });
  float value = 0;
  EXPECT_EQ(cudaMemcpy(&value, const_cast<float*>(memory) + 3, sizeof value, cudaMemcpyDeviceToHost),
            cudaSuccess);
  EXPECT_EQ(value, 7);
  simt::release(const_cast<float*>(memory));
}

// Pieces take the places of those that are gone, and begin poisoned.
TEST(Simt, DeviceMemoryIsUsedAgain) {
  auto* const first = static_cast<char*>(simt::allocate(5000));
  void* const second = simt::allocate(10);
  simt::release(first);
  void* const small = simt::allocate(100);
  void* const large = simt::allocate(50000);
  EXPECT_EQ(small, first);
  EXPECT_GT(large, second);
  EXPECT_EQ(simt::allocated_bytes(), 10u + 100 + 50000);
  {
    const simt::DeviceAccess access;
    EXPECT_EQ(static_cast<unsigned char>(first[99]), 0xff);
  }
  for (void* piece : {second, small, large}) simt::release(piece);
  EXPECT_THROW(simt::release(second), std::runtime_error);
}

TEST(Simt, TooMuchSharedMemoryIsReported) {
  struct Large {
    char bytes[49 * 1024];
  };
  EXPECT_EQ(error_of([] { run("greedy", 1, 32, [] { static_shared<Large>(); }); }),
            "greedy, block (0, 0, 0): more than 48 KiB of static shared memory");
  EXPECT_EQ(error_of([] {
              run(
                  "greedy", 1, 32, [] {}, 228 * 1024);
            }),
            "greedy, block (0, 0, 0): 0 bytes of static and 233472 of dynamic shared memory, of which 232448 "
            "were asked "
            "for");
  simt::set_max_shared_bytes(163 * 1024);
  EXPECT_EQ(simt::max_shared_bytes(), 163 * 1024);
  EXPECT_EQ(error_of([] {
              run(
                  "greedy", 1, 32, [] {}, 164 * 1024);
            }),
            "greedy, block (0, 0, 0): 0 bytes of static and 167936 of dynamic shared memory, of which 232448 "
            "were asked "
            "for");
  simt::set_max_shared_bytes(simt::kMaxSharedBytes);
}

// 48 KiB are of static and dynamic memory together, unless the function was allowed more.
TEST(Simt, SharedMemoryThatNobodyAskedForIsReported) {
  struct Piece {
    char bytes[1024];
  };
  static const char function = 0;
  const auto with_dynamic = [&](std::size_t bytes) {
    return error_of([&] {
      simt::launch(
          "kernel", {1, 1, 1}, {32, 1, 1}, bytes, [] { static_shared<Piece>(); }, &function);
    });
  };
  EXPECT_EQ(with_dynamic(47 * 1024), "no error");
  EXPECT_EQ(with_dynamic(47 * 1024 + 1),
            "kernel, block (0, 0, 0): 1024 bytes of static and 48129 of dynamic shared memory, of which 0 were "
            "asked for");
  cudaFuncAttributes attributes{};
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, &function), cudaSuccess);
  EXPECT_EQ(attributes.sharedSizeBytes, 1024u);
  const auto ask = [&](int bytes) {
    return cudaFuncSetAttribute(&function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  EXPECT_EQ(ask(227 * 1024), cudaErrorInvalidValue) << "with its static memory it is more than there is";
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(ask(48 * 1024), cudaSuccess);
  EXPECT_EQ(with_dynamic(48 * 1024), "no error");
  EXPECT_NE(with_dynamic(48 * 1024 + 1), "no error");
}

TEST(Simt, AnErrorStaysUntilItIsAskedFor) {
  int n = 0;
  EXPECT_EQ(cudaSetDevice(99), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(Simt, AGridOfTooManyBlocksIsReported) {
  EXPECT_EQ(error_of([] {
              simt::launch("wide", {1, 65536, 1}, {32, 1, 1}, 0, [] {});
            }),
            "wide, block (0, 0, 0): a grid of 1 x 65536 x 1 blocks");
}

TEST(Simt, AnErrorInAKernelLeavesTheEmulatorUsable) {
  EXPECT_EQ(error_of([] {
              run("thrower", 1, 64, [] {
                if (threadIdx.x == 40) throw std::runtime_error("out of range");
                __syncthreads();
              });
            }),
            "out of range");
  int n = 0;
  run("k", 1, 64, [&] {
    __syncthreads();
    ++n;
  });
  EXPECT_EQ(n, 64);
}

TEST(Simt, BlocksMayRunBackwards) {
  std::vector<unsigned> order;
  simt::set_block_order(simt::BlockOrder::descending);
  run("k", 3, 1, [&] { order.push_back(blockIdx.x); });
  simt::set_block_order(simt::BlockOrder::ascending);
  EXPECT_EQ(order, (std::vector<unsigned>{2, 1, 0}));
}

TEST(Simt, AsyncCopiesArriveWhenTheirGroupIsWaitedFor) {
  alignas(16) const float from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  run(
      "k", 1, 1,
      [&] {
        auto* to = static_cast<float*>(dynamic_shared());
        async_copy_16(to, from);
        async_commit();
        async_copy_16(to + 4, from + 4, 8);
        async_commit();
        EXPECT_TRUE(std::isnan(to[0]));
        async_wait<1>();
        EXPECT_EQ(to[3], 4);
        EXPECT_TRUE(std::isnan(to[4]));
        async_wait<0>();
        EXPECT_EQ(to[5], 6);
        EXPECT_EQ(to[6], 0);  // behind the 8 bytes: zeros
      },
      32);
}

// A 16 x 16 times 16 x 8 product whose fragments come through ldmatrix, as kernels get theirs.
struct Tiles {
  alignas(16) __nv_bfloat16 a[16][16];  // row-major
  alignas(16) __nv_bfloat16 b[16][16];  // row-major; columns 8 to 15 belong to a second product
};

TEST(Simt, MmaOfFragmentsFromLdmatrixIsTheProduct) {
  float out[16][8] = {};
  const auto a_at = [](unsigned i, unsigned k) { return static_cast<float>(i) - static_cast<float>(k % 5); };
  const auto b_at = [](unsigned k, unsigned j) {
    return static_cast<float>(k % 3) + 2 * static_cast<float>(j);
  };
  run("k", 1, 32, [&] {
    auto& tiles = static_shared<Tiles>();
    for (unsigned i = threadIdx.x; i < 256; i += 32) {
      tiles.a[i / 16][i % 16] = __float2bfloat16_rn(a_at(i / 16, i % 16));
      tiles.b[i / 16][i % 16] = __float2bfloat16_rn(b_at(i / 16, i % 16));
    }
    __syncwarp();
    const unsigned l = threadIdx.x;
    unsigned a[4], b[4];
    ldmatrix_x4(a, &tiles.a[l % 16][8 * (l / 16)]);
    ldmatrix_x4_transposed(b, &tiles.b[l % 16][8 * (l / 16)]);
    float d[4] = {0, 0, 0, 0};
    const unsigned b_first[2] = {b[0], b[1]};
    mma_16x8x16(d, a, b_first);
    for (unsigned i = 0; i < 4; ++i) out[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2] = d[i];
  });
  for (unsigned i = 0; i < 16; ++i) {
    for (unsigned j = 0; j < 8; ++j) {
      float sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += a_at(i, k) * b_at(k, j);
      EXPECT_EQ(out[i][j], sum) << i << ", " << j;  // small whole numbers: exact
    }
  }
}

}  // namespace
}  // namespace switchyard::ops::cuda
