// What must hold of a group's verbs whatever moves the bytes: each check is called on every rank of a world, of
// any size.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "parallel/group.h"
#include "parallel/world.h"
#include "poisoned_context.h"
#include "tensors.h"

namespace switchyard::test {

using parallel::Group;
using Part = FlatRange;
using parallel::Traffic;
using parallel::World;

// Nothing, less than a line, whole lines, odd ones, several rings of the smallest size.
inline constexpr std::int64_t kCounts[] = {0, 1, 15, 16, 17, 333, 1024};

inline Group all_of(World& world) { return parallel::all_ranks(world); }

// Element i of what rank `rank` has: values whose sums depend on the order of additions.
inline double element(int rank, std::int64_t i) {
  return (static_cast<double>(i % 97) - 48.3) * (1.0 + 1e-3 * rank) /
         (1.0 + static_cast<double>((i + rank) % 13));
}
inline OwnedTensor made_by(int rank, std::int64_t count, DType dtype, std::int64_t first = 0) {
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
inline double sum_over_ranks_as(int size, std::int64_t i) {
  std::vector<T> value_N;
  for (int rank = 0; rank < size; ++rank) value_N.push_back(static_cast<T>(element(rank, i)));
  return static_cast<double>(sum_by_halves(value_N, 0, value_N.size()));
}
inline double sum_over_ranks(DType dtype, int size, std::int64_t i) {
  return dtype == DType::f32 ? sum_over_ranks_as<float>(size, i) : sum_over_ranks_as<double>(size, i);
}

inline void gathers_pieces(World& world) {
  const Group group = all_of(world);
  const int size = group.size();
  PoisonedContext ctx;
  for (std::int64_t count : kCounts)
    for (bool in_place : {false, true}) {
      const OwnedTensor to_NX({size, count}, DType::f64), apart = made_by(world.rank(), count, DType::f64);
      const Tensor own = to_NX.view().slice(world.rank(), 1);
      if (in_place && count > 0)
        std::memcpy(own.raw(), apart.view().raw(), static_cast<std::size_t>(own.nbytes()));
      group.all_gather(to_NX, in_place ? own : apart.view(), Traffic::weights, ctx);
      for (int rank = 0; rank < size; ++rank)
        for (std::int64_t i = 0; i < count; ++i)
          ASSERT_EQ(to_NX[rank * count + i], element(rank, i)) << "rank " << rank << " of " << size;
    }
}

// Of different sizes.
inline void gathers_parts(World& world) {
  const Group group = all_of(world);
  const int size = group.size();
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
}

inline void exchanges_pieces(World& world) {
  const Group group = all_of(world);
  const int size = group.size();
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
}

// Of numbers that differ and may be none.
inline void exchanges_rows(World& world) {
  // From rank a to rank b; some ranks send nothing at all, and some pairs nothing.
  const auto rows = [](int a, int b) -> std::int64_t { return a % 3 == 1 ? 0 : (a * 5 + b * 3) % 7; };
  constexpr std::int64_t kWidth = 9;
  const Group group = all_of(world);
  const int size = group.size();
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
}

// Bit for bit those of a serial loop.
inline void sums(World& world) {
  for (DType dtype : {DType::f32, DType::f64}) {
    const Group group = all_of(world);
    const int size = group.size();
    PoisonedContext ctx;
    for (std::int64_t count : kCounts) {
      const OwnedTensor x = made_by(world.rank(), count, dtype);
      group.sum(x, Traffic::sums, ctx);
      for (std::int64_t i = 0; i < count; ++i) ASSERT_EQ(x[i], sum_over_ranks(dtype, size, i)) << i;
    }
  }
}

// The same of parts that are even, uneven and empty.
inline void sums_to_owners(World& world) {
  for (DType dtype : {DType::f32, DType::f64}) {
    const Group group = all_of(world);
    const int size = group.size();
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
  }
}

inline void carries_texts(World& world) {
  const auto text = [](int rank) {
    return std::string(rank == 1 ? 0 : static_cast<std::size_t>(rank) * 5001 + 3,
                       static_cast<char>('a' + rank));
  };
  const Group group = all_of(world);
  const int size = group.size();
  const std::vector<std::string> text_N = group.gather_text(text(world.rank()));
  ASSERT_EQ(text_N.size(), static_cast<std::size_t>(size));
  for (int rank = 0; rank < size; ++rank) EXPECT_EQ(text_N[static_cast<std::size_t>(rank)], text(rank));
  EXPECT_EQ(group.text_of_first("from " + std::to_string(world.rank())), "from 0");
  EXPECT_EQ(group.text_of_first(world.rank() == 0 ? "" : "something"), "");
}

inline void shares_flags(World& world) {
  const Group group = all_of(world);
  const int size = group.size();
  EXPECT_FALSE(group.any(false));
  for (int rank = 0; rank < size; ++rank) EXPECT_TRUE(group.any(world.rank() == rank));
  EXPECT_FALSE(group.any(false));
}

inline void counts_bytes(World& world) {
  const Group group = all_of(world);
  Context ctx;
  const auto before = world.transport->counts().sent_bytes;
  const OwnedTensor to_NX({group.size(), 100}, DType::f32), from_X = made_by(world.rank(), 100, DType::f32);
  group.all_gather(to_NX, from_X, Traffic::weights, ctx);
  const auto& sent = world.transport->counts().sent_bytes;
  for (std::size_t kind = 0; kind < parallel::kTrafficKinds; ++kind)
    EXPECT_EQ(sent[kind] - before[kind],
              kind == static_cast<std::size_t>(Traffic::weights) ? 400 * (group.size() - 1) : 0);
}

struct GroupCheck {
  const char* name;
  void (*check)(World&);
};
inline constexpr GroupCheck kGroupChecks[] = {{"GathersPieces", gathers_pieces},
                                              {"GathersParts", gathers_parts},
                                              {"ExchangesPieces", exchanges_pieces},
                                              {"ExchangesRows", exchanges_rows},
                                              {"Sums", sums},
                                              {"SumsToOwners", sums_to_owners},
                                              {"CarriesTexts", carries_texts},
                                              {"SharesFlags", shares_flags},
                                              {"CountsBytes", counts_bytes}};

}  // namespace switchyard::test
