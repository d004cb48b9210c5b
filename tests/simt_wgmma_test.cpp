// What the emulator does in the place of sm_90a's instructions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/elements.h"
#include "cuda/launch.h"
#include "cuda/wgmma.h"

namespace switchyard::ops::cuda {
namespace {

// The message of the error that a block of `threads` threads ends with.
template <class S>
std::string error_in_block(unsigned threads, const std::function<void(S&)>& body) {
  try {
    simt::launch("k", {1, 1, 1}, {threads, 1, 1}, kSwizzledBytes<S>, [&] { body(swizzled_shared<S>()); });
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}
template <class S>
void run_block(unsigned threads, const std::function<void(S&)>& body) {
  EXPECT_EQ(error_in_block<S>(threads, body), "no error");
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

constexpr unsigned kGroup = 128;  // threads of a warpgroup

// ---- barriers ----

struct TwoBarriers {
  Barrier full, empty;
  int value;
};

TEST(SimtWgmma, ABarrierPassesAfterItsArrivalsPhaseByPhase) {
  std::vector<int> seen;
  run_block<TwoBarriers>(64, [&](TwoBarriers& shared) {
    if (threadIdx.x == 0) {
      barrier_init(shared.full, 1);
      barrier_init(shared.empty, 32);
    }
    __syncthreads();
    for (unsigned turn = 0; turn < 3; ++turn) {
      if (threadIdx.x == 40) {
        barrier_wait(shared.empty, turn % 2 ^ 1);  // the first time at once
        shared.value = static_cast<int>(turn);
        barrier_arrive(shared.full);
      } else if (threadIdx.x < 32) {
        barrier_wait(shared.full, turn % 2);
        if (threadIdx.x == 31) seen.push_back(shared.value);
        barrier_arrive(shared.empty);
      }
    }
  });
  EXPECT_EQ(seen, (std::vector<int>{0, 1, 2}));
}

TEST(SimtWgmma, MisusedBarriersAreReported) {
  EXPECT_TRUE(contains(error_in_block<TwoBarriers>(1, [](TwoBarriers& s) { barrier_arrive(s.full); }),
                       "a barrier that was not initialised"));
  EXPECT_TRUE(
      contains(error_in_block<TwoBarriers>(1,
                                           [](TwoBarriers& s) {
                                             barrier_init(s.full, 2);
                                             barrier_arrive(s.full);
                                             barrier_wait(s.full, 0);
                                           }),
               "thread 0 waits for parity 0 of the barrier at 2048 (arrivals missing: 1, bytes: 0), which "
               "never comes"));
}

TEST(SimtWgmma, SomeThreadsMeetWithoutTheOthers) {
  int written = 0;
  run_block<TwoBarriers>(96, [&](TwoBarriers& shared) {
    if (threadIdx.x >= 64) return;
    if (threadIdx.x == 63) shared.value = 7;
    sync_some(1, 64);
    if (threadIdx.x == 0) written = shared.value;
    sync_some(1, 64);
  });
  EXPECT_EQ(written, 7);
}

// ---- bulk copies ----

struct Box {
  bf16 line[16][kBoxColumns];
  Barrier barrier;
};

// Two matrices of 10 x 70; element (m, r, c) is a number of its own that bf16 holds exactly.
struct Matrices {
  static constexpr int kRows = 10, kColumns = 70, kStride = 72;
  std::vector<bf16> value = std::vector<bf16>(2 * kRows * kStride, __float2bfloat16_rn(NAN));
  TensorMap map;

  static float at(int matrix, int row, int column) {
    return static_cast<float>((matrix * 11 + row * 7 + column) % 101);
  }
  explicit Matrices(int box_rows) {
    for (int i = 0; i < 2 * kRows * kColumns; ++i) {
      const int matrix = i / (kRows * kColumns), row = i / kColumns % kRows, column = i % kColumns;
      value[static_cast<std::size_t>((matrix * kRows + row) * kStride + column)] =
          __float2bfloat16_rn(at(matrix, row, column));
    }
    map = make_tensor_map("test", {value.data(), 2, kRows, kColumns, kStride, kRows * kStride}, box_rows);
  }
};

TEST(SimtWgmma, ABulkCopyBringsASwizzledBoxWithZerosOutside) {
  const Matrices from(16);
  run_block<Box>(1, [&](Box& shared) {
    barrier_init(shared.barrier, 1);
    fence_proxy_async();
    for (auto& line : shared.line) std::fill(line, line + kBoxColumns, from_float<bf16>(-1));
    barrier_arrive_expecting(shared.barrier, sizeof shared.line);
    bulk_copy(shared.line, from.map, shared.barrier, 1, 3, 24);
    EXPECT_TRUE(std::isnan(to_float(shared.line[0][0])));  // on its way
    barrier_wait(shared.barrier, 0);
    for (int r = 0; r < 16; ++r) {
      for (int c = 0; c < kBoxColumns; ++c) {
        const bool inside = 3 + r < Matrices::kRows && 24 + c < Matrices::kColumns;
        EXPECT_EQ(to_float(shared.line[r][(c / 8 ^ r % 8) * 8 + c % 8]),
                  inside ? Matrices::at(1, 3 + r, 24 + c) : 0)
            << r << ", " << c;
      }
    }
  });
}

TEST(SimtWgmma, MisusedBulkCopiesAreReported) {
  const Matrices from(16);
  const auto copy = [&](Box& shared, bool fence, int expected, int line) {
    barrier_init(shared.barrier, 1);
    if (fence) fence_proxy_async();
    barrier_arrive_expecting(shared.barrier, expected);
    bulk_copy(shared.line[line], from.map, shared.barrier, 0, 0, 0);
  };
  EXPECT_TRUE(contains(error_in_block<Box>(1, [&](Box& s) { copy(s, true, sizeof s.line, 0); }),
                       "leaves a bulk copy for which nobody waited"));
  EXPECT_TRUE(contains(error_in_block<Box>(1, [&](Box& s) { copy(s, false, sizeof s.line, 0); }),
                       "a bulk copy with a barrier that was not published to it"));
  EXPECT_TRUE(contains(error_in_block<Box>(1, [&](Box& s) { copy(s, true, sizeof s.line, 4); }),
                       "no multiple of 1024"));
  EXPECT_TRUE(contains(error_in_block<Box>(1,
                                           [&](Box& s) {
                                             copy(s, true, sizeof s.line + 2, 0);
                                             barrier_wait(s.barrier, 0);
                                           }),
                       "which never comes"));
}

// ---- bulk copies from shared memory ----

struct Leaving {
  float slice[2][8][32];
};
// Where element (r, c) of a slice lies.
float& in_slice(float (&slice)[8][32], int r, int c) { return slice[r][(c / 4 ^ r) * 4 + c % 4]; }

TEST(SimtWgmma, ABulkCopyFromSharedMemoryWritesOrAddsWhatLiesInTheMatrix) {
  constexpr float kTiny = 0x1p-140f;  // subnormal
  for (const bool add : {false, true}) {
    std::vector<float> to(2 * 10 * 40, 1);
    to[0] = kTiny;
    const TensorMap map = make_tensor_map("test", {to.data(), 2, 10, 36, 40, 400, DType::f32}, 8);
    run_block<Leaving>(1, [&](Leaving& shared) {
      for (int r = 0; r < 8; ++r)
        for (int c = 0; c < 32; ++c) in_slice(shared.slice[0], r, c) = static_cast<float>(32 * r + c);
      in_slice(shared.slice[1], 0, 0) = -kTiny;
      fence_proxy_async();
      (add ? bulk_add : bulk_store)(map, 1, 4, 8, shared.slice[0]);
      bulk_commit();
      (add ? bulk_add : bulk_store)(map, 0, 0, 0, shared.slice[1]);
      bulk_commit();
      bulk_wait_read<1>();
      in_slice(shared.slice[0], 0, 0) = -1;  // it has been read
      EXPECT_EQ(to[400 + 4 * 40 + 8 + 1], 1);
      bulk_wait<1>();
      EXPECT_EQ(to[0], kTiny);
      bulk_wait<0>();
    });
    for (int r = 0; r < 10; ++r)
      for (int c = 0; c < 40; ++c) {
        const bool inside = r >= 4 && c >= 8 && c < 36;
        const float sent = static_cast<float>(32 * (r - 4) + c - 8);
        EXPECT_EQ(to[static_cast<std::size_t>(400 + 40 * r + c)], !inside ? 1 : add ? 1 + sent : sent);
      }
    EXPECT_EQ(to[0], add ? 0 : -kTiny);
  }
}
TEST(SimtWgmma, MisusedBulkCopiesFromSharedMemoryAreReported) {
  std::vector<float> to(8 * 32);
  const TensorMap map = make_tensor_map("test", {to.data(), 1, 8, 32, 32, 256, DType::f32}, 8);
  const auto error = [&](bool fence, bool wait, int row) {
    return error_in_block<Leaving>(1, [&, fence, wait, row](Leaving& shared) {
      in_slice(shared.slice[0], 0, 0) = 1;
      if (fence) fence_proxy_async();
      bulk_store(map, 0, 0, 0, shared.slice[0][row]);
      bulk_commit();
      bulk_wait_read<0>();
      if (wait) bulk_wait<0>();
    });
  };
  EXPECT_EQ(error(true, true, 0), "no error");
  EXPECT_EQ(to[0], 1);
  EXPECT_EQ(error(false, true, 0), "no error");
  EXPECT_TRUE(std::isnan(to[0]));  // what was not published is not there
  EXPECT_TRUE(contains(error(true, false, 0), "leaves a bulk copy from shared memory"));
  EXPECT_TRUE(contains(error(true, true, 1), "no multiple of 1024"));
}

// ---- products ----

constexpr int kDepth = 64;  // elements of K

template <int kN>
struct Operands {
  bf16 a[64 * kDepth], b[kN * kDepth];
};
// Where element (i, k) lies.
int place(bool along_k, int i, int k) {
  return along_k ? i * kDepth + (k / 8 ^ i % 8) * 8 + k % 8
                 : (i / 64 * kDepth + k) * 64 + (i % 64 / 8 ^ k % 8) * 8 + i % 8;
}
float a_at(int i, int k) { return static_cast<float>((i + 3 * k) % 7 - 3); }
float b_at(int j, int k) { return static_cast<float>((5 * j + k * k) % 11 - 5); }

template <int kN>
void write_operands(Operands<kN>& shared, bool a_along_m, bool b_along_n) {
  for (int place_of_one = static_cast<int>(threadIdx.x); place_of_one < std::max(kN, 64) * kDepth;
       place_of_one += kGroup) {
    const int i = place_of_one / kDepth, k = place_of_one % kDepth;
    if (i < 64) shared.a[place(!a_along_m, i, k)] = from_float<bf16>(a_at(i, k));
    if (i < kN) shared.b[place(!b_along_n, i, k)] = from_float<bf16>(b_at(i, k));
  }
}
template <int kN, bool kAAlongM, bool kBAlongN>
void begin_products(float (&sum)[kN / 2], Operands<kN>& shared, bool add) {
  constexpr int kNextLines = 1024, kNextBlock = 64 * 128;
  const std::uint64_t a = operand_at(shared.a, kAAlongM ? kNextBlock : 16, kNextLines);
  const std::uint64_t b = operand_at(shared.b, kBAlongN ? kNextBlock : 16, kNextLines);
  for (int k = 0; k < kDepth; k += 16) {
    wgmma<kAAlongM, kBAlongN>(sum, moved(a, kAAlongM ? k * 128 : 2 * k), moved(b, kBAlongN ? k * 128 : 2 * k),
                              add || k > 0);
  }
}

template <int kN, bool kAAlongM, bool kBAlongN>
void expect_product() {
  run_block<Operands<kN>>(kGroup, [](Operands<kN>& shared) {
    write_operands(shared, kAAlongM, kBAlongN);
    fence_proxy_async();
    __syncthreads();
    float sum[kN / 2] = {NAN};  // not added to
    wgmma_fence();
    begin_products<kN, kAAlongM, kBAlongN>(sum, shared, false);
    wgmma_commit();
    begin_products<kN, kAAlongM, kBAlongN>(sum, shared, true);
    wgmma_commit();
    EXPECT_TRUE(std::isnan(sum[1]));
    wgmma_wait<1>();
    EXPECT_TRUE(std::isnan(sum[1]));  // the second group still adds to it
    wgmma_wait<0>();
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = 0; i < kN / 2; ++i) {
      const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      float expected = 0;
      for (int k = 0; k < kDepth; ++k) expected += 2 * a_at(row, k) * b_at(column, k);
      ASSERT_EQ(sum[i], expected) << row << ", " << column;  // small whole numbers: exact
    }
  });
}
TEST(SimtWgmma, ProductsOfOperandsInBothOrders) {
  expect_product<32, false, false>();
  expect_product<64, false, false>();
  expect_product<64, true, true>();
  expect_product<128, false, false>();
  expect_product<128, true, false>();
  expect_product<128, false, true>();
  expect_product<128, true, true>();
  expect_product<256, false, false>();
  expect_product<256, false, true>();
  expect_product<256, true, true>();
}

// The sums of one product, rounded, are the left operand of the next.
template <int kN, bool kBAlongN>
void expect_product_from_registers() {
  run_block<Operands<kN>>(kGroup, [](Operands<kN>& shared) {
    write_operands(shared, false, kBAlongN);
    fence_proxy_async();
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    unsigned a[kDepth / 16][4];
    for (int j = 0; j < kDepth / 16; ++j)
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * (i % 2), k = 16 * j + 2 * (lane % 4) + 8 * (i / 2);
        const auto bits = [&](int at) {
          const bf16 value = from_float<bf16>(a_at(row, at));
          std::uint16_t result;
          std::memcpy(&result, &value, sizeof result);
          return unsigned{result};
        };
        a[j][i] = bits(k) | bits(k + 1) << 16;
      }
    const std::uint64_t b = operand_at(shared.b, kBAlongN ? 64 * 128 : 16, 1024);
    float sum[kN / 2] = {};
    wgmma_fence();
    for (int j = 0; j < kDepth / 16; ++j)
      wgmma<kBAlongN>(sum, a[j], moved(b, kBAlongN ? 16 * j * 128 : 32 * j), true);
    wgmma_commit();
    EXPECT_TRUE(std::isnan(sum[1]));
    wgmma_wait<0>();
    for (int i = 0; i < kN / 2; ++i) {
      const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      float expected = 0;
      for (int k = 0; k < kDepth; ++k) expected += a_at(row, k) * b_at(column, k);
      ASSERT_EQ(sum[i], expected) << row << ", " << column;
    }
  });
}
TEST(SimtWgmma, ProductsOfRegisters) {
  expect_product_from_registers<64, true>();
  expect_product_from_registers<192, true>();
  expect_product_from_registers<128, false>();
  expect_product_from_registers<128, true>();
  expect_product_from_registers<256, true>();
}

TEST(SimtWgmma, MisusedProductsAreReported) {
  using S = Operands<128>;
  const auto product = [](S& shared, bool fence, float(&sum)[64]) {
    if (fence) wgmma_fence();
    begin_products<128, false, false>(sum, shared, false);
    wgmma_commit();
  };
  EXPECT_TRUE(contains(error_in_block<S>(kGroup,
                                         [&](S& s) {
                                           float sum[64] = {};
                                           product(s, false, sum);
                                         }),
                       "without a wgmma.fence"));
  EXPECT_TRUE(contains(error_in_block<S>(kGroup,
                                         [&](S& s) {
                                           float sum[64] = {};
                                           product(s, true, sum);
                                         }),
                       "leaves products for which nobody waited"));
  EXPECT_TRUE(contains(error_in_block<S>(kGroup,
                                         [&](S& s) {
                                           float sum[64] = {};
                                           if (threadIdx.x >= 32) product(s, true, sum);
                                           wgmma_wait<0>();
                                         }),
                       "a warp left out a product of its warpgroup"));
  EXPECT_TRUE(contains(error_in_block<S>(kGroup,
                                         [&](S& s) {
                                           float sum[64] = {};
                                           wgmma_fence();
                                           const auto operand =
                                               operand_at(s.a + threadIdx.x / 32 * 8, 16, 1024);
                                           wgmma<false, false>(sum, operand, operand, false);
                                           wgmma_commit();
                                           wgmma_wait<0>();
                                         }),
                       "warps of one warpgroup begin different products"));
}

TEST(SimtWgmma, ProductsDoNotSeeWhatWasNotPublished) {
  run_block<Operands<128>>(kGroup, [](Operands<128>& shared) {
    write_operands(shared, false, false);
    __syncthreads();
    float sum[64];
    wgmma_fence();
    begin_products<128, false, false>(sum, shared, false);
    wgmma_commit();
    wgmma_wait<0>();
    EXPECT_TRUE(std::isnan(sum[0]));
  });
}

}  // namespace
}  // namespace switchyard::ops::cuda
