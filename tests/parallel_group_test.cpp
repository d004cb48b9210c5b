// What ranks do with each other, over threads as ranks and their shared memory.
#include "parallel/group.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "poisoned_context.h"
#include "tensors.h"
#include "world_threads.h"

namespace switchyard::test {
namespace {

using parallel::Group;
using parallel::Part;
using parallel::Traffic;
using parallel::World;

const int kSizes[] = {1, 2, 3, 5, 8};
// Nothing, less than a line, whole lines, odd ones, several rings of the smallest size.
const std::int64_t kCounts[] = {0, 1, 15, 16, 17, 333, 1024};
constexpr std::size_t kSmallRing = 256;

Group all_of(World& world) { return parallel::make_mesh(world, 1).all; }

// Element i of what rank `rank` has: values whose sums depend on the order of additions.
double element(int rank, std::int64_t i) {
  return (static_cast<double>(i % 97) - 48.3) * (1.0 + 1e-3 * rank) /
         (1.0 + static_cast<double>((i + rank) % 13));
}
OwnedTensor made_by(int rank, std::int64_t count, DType dtype, std::int64_t first = 0) {
  OwnedTensor tensor({count}, dtype);
  for (std::int64_t i = 0; i < count; ++i) set(tensor, i, element(rank, first + i));
  return tensor;
}

// The recursive definition, on numbers.
template <class T>
T sum_by_halves(const std::vector<T>& value_N, std::size_t first, std::size_t count) {
  if (count == 1) return value_N[first];
  const std::size_t half = (count + 1) / 2;
  return sum_by_halves(value_N, first, half) + sum_by_halves(value_N, first + half, count - half);
}
template <class T>
double sum_over_ranks_as(int size, std::int64_t i) {
  std::vector<T> value_N;
  for (int rank = 0; rank < size; ++rank) value_N.push_back(static_cast<T>(element(rank, i)));
  return static_cast<double>(sum_by_halves(value_N, 0, value_N.size()));
}
double sum_over_ranks(DType dtype, int size, std::int64_t i) {
  return dtype == DType::f32 ? sum_over_ranks_as<float>(size, i) : sum_over_ranks_as<double>(size, i);
}

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
        parallel::add_by_halves(sum, piece_NX, ctx);
        for (std::int64_t i = 0; i < count; ++i) EXPECT_EQ(get(sum, i), sum_over_ranks(dtype, n, i)) << n;
      }
}

TEST(Group, GathersPiecesOfEveryRank) {
  for (int size : kSizes)
    on_world_threads(
        size,
        [&](World& world) {
          const Group group = all_of(world);
          PoisonedContext ctx;
          for (std::int64_t count : kCounts)
            for (bool in_place : {false, true}) {
              const OwnedTensor to_NX({size, count}, DType::f64),
                  apart = made_by(world.rank(), count, DType::f64);
              const Tensor own = to_NX.view().slice(world.rank(), 1);
              if (in_place && count > 0)
                std::memcpy(own.raw(), apart.view().raw(), static_cast<std::size_t>(own.nbytes()));
              group.all_gather(to_NX, in_place ? own : apart.view(), Traffic::weights, ctx);
              for (int rank = 0; rank < size; ++rank)
                for (std::int64_t i = 0; i < count; ++i)
                  ASSERT_EQ(to_NX[rank * count + i], element(rank, i)) << "rank " << rank << " of " << size;
            }
        },
        kSmallRing);
}

TEST(Group, GathersPartsOfDifferentSizes) {
  for (int size : kSizes)
    on_world_threads(
        size,
        [&](World& world) {
          const Group group = all_of(world);
          PoisonedContext ctx;
          std::vector<Part> part_N;  // 100, nothing, 102, nothing, 104, ..., with gaps between them
          std::int64_t total = 0;
          for (int rank = 0; rank < size; ++rank) {
            const std::int64_t count = rank % 2 == 0 ? 100 + rank : 0;
            part_N.push_back({total, count});
            total += count + 3;
          }
          const OwnedTensor to_P({total}, DType::f32);
          const Part own = part_N[static_cast<std::size_t>(world.rank())];
          for (std::int64_t i = 0; i < own.count; ++i)
            set(to_P, own.first + i, static_cast<double>(1000 * world.rank() + i));
          group.all_gather_parts(to_P, part_N, Traffic::weights, ctx);
          for (int rank = 0; rank < size; ++rank) {
            const Part part = part_N[static_cast<std::size_t>(rank)];
            for (std::int64_t i = 0; i < part.count; ++i)
              ASSERT_EQ(to_P[part.first + i], 1000 * rank + i) << "rank " << rank << " of " << size;
            EXPECT_TRUE(std::isnan(to_P[part.first + part.count])) << "written between the parts";
          }
        },
        kSmallRing);
}

TEST(Group, ExchangesEqualPieces) {
  for (int size : kSizes)
    on_world_threads(
        size,
        [&](World& world) {
          const Group group = all_of(world);
          PoisonedContext ctx;
          for (std::int64_t count : kCounts) {
            const OwnedTensor to_NX({size, count}, DType::i32), from_NX({size, count}, DType::i32);
            for (int to = 0; to < size; ++to)
              for (std::int64_t i = 0; i < count; ++i)
                set(from_NX, to * count + i, static_cast<double>(10000 * world.rank() + 1000 * to + i));
            group.exchange(to_NX, from_NX, Traffic::tokens, ctx);
            for (int from = 0; from < size; ++from)
              for (std::int64_t i = 0; i < count; ++i)
                ASSERT_EQ(to_NX[from * count + i], 10000 * from + 1000 * world.rank() + i);
          }
        },
        kSmallRing);
}

TEST(Group, ExchangesRowsInNumbersThatDifferAndMayBeNone) {
  // From rank a to rank b; some ranks send nothing at all, and some pairs nothing.
  const auto rows = [](int a, int b) -> std::int64_t { return a % 3 == 1 ? 0 : (a * 5 + b * 3) % 7; };
  constexpr std::int64_t kWidth = 9;
  for (int size : kSizes)
    on_world_threads(
        size,
        [&](World& world) {
          const Group group = all_of(world);
          PoisonedContext ctx;
          std::vector<std::int64_t> send_N, receive_N;
          std::int64_t sent = 0, received = 0;
          for (int other = 0; other < size; ++other) {
            send_N.push_back(rows(world.rank(), other));
            receive_N.push_back(rows(other, world.rank()));
            sent += send_N.back();
            received += receive_N.back();
          }
          const OwnedTensor from_RX({sent, kWidth}, DType::f32), to_RX({received, kWidth}, DType::f32);
          std::int64_t at = 0;
          for (int to = 0; to < size; ++to)
            for (std::int64_t i = 0; i < rows(world.rank(), to) * kWidth; ++i)
              set(from_RX, at++, 10000 * world.rank() + 1000 * to + static_cast<double>(i));
          group.exchange_rows(to_RX, from_RX, receive_N, send_N, Traffic::tokens, ctx);
          at = 0;
          for (int from = 0; from < size; ++from)
            for (std::int64_t i = 0; i < rows(from, world.rank()) * kWidth; ++i)
              ASSERT_EQ(to_RX[at++], 10000 * from + 1000 * world.rank() + static_cast<double>(i));
        },
        kSmallRing);
}

TEST(Group, SumsAreThoseOfASerialLoopBitForBit) {
  for (DType dtype : {DType::f32, DType::f64})
    for (int size : kSizes)
      on_world_threads(
          size,
          [&](World& world) {
            const Group group = all_of(world);
            PoisonedContext ctx;
            for (std::int64_t count : kCounts) {
              const OwnedTensor x = made_by(world.rank(), count, dtype);
              group.sum(x, Traffic::sums, ctx);
              for (std::int64_t i = 0; i < count; ++i) ASSERT_EQ(x[i], sum_over_ranks(dtype, size, i)) << i;
            }
          },
          kSmallRing);
}

TEST(Group, OwnersSumsAreThoseOfASerialLoopBitForBit) {
  for (DType dtype : {DType::f32, DType::f64})
    for (int size : kSizes)
      on_world_threads(
          size,
          [&](World& world) {
            const Group group = all_of(world);
            PoisonedContext ctx;
            std::vector<Part> even_N, uneven_N;
            std::int64_t total = 0;
            for (int rank = 0; rank < size; ++rank) {
              even_N.push_back(parallel::part_of(1000, 16, size, rank));
              uneven_N.push_back({total, rank % 3 == 1 ? 0 : 50 * (rank + 1)});
              total += uneven_N.back().count;
            }
            for (const auto& part_N : {even_N, uneven_N}) {
              const OwnedTensor x = made_by(world.rank(), std::max<std::int64_t>(total, 1000), dtype);
              group.sum_to_owners(x, part_N, Traffic::gradients, ctx);
              const Part own = part_N[static_cast<std::size_t>(world.rank())];
              for (std::int64_t i = own.first; i < own.first + own.count; ++i)
                ASSERT_EQ(x[i], sum_over_ranks(dtype, size, i)) << i;
            }
          },
          kSmallRing);
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

TEST(Group, TextsAreOfAnyLength) {
  const auto text = [](int rank) {
    return std::string(rank == 1 ? 0 : static_cast<std::size_t>(rank) * 5001 + 3,
                       static_cast<char>('a' + rank));
  };
  for (int size : kSizes)
    on_world_threads(size, [&](World& world) {
      const Group group = all_of(world);
      const std::vector<std::string> text_N = group.gather_text(text(world.rank()));
      ASSERT_EQ(text_N.size(), static_cast<std::size_t>(size));
      for (int rank = 0; rank < size; ++rank) EXPECT_EQ(text_N[static_cast<std::size_t>(rank)], text(rank));
      EXPECT_EQ(group.text_of_first("from " + std::to_string(world.rank())), "from 0");
      EXPECT_EQ(group.text_of_first(world.rank() == 0 ? "" : "something"), "");
    });
}

TEST(Group, AFlagOfOneIsEveryones) {
  for (int size : kSizes)
    on_world_threads(size, [&](World& world) {
      const Group group = all_of(world);
      EXPECT_FALSE(group.any(false));
      for (int rank = 0; rank < size; ++rank) EXPECT_TRUE(group.any(world.rank() == rank));
      EXPECT_FALSE(group.any(false));
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

TEST(Group, BytesSentAreCountedByKind) {
  for (int size : kSizes)
    on_world_threads(size, [&](World& world) {
      const Group group = all_of(world);
      Context ctx;
      const OwnedTensor to_NX({size, 100}, DType::f32), from_X = made_by(world.rank(), 100, DType::f32);
      group.all_gather(to_NX, from_X, Traffic::weights, ctx);
      const auto& sent = world.transport->counts().sent_bytes;
      EXPECT_EQ(sent[static_cast<std::size_t>(Traffic::weights)], 400 * (size - 1));
      EXPECT_EQ(sent[static_cast<std::size_t>(Traffic::gradients)], 0);
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
  EXPECT_THROW(group.sum(elsewhere, Traffic::sums, ctx), std::logic_error);
  EXPECT_THROW(parallel::make_mesh(world, 2), std::logic_error);
  EXPECT_THROW(Group(*world.transport, {0, 1}), std::logic_error);
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
