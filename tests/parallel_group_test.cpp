// What ranks do with each other, over threads as ranks and their shared memory.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "group_checks.h"
#include "ops/elementwise.h"
#include "world_threads.h"

namespace switchyard::test {
namespace {

const int kSizes[] = {1, 2, 3, 5, 8};
constexpr std::size_t kSmallRing = 256;

class GroupChecks : public ::testing::TestWithParam<GroupCheck> {};
TEST_P(GroupChecks, OfThreads) {
  for (int size : kSizes) {
    SCOPED_TRACE(size);
    on_world_threads(size, GetParam().check, kSmallRing);
    on_world_threads(size, GetParam().check);
  }
}
// Ranks that come to each exchange at another time: what one has put in before the others look.
TEST_P(GroupChecks, OfThreadsThatComeLate) {
  on_world_threads(
      8,
      [&](World& world) {
        std::mt19937 random(static_cast<unsigned>(world.rank()));
        for (int round = 0; round < 10; ++round) {
          std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
          GetParam().check(world);
        }
      },
      kSmallRing);
}
// The mapping is inherited, as with --nproc.
TEST_P(GroupChecks, OfProcesses) {
  constexpr int kRanks = 3;
  parallel::SharedMemory memory(kRanks, kSmallRing);
  std::vector<pid_t> children;
  std::fflush(stdout);  // else each child writes what is there, too
  for (int rank = 0; rank < kRanks; ++rank) {
    children.push_back(fork());
    ASSERT_GE(children.back(), 0);
    if (children.back() > 0) continue;
    omp_set_num_threads(1);
    World world = world_of_thread(memory, rank);
    GetParam().check(world);
    std::fflush(stdout);
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  for (pid_t child : children) {
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
}
INSTANTIATE_TEST_SUITE_P(Each, GroupChecks, ::testing::ValuesIn(kGroupChecks),
                         [](const auto& each) { return std::string(each.param.name); });

TEST(Group, PartsCoverTheWholeInBlocksAndAsEvenlyAsTheyCan) {
  for (int n : {1, 2, 3, 7, 8})
    for (std::int64_t block : {1, 4, 1000})
      for (std::int64_t total : {0, 1, 5, 999, 1000, 1001, 8000, 12345}) {
        std::int64_t next = 0;
        const std::int64_t blocks = (total + block - 1) / block;
        for (int place = 0; place < n; ++place) {
          const Part part = parallel::part_of(total, block, n, place);
          EXPECT_EQ(part.first, next);
          EXPECT_TRUE(part.first % block == 0 || part.first == total) << part.first;
          const std::int64_t part_blocks = (part.count + block - 1) / block;
          EXPECT_TRUE(part_blocks == blocks / n || part_blocks == (blocks + n - 1) / n) << part_blocks;
          next += part.count;
        }
        EXPECT_EQ(next, total);
      }
}

TEST(Group, AddsByHalvesInTheOrderOfTheDefinition) {
  for (DType dtype : {DType::f32, DType::f64})
    for (int n : {1, 2, 3, 4, 5, 6, 7, 8, 13, 16})
      for (bool into_first : {false, true}) {
        PoisonedContext ctx;
        const std::int64_t count = 37;
        const OwnedTensor piece_NX({n, count}, dtype), apart({count}, dtype);
        for (int rank = 0; rank < n; ++rank)
          for (std::int64_t i = 0; i < count; ++i) set(piece_NX, rank * count + i, element(rank, i));
        const Tensor sum = into_first ? piece_NX.view().slice(0, 1).reshape({count}) : apart.view();
        ops::sum_by_halves(sum, {}, parallel::leaves(piece_NX, n), ctx);
        for (std::int64_t i = 0; i < count; ++i) EXPECT_EQ(get(sum, i), sum_over_ranks(dtype, n, i)) << n;
      }
}

TEST(Group, OwnersSumsTakeBoundedScratch) {
  constexpr std::int64_t kPiece = 1 << 20;  // f32 of 4 MiB
  on_world_threads(2, [&](World& world) {
    const Group group = all_of(world);
    PoisonedContext ctx;
    const std::vector<Part> part_N = {{0, 2 * kPiece + 5}, {2 * kPiece + 5, kPiece + 1}};
    const OwnedTensor x = made_by(world.rank(), 3 * kPiece + 6, DType::f32);
    group.sum_to_owners(x, part_N, Traffic::gradients, ctx);
    const Part own = part_N[static_cast<std::size_t>(world.rank())];
    std::int64_t wrong = 0;
    for (std::int64_t i = own.first; i < own.first + own.count; ++i)
      wrong += x[i] != sum_over_ranks(DType::f32, 2, i);
    EXPECT_EQ(wrong, 0);
    EXPECT_LE(ctx.scratch.reserved(), 2 * 4 * kPiece + 4096);  // two pieces, and what the scratch rounds up to
  });
}

TEST(Group, ABarrierWaitsForAll) {
  std::atomic<int> arrived{0};
  on_world_threads(5, [&](World& world) {
    const Group group = all_of(world);
    for (int round = 1; round <= 50; ++round) {
      ++arrived;
      group.barrier();
      EXPECT_GE(arrived.load(), 5 * round);
      group.barrier();
    }
  });
}

TEST(Group, AMeshHoldsExpertsInNeighboursAndReplicasInStrides) {
  on_world_threads(6, [](World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, 2);
    const int rank = world.rank();
    EXPECT_EQ(mesh.all.ranks(), (std::vector<int>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(mesh.expert.ranks(), (std::vector<int>{rank / 2 * 2, rank / 2 * 2 + 1}));
    EXPECT_EQ(mesh.replicas.ranks(), (std::vector<int>{rank % 2, rank % 2 + 2, rank % 2 + 4}));
    EXPECT_EQ(mesh.all.place(), rank);
    EXPECT_EQ(mesh.expert.place(), rank % 2);
    EXPECT_EQ(mesh.replicas.place(), rank / 2);
    Context ctx;
    const OwnedTensor x = doubles({static_cast<double>(rank)});
    mesh.replicas.sum(x, Traffic::sums, ctx);
    EXPECT_EQ(x[0], 3 * (rank % 2) + 6);
    mesh.expert.sum(x, Traffic::sums, ctx);
    EXPECT_EQ(x[0], 15);  // of all ranks, one group after the other
  });
}

TEST(Group, RefusesWhatItCannotMove) {
  World world = parallel::make_lone_world();
  const Group group = all_of(world);
  Context ctx;
  const OwnedTensor strided = OwnedTensor::strided(3, 4, DType::f32), whole({3, 4}, DType::f32);
  EXPECT_THROW(group.all_gather(whole, strided, Traffic::weights, ctx), std::logic_error);
  EXPECT_THROW(group.sum(ints({1, 2}), Traffic::sums, ctx), std::logic_error);
  EXPECT_THROW(group.exchange(whole, OwnedTensor({3, 5}, DType::f32), Traffic::tokens, ctx), std::logic_error);
  const Tensor elsewhere(whole.view().raw(), {3, 4}, DType::f32, Device::cuda);
  EXPECT_NO_THROW(group.sum(elsewhere, Traffic::sums, ctx));  // the sum of one rank is there
  on_world_threads(2, [&](World& several) {
    Context own;
    EXPECT_THROW(all_of(several).sum(elsewhere, Traffic::sums, own), std::logic_error);
  });
  EXPECT_THROW(parallel::make_mesh(world, 2), std::logic_error);
  EXPECT_THROW(Group(*world.transport, {0, 1}), std::logic_error);
}

// A transport of as many ranks as one says, which moves nothing.
class NoTransport : public parallel::Transport {
 public:
  explicit NoTransport(int size) : parallel::Transport(0, size) {}

 private:
  void do_move(std::span<const parallel::Outgoing>, std::span<const parallel::Incoming>, Traffic) override {}
};

TEST(Group, RefusesMoreRanksThanASumIsWrittenFor) {
  const auto group_of = [](int size) {
    NoTransport transport(size);
    std::vector<int> ranks(static_cast<std::size_t>(size));
    std::iota(ranks.begin(), ranks.end(), 0);
    return Group(transport, ranks).size();
  };
  EXPECT_EQ(group_of(256), 256);
  EXPECT_THROW(group_of(257), InputError);
}

TEST(SharedMemory, AMismatchOfRanksNamesBoth) {
  const std::vector<std::string> bytes = errors_of_ranks(2, [](World& world) {
    Context ctx;
    const std::int64_t count = world.rank() == 0 ? 10 : 12;
    const OwnedTensor to_NX({2, count}, DType::f32), from_X({count}, DType::f32);
    all_of(world).all_gather(to_NX, from_X, Traffic::weights, ctx);
  });
  // Either may see it first; the other is then ended by it.
  const std::string either = bytes[0].empty() ? bytes[1] : bytes[0];
  EXPECT_NE(either.find("40 bytes of weights"), std::string::npos) << either;
  EXPECT_NE(either.find("48 bytes of weights"), std::string::npos) << either;
  EXPECT_NE(either.find("rank 0"), std::string::npos) << either;
  EXPECT_NE(either.find("rank 1"), std::string::npos) << either;

  const std::vector<std::string> kinds = errors_of_ranks(2, [](World& world) {
    Context ctx;
    const OwnedTensor x = doubles({1});
    all_of(world).sum(x, world.rank() == 0 ? Traffic::sums : Traffic::tokens, ctx);
  });
  const std::string kind = kinds[0].empty() ? kinds[1] : kinds[0];
  EXPECT_NE(kind.find("8 bytes of sums"), std::string::npos) << kind;
  EXPECT_NE(kind.find("8 bytes of tokens"), std::string::npos) << kind;
}

TEST(SharedMemory, ARankThatFailsDoesNotLeaveTheOthersWaiting) {
  for (int failing : {0, 2}) {
    std::atomic<int> ended{0};
    const std::vector<std::string> error_R = errors_of_ranks(3, [&](World& world) {
      const Group group = all_of(world);
      try {
        group.barrier();
        if (world.rank() == failing) throw std::runtime_error("broken");
        group.barrier();
      } catch (const parallel::RunIsOver&) {
        ++ended;
        throw;
      }
    });
    EXPECT_EQ(ended.load(), 2);
    for (int rank = 0; rank < 3; ++rank)
      EXPECT_EQ(error_R[static_cast<std::size_t>(rank)], rank == failing ? "broken" : "");
  }
}

TEST(SharedMemory, ManyRanksTakeBoundedMemory) {
  EXPECT_EQ(parallel::SharedMemory::ring_bytes_for(2), std::size_t{1} << 20);
  for (int ranks : {1, 2, 9, 10, 64, 1000}) {
    const std::size_t ring = parallel::SharedMemory::ring_bytes_for(ranks);
    EXPECT_EQ(ring % 64, 0u);
    EXPECT_GE(ring, 4096u);
    EXPECT_LE(ring * static_cast<std::size_t>(ranks - 1), std::size_t{8} << 20) << ranks;
  }
}

TEST(SharedMemory, WhatAnotherProcessHasMadeOpensByItsDescriptor) {
  parallel::SharedMemory made(3, 128);
  const int copy = dup(made.descriptor());
  ASSERT_GE(copy, 0);
  parallel::SharedMemory opened = parallel::SharedMemory::open(copy);
  EXPECT_EQ(opened.ranks(), 3);
  EXPECT_FALSE(opened.run_ended());
  made.end_run();
  EXPECT_TRUE(opened.run_ended());
}

TEST(SharedMemory, MessagesOfSeveralCallsArriveInOrder) {
  // Rank 0 runs ahead: what it sends lies in the ring until rank 1 takes it, in two calls of one message each
  // and one of two.
  on_world_threads(2, [](World& world) {
    std::vector<std::int32_t> numbers = {1, 2, 3, 4};
    const auto one = [&](std::size_t i) { return std::span(&numbers[i], 1); };
    parallel::Transport& transport = *world.transport;
    if (world.rank() == 0) {
      const parallel::Outgoing a{1, std::as_bytes(one(0))}, b{1, std::as_bytes(one(1))},
          c{1, std::as_bytes(one(2))}, d{1, std::as_bytes(one(3))};
      transport.move(std::vector{a, b}, {}, Traffic::control);
      transport.move(std::vector{c}, {}, Traffic::control);
      transport.move(std::vector{d}, {}, Traffic::control);
    } else {
      numbers.assign(4, 0);
      const auto in = [&](std::size_t i) { return parallel::Incoming{0, std::as_writable_bytes(one(i))}; };
      transport.move({}, std::vector{in(0)}, Traffic::control);
      transport.move({}, std::vector{in(1)}, Traffic::control);
      transport.move({}, std::vector{in(2), in(3)}, Traffic::control);
      EXPECT_EQ(numbers, (std::vector<std::int32_t>{1, 2, 3, 4}));
    }
  });
}

}  // namespace
}  // namespace switchyard::test
