// What the checks of the emulator tell of asynchronous copies, barriers in shared memory and products whose
// operands are touched too early. Compiled with hooks.
#include <gtest/gtest.h>

#include "cuda/elements.h"
#include "cuda/wgmma.h"
#include "simt_check_support.h"

namespace switchyard::ops::cuda {
namespace {

constexpr unsigned kGroup = 128;  // threads of a warpgroup

template <class S, class Body>
std::string told_of_block(unsigned threads, const Body& body) {
  return told_of(
      {1}, threads, [body] { body(swizzled_shared<S>()); }, kSwizzledBytes<S>);
}

// ---- copies of a thread ----

struct Copied {
  int value[2][64];
};

// Each thread copies 16 bytes to each half; another reads those of the first.
std::string told_of_copies(int waited_for, bool barrier, bool same_place = false) {
  const Ints data(64);
  const int* const from = data.get();
  return told_of_block<Copied>(16, [=](Copied& shared) {
    async_copy_16(&shared.value[0][4 * me()], from + 4 * me());
    async_commit();
    async_copy_16(&shared.value[same_place ? 0 : 1][4 * me()], from + 4 * me());
    async_commit();
    if (waited_for == 1) async_wait<1>();
    if (waited_for == 2) async_wait<0>();
    if (barrier) __syncthreads();
    const int mine = shared.value[0][4 * me() + 1], other = shared.value[0][(4 * me() + 5) % 64];
    if (mine + other == 7) __syncthreads();
    async_wait<0>();
  });
}
TEST(SimtCheckAsync, CopiesAreThereAfterTheirGroupIsWaitedForAndABarrier) {
  EXPECT_EQ(told_of_copies(1, true), "nothing");
  EXPECT_TOLD(told_of_copies(0, true), "reads what another writes: a copy of thread 0");
  EXPECT_TOLD(told_of_copies(1, false), "reads what another writes: a copy of thread ");
  EXPECT_TOLD(told_of_copies(2, true, true),
              "a copy of thread 0 writes where another writes: a copy of thread 0");
}

// ---- barriers ----

struct Handed {
  int value;
  Barrier full, empty;
};

// Thread 0 hands numbers to the threads of warp 1.
std::string told_of_handing(bool init_barrier, bool wait_full, bool wait_empty) {
  return told_of_block<Handed>(64, [=](Handed& shared) {
    if (me() == 0) {
      barrier_init(shared.full, 1);
      barrier_init(shared.empty, 32);
    }
    if (init_barrier) __syncthreads();
    for (unsigned turn = 0; turn < 3; ++turn) {
      if (me() == 0) {
        if (wait_empty) barrier_wait(shared.empty, turn % 2 ^ 1);
        shared.value = static_cast<int>(turn);
        barrier_arrive(shared.full);
      } else if (me() >= 32) {
        if (wait_full) barrier_wait(shared.full, turn % 2);
        if (shared.value == 7) __syncwarp();
        if (wait_empty) barrier_arrive(shared.empty);
      }
    }
  });
}
TEST(SimtCheckAsync, BarriersInSharedMemoryOrder) {
  EXPECT_EQ(told_of_handing(true, true, true), "nothing");
  EXPECT_TOLD(told_of_handing(true, false, true), "reads what another writes: thread 0");
  EXPECT_TOLD(told_of_handing(true, false, false), "reads what another writes: thread 0");
  // Who uses a barrier must know that it is made.
  EXPECT_TOLD(told_of_handing(false, true, true), "thread 32 reads what another writes: thread 0");
}

// Thread 32 waits for the first phase alone, and reads what is written before the second one ends.
TEST(SimtCheckAsync, APhaseIsNotOrderedWithTheNext) {
  const auto kernel = [](Handed& shared) {
    if (me() == 0) barrier_init(shared.full, 1);
    __syncthreads();
    if (me() == 0) {
      shared.value = 1;
      barrier_arrive(shared.full);
    }
    if (me() == 32 || me() == 40) barrier_wait(shared.full, 0);
    if (me() == 32 && shared.value == 7) __syncwarp(1);
    if (me() == 40) {
      shared.value = 2;
      barrier_arrive(shared.full);
    }
  };
  EXPECT_TOLD(told_of_block<Handed>(64, kernel), "thread 40 writes what another reads: thread 32");
}

TEST(SimtCheckAsync, SomeThreadsThatMeetKnowOfEachOther) {
  const auto meet = [](int reader) {
    return told_of_block<Handed>(96, [reader](Handed& shared) {
      if (me() == 0) shared.value = 1;
      if (me() < 64) sync_some(1, 64);
      if (me() == reader && shared.value == 7) __syncwarp();
    });
  };
  EXPECT_EQ(meet(63), "nothing");
  EXPECT_TOLD(meet(64), "thread 64 reads what another writes: thread 0");
}

// ---- bulk copies ----

struct Box {
  bf16 line[16][kBoxColumns];
  Barrier full, empty;
};
struct BulkCase {
  bool publish_barrier = true, wait_full = true, wait_empty = true, write_first = false, publish_write = true;
};
// Thread 0 brings two boxes to one place, one after the other, for the threads of warp 1.
std::string told_of_bulk_copies(const BulkCase& c) {
  const Ints data(16 * kBoxColumns / 2);
  const TensorMap map =
      make_tensor_map("test", {data.get(), 1, 16, kBoxColumns, kBoxColumns, 16 * kBoxColumns}, 16);
  return told_of_block<Box>(64, [=](Box& shared) {
    if (me() == 0) {
      barrier_init(shared.full, 1);
      barrier_init(shared.empty, 32);
      if (c.publish_barrier) fence_proxy_async();
    }
    if (c.write_first) {
      if (me() == 40) shared.line[3][5] = {};
      if (c.publish_write == (me() == 40)) fence_proxy_async();
    }
    __syncthreads();
    for (unsigned turn = 0; turn < 2; ++turn) {
      if (me() == 0) {
        if (c.wait_empty) barrier_wait(shared.empty, turn % 2 ^ 1);
        if (!c.wait_empty && turn > 0) barrier_wait(shared.full, turn - 1);
        barrier_arrive_expecting(shared.full, sizeof shared.line);
        bulk_copy(shared.line, map, shared.full, 0, 0, 0);
      } else if (me() >= 32) {
        if (c.wait_full) barrier_wait(shared.full, turn % 2);
        if (shared.line[me() % 16][7].bits == 7) __syncwarp();
        if (c.wait_empty) barrier_arrive(shared.empty);
      }
    }
    if (!c.wait_full && me() == 32) {
      barrier_wait(shared.full, 0);
      barrier_wait(shared.full, 1);
    }
  });
}
TEST(SimtCheckAsync, BulkCopiesAreThereAfterTheirBarrier) {
  EXPECT_EQ(told_of_bulk_copies({}), "nothing");
  EXPECT_TOLD(told_of_bulk_copies({.wait_full = false}), "reads what another writes: a bulk copy");
}
TEST(SimtCheckAsync, ABulkCopyOverWhatIsReadIsTold) {
  EXPECT_TOLD(told_of_bulk_copies({.wait_full = true, .wait_empty = false}), "another");
}
TEST(SimtCheckAsync, AFenceOfAnotherThreadPublishesNothing) {
  EXPECT_EQ(told_of_bulk_copies({.write_first = true}), "nothing");
  EXPECT_TOLD(told_of_bulk_copies({.write_first = true, .publish_write = false}),
              "a bulk copy meets what no fence has published to bulk copies and products: thread 40");
}

// ---- bulk copies from shared memory ----

struct Leaving {
  float slice[2][8][32];
};
struct StoreCase {
  bool publish = true, meet = true, add = false, same_lane_waits = true;
  int first_wait = 1;  // groups that may go on when slice 0 is written again; more: nobody waits
  bool same_place = false;
};
// A warp writes three slices into two places, one after the other, and sends each with lane 0.
std::string told_of_stores(const StoreCase& c) {
  const Ints data(3 * 8 * 32);
  const TensorMap map = make_tensor_map("test", {data.get(), 1, 24, 32, 32, 24 * 32, DType::f32}, 8);
  return told_of_block<Leaving>(32, [=](Leaving& shared) {
    for (int i = 0; i < 3; ++i) {
      if (i == 2) {
        if (me() == (c.same_lane_waits ? 0 : 1)) {
          if (c.first_wait == 0) bulk_wait_read<0>();
          if (c.first_wait == 1) bulk_wait_read<1>();
        }
        __syncwarp();
      }
      for (int row = 0; row < 8; ++row) shared.slice[i % 2][row][me()] = 1;
      if (c.publish || me() == 0) fence_proxy_async();
      if (c.meet) __syncwarp();
      if (me() == 0) {
        const int to = c.same_place ? 0 : 8 * i;
        if (c.add) bulk_add(map, 0, to, 0, shared.slice[i % 2]);
        if (!c.add) bulk_store(map, 0, to, 0, shared.slice[i % 2]);
        bulk_commit();
      }
    }
    bulk_wait<0>();
  });
}
TEST(SimtCheckAsync, ABulkCopyFromSharedMemoryReadsUntilItIsWaitedFor) {
  EXPECT_EQ(told_of_stores({}), "nothing");
  EXPECT_EQ(told_of_stores({.add = true, .first_wait = 0}), "nothing");
  EXPECT_TOLD(told_of_stores({.first_wait = 2}), "writes what another reads: a bulk copy");
  // Groups are of the thread that began them.
  EXPECT_TOLD(told_of_stores({.same_lane_waits = false}), "writes what another reads: a bulk copy");
}
TEST(SimtCheckAsync, ABulkCopyFromSharedMemoryMeetsWhatAllHavePublished) {
  EXPECT_TOLD(told_of_stores({.publish = false}),
              "a bulk copy meets what no fence has published to bulk copies and products: thread ");
  EXPECT_TOLD(told_of_stores({.meet = false}), "another");
}
TEST(SimtCheckAsync, TwoBulkCopiesToOnePlaceAreTold) {
  for (const bool add : {false, true})
    EXPECT_TOLD(told_of_stores({.add = add, .same_place = true}), "another writes: a bulk copy");
}

// ---- products ----

constexpr int kN = 32, kDepth = 64;
struct Operands {
  bf16 a[64 * kDepth], b[kN * kDepth];
};
struct ProductCase {
  bool all_fence = true, barrier = true, wait = true, last_barrier = true;
};
std::string told_of_product(const ProductCase& c) {
  return told_of_block<Operands>(kGroup, [=](Operands& shared) {
    for (int i = me(); i < 64 * kDepth; i += static_cast<int>(kGroup)) shared.a[i] = {};
    for (int i = me(); i < kN * kDepth; i += static_cast<int>(kGroup)) shared.b[i] = {};
    if (c.all_fence || me() % 32 == 0) fence_proxy_async();
    if (c.barrier) __syncthreads();
    float sum[kN / 2] = {};
    wgmma_fence();
    wgmma<false, false>(sum, operand_at(shared.a, 16, 1024), operand_at(shared.b, 16, 1024), false);
    wgmma_commit();
    if (c.wait) wgmma_wait<0>();
    if (c.last_barrier) __syncthreads();
    shared.b[me() * 8] = {};
    wgmma_wait<0>();
  });
}
TEST(SimtCheckAsync, ProductsReadUntilTheyAreWaitedFor) {
  EXPECT_EQ(told_of_product({}), "nothing");
  EXPECT_TOLD(told_of_product({.wait = false}), "writes what another reads: a product of warp ");
  EXPECT_TOLD(told_of_product({.last_barrier = false}), "writes what another reads: a product of warp ");
  // Which of the two comes first is chance.
  EXPECT_TOLD(told_of_product({.barrier = false}), "another");
}
TEST(SimtCheckAsync, EachThreadPublishesWhatItHasWrittenItself) {
  EXPECT_TOLD(told_of_product({.all_fence = false}),
              "a product of warp 0 meets what no fence has published to bulk copies and products: thread ");
}

enum class Touched { nothing, before, sums_meanwhile, left_meanwhile };
std::string told_of_registers(Touched touched) {
  return told_of_block<Operands>(kGroup, [=](Operands& shared) {
    for (int i = me(); i < kN * kDepth; i += static_cast<int>(kGroup)) shared.b[i] = {};
    fence_proxy_async();
    __syncthreads();
    float sum[kN / 2] = {};
    unsigned a[4] = {};
    wgmma_fence();
    if (touched == Touched::before) a[2] = 1;
    wgmma<false>(sum, a, operand_at(shared.b, 16, 1024), false);
    wgmma_commit();
    if (touched == Touched::sums_meanwhile) sum[3] = 1;
    if (touched == Touched::left_meanwhile) a[1] = 1;
    wgmma_wait<0>();
  });
}
TEST(SimtCheckAsync, RegistersOfProductsStayAsTheyAre) {
  EXPECT_EQ(told_of_registers(Touched::nothing), "nothing");
  EXPECT_TOLD(told_of_registers(Touched::before), "without a wgmma.fence after its registers were written");
  EXPECT_TOLD(told_of_registers(Touched::sums_meanwhile),
              "sums of a product are written before it was waited for");
  EXPECT_TOLD(told_of_registers(Touched::left_meanwhile), "left operand are written before it was waited for");
}

}  // namespace
}  // namespace switchyard::ops::cuda
