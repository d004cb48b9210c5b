#include "core/parameters.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/rng.h"

namespace switchyard {
namespace {

ParameterStore three_rows(DType dtype, bool training) {
  ParameterStore store;
  store.begin_group();
  store.add({.name = "q", .shape = {3, 5}, .init_std = 0.5});
  store.add({.name = "k", .shape = {2, 5}, .init_std = 0.5});
  store.begin_group();
  store.add({.name = "norm", .shape = {5}, .init = Init::ones});
  store.begin_group();
  store.add({.name = "bias", .shape = {4}, .init = Init::zeros});
  store.allocate(dtype, training);
  return store;
}

TEST(ParameterStore, GroupsAreAlignedAndTheirRowsLieSideBySide) {
  const ParameterStore store = three_rows(DType::f32, true);
  EXPECT_EQ(store.rows()[0].offset, 0);
  EXPECT_EQ(store.rows()[1].offset, 15);
  EXPECT_EQ(store.rows()[2].offset, 32);  // 25, rounded up to a line of 16
  EXPECT_EQ(store.rows()[3].offset, 48);
  EXPECT_EQ(store.count(), 34);
  EXPECT_EQ(store.values().numel(), 64);
  for (const Tensor& flat : {store.values(), store.grads(), store.moments1(), store.moments2()})
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(flat.raw()) % 64, 0u);
}

TEST(ParameterStore, ArraysDoNotOverlapAndBeginAtZero) {
  const ParameterStore store = three_rows(DType::f64, true);
  std::set<const void*> starts;
  for (const Tensor& flat : {store.values(), store.grads(), store.moments1(), store.moments2()}) {
    EXPECT_TRUE(starts.insert(flat.raw()).second);
    for (std::int64_t i = 0; i < flat.numel(); ++i) EXPECT_EQ(flat.as<double>()[i], 0.0);
    std::memset(flat.raw(), 0x41, static_cast<std::size_t>(flat.nbytes()));  // the sanitizer watches the end
  }
}

TEST(ParameterStore, BlockIsTheRowsOfAGroupAsOneMatrix) {
  ParameterStore store = three_rows(DType::f32, true);
  store.initialise(1);
  const Tensor qk = store.weight_block(0, {5, 5});
  EXPECT_EQ(qk.raw(), store.value(0).raw());
  EXPECT_EQ(qk.row<float>(3), store.value(1).as<float>());
  EXPECT_EQ(store.grad_block(1, {2, 5}).raw(), store.grad(1).raw());
  EXPECT_THROW(store.weight_block(0, {6, 5}), std::logic_error);  // into the next group
  EXPECT_THROW(store.weight_block(0, {4, 5}), std::logic_error);  // ends inside k
  EXPECT_THROW(store.weight_block(3, {2, 4}), std::logic_error);  // past the end
}

TEST(ParameterStore, InitialValuesAreAFunctionOfSeedNameAndIndex) {
  ParameterStore store = three_rows(DType::f64, false);
  store.initialise(7);
  const Rng rng(7, RngPurpose::init, hash_name("k"));
  for (std::int64_t i = 0; i < 10; ++i)
    EXPECT_EQ(store.value(1).as<double>()[i], 0.5 * rng.normal(static_cast<std::uint64_t>(i)));
  for (std::int64_t i = 0; i < 5; ++i) EXPECT_EQ(store.value(2).as<double>()[i], 1.0);
  for (std::int64_t i = 0; i < 4; ++i) EXPECT_EQ(store.value(3).as<double>()[i], 0.0);

  ParameterStore other_order;
  other_order.add({.name = "k", .shape = {2, 5}, .init_std = 0.5});
  other_order.allocate(DType::f32, false);
  other_order.initialise(7);
  for (std::int64_t i = 0; i < 10; ++i)
    EXPECT_EQ(other_order.value(0).as<float>()[i], static_cast<float>(store.value(1).as<double>()[i]));

  ParameterStore other_seed = three_rows(DType::f64, false);
  other_seed.initialise(8);
  EXPECT_NE(other_seed.value(1).as<double>()[0], store.value(1).as<double>()[0]);
}

TEST(ParameterStore, UnitRowsAreNormalRowsOfLengthOne) {
  ParameterStore normal, unit;
  normal.add({.name = "k", .shape = {3, 4}, .init_std = 1});
  unit.add({.name = "k", .shape = {3, 4}, .init = Init::unit_rows});
  for (ParameterStore* store : {&normal, &unit}) {
    store->allocate(DType::f64, false);
    store->initialise(7);
  }
  for (std::int64_t r = 0; r < 3; ++r) {
    const double *from = normal.value(0).row<double>(r), *to = unit.value(0).row<double>(r);
    const double length = std::hypot(std::hypot(from[0], from[1]), std::hypot(from[2], from[3]));
    for (std::int64_t i = 0; i < 4; ++i) EXPECT_NEAR(to[i], from[i] / length, 1e-15);
  }
}

TEST(ParameterStore, InitialisationDoesNotDependOnThreads) {
  const int threads = omp_get_max_threads();
  ParameterStore one, many;
  for (ParameterStore* store : {&one, &many}) {
    store->add({.name = "w", .shape = {123, 457}, .init_std = 0.02});
    store->allocate(DType::f32, false);
    omp_set_num_threads(store == &one ? 1 : 5);
    store->initialise(3);
  }
  omp_set_num_threads(threads);
  EXPECT_EQ(
      std::memcmp(one.values().raw(), many.values().raw(), static_cast<std::size_t>(one.values().nbytes())), 0);
}

TEST(ParameterStore, InitialValuesHaveTheirStandardDeviation) {
  ParameterStore store;
  store.add({.name = "w", .shape = {1000, 1000}, .init_std = 0.02});
  store.allocate(DType::f32, false);
  store.initialise(3);
  double sum = 0, squares = 0;
  for (std::int64_t i = 0; i < 1000000; ++i) {
    const double x = store.value(0).as<float>()[i];
    sum += x;
    squares += x * x;
  }
  // Of a million samples the mean strays by 0.02 / 1000, the deviation by 0.02 / sqrt(2e6); five times that.
  EXPECT_NEAR(sum / 1e6, 0.0, 5 * 0.02 / 1000);
  EXPECT_NEAR(std::sqrt(squares / 1e6), 0.02, 5 * 0.02 / std::sqrt(2e6));
}

TEST(ParameterStore, GapsStayZero) {
  ParameterStore store = three_rows(DType::f32, false);
  store.initialise(7);
  const float* const values = store.values().as<float>();
  for (const std::int64_t i : {25, 31, 37, 47, 52, 63}) EXPECT_EQ(values[i], 0.0f) << i;
}

// A matrix of three blocks, two layers of four experts of two rows each, and a norm between them.
ParameterStore with_experts(const Placement& placement) {
  ParameterStore store;
  store.begin_group();
  store.add({.name = "embedding", .shape = {3, 50000}, .init_std = 0.5});
  for (int layer = 0; layer < 2; ++layer) {
    store.begin_layer();
    store.begin_group();
    for (int e = 0; e < 4; ++e)
      for (const char* matrix : {"gate", "up"})
        store.add({.name = std::to_string(layer) + "." + std::to_string(e) + matrix,
                   .shape = {3, 5},
                   .init_std = 0.5,
                   .sharding = Sharding::by_expert,
                   .expert = e,
                   .n_experts = 4});
    store.begin_group();
    store.add({.name = "norm" + std::to_string(layer), .shape = {5}, .init_std = 0.5});
  }
  store.place(placement);
  return store;
}

TEST(ParameterStore, ARankHoldsItsExpertsSideBySide) {
  ParameterStore all = with_experts({}),
                 half = with_experts({.place = 1, .size = 2, .expert_place = 1, .expert_size = 2});
  for (ParameterStore* store : {&all, &half}) {
    store->allocate(DType::f32, true);
    store->initialise(7);
  }
  EXPECT_EQ(all.count(), half.count());
  EXPECT_EQ(half.regions()[1].all.count, 2 * 64);  // 4 matrices of 15 and a gap of 4, twice
  for (std::size_t i = 0; i < all.rows().size(); ++i) {
    const Parameter& row = half.rows()[i];
    EXPECT_EQ(half.is_here(i), row.sharding == Sharding::replicated || row.expert >= 2) << row.name;
    if (!half.is_here(i)) {
      EXPECT_THROW(half.value(i), std::logic_error);
      continue;
    }
    EXPECT_EQ(
        std::memcmp(half.value(i).raw(), all.value(i).raw(), static_cast<std::size_t>(all.value(i).nbytes())),
        0);
  }
  const std::size_t third = 1 + 2 * 2;  // gate of expert 2 in layer 0
  EXPECT_EQ(half.weight_block(third, {2, 6, 5}).raw(), half.value(third).raw());
  EXPECT_THROW(half.weight_block(1, {2, 6, 5}), std::logic_error);  // experts 0 and 1
  EXPECT_THROW(half.weight_block(third, {4, 6, 5}), std::logic_error);
}

// Every element of the model belongs to one rank, whatever their number, and blocks are the same ones
// everywhere.
TEST(ParameterStore, EveryElementIsOwnedByOneRank) {
  const ParameterStore lone = with_experts({});
  for (const auto& [size, experts] :
       {std::pair{1, 1}, {2, 1}, {2, 2}, {3, 1}, {4, 2}, {4, 4}, {8, 4}, {64, 1}}) {
    SCOPED_TRACE(::testing::Message() << size << " ranks, expert " << experts);
    std::vector<std::vector<int>> owners;
    for (const Parameter& row : lone.rows()) owners.emplace_back(row.shape.numel(), 0);
    std::vector<int> block_owners(static_cast<std::size_t>(lone.n_blocks()), 0);
    for (int place = 0; place < size; ++place) {
      ParameterStore store = with_experts({.place = place,
                                           .size = size,
                                           .expert_place = place % experts,
                                           .expert_size = experts,
                                           .replica_place = place / experts,
                                           .replica_size = size / experts,
                                           .shard_moments = true});
      store.allocate(DType::f32, true);
      for (const RowArray array : {RowArray::value, RowArray::moment1}) {
        for (const RowPiece& piece : store.owned(array))
          for (std::int64_t i = 0; i < piece.tensor_N.numel(); ++i) {
            if (array == RowArray::value) ++owners[piece.row][static_cast<std::size_t>(piece.first + i)];
            piece.tensor_N.as<float>()[i] = 1;  // the sanitizer watches the ends
          }
      }
      std::int64_t elements = 0;
      for (const Block& block : store.own_blocks()) {
        ++block_owners[static_cast<std::size_t>(block.number)];
        elements += block.range.count;
        EXPECT_EQ(store.updated(block.range).size(), 1u);
        EXPECT_EQ(store.moment1(block.range).numel(), block.range.count);
        // Vectors of both arrays begin alike.
        const auto place_in_line = [](const Tensor& t) {
          return reinterpret_cast<std::uintptr_t>(t.raw()) % 64;
        };
        EXPECT_EQ(place_in_line(store.moment1(block.range)),
                  place_in_line(store.values().slice(block.range.first, 1)));
      }
      EXPECT_LE(elements, store.moments_size());
    }
    for (const auto& row : owners) EXPECT_EQ(std::count(row.begin(), row.end(), 1), std::ssize(row));
    EXPECT_EQ(std::count(block_owners.begin(), block_owners.end(), 1), lone.n_blocks());
  }
}

// Where ranks share the gradients of layers, only what several ranks hold takes that memory, the sums of the
// own parts lie in one array, each element once, and less is taken than by whole gradients.
TEST(ParameterStore, LayersOfSeveralRanksShareTheMemoryOfGradients) {
  for (const auto& [size, experts] : {std::pair{2, 1}, {2, 2}, {4, 2}, {8, 4}}) {
    SCOPED_TRACE(::testing::Message() << size << " ranks, expert " << experts);
    for (int place = 0; place < size; ++place) {
      Placement placement{.place = place,
                          .size = size,
                          .expert_place = place % experts,
                          .expert_size = experts,
                          .replica_place = place / experts,
                          .replica_size = size / experts,
                          .shard_moments = true};
      const std::int64_t whole = with_experts(placement).gradients_size();
      placement.shard_gradients = true;
      ParameterStore store = with_experts(placement);
      store.allocate(DType::f32, true);
      EXPECT_LE(store.gradients_size(), whole + 64);  // lines that are not full
      const bool experts_are_shared = size > experts;
      EXPECT_TRUE(store.layers_share_gradients(0));
      EXPECT_EQ(store.layers_share_gradients(1), experts_are_shared);
      EXPECT_EQ(store.layer_grads(0).raw(), store.layer_grads(1).raw());
      std::vector<int> taken(static_cast<std::size_t>(store.sum_of_grads().numel()), 0);
      for (const RowPiece& piece : store.owned(RowArray::gradient)) {
        const std::int64_t first = piece.tensor_N.as<float>() - store.sum_of_grads().as<float>();
        for (std::int64_t i = 0; i < piece.tensor_N.numel(); ++i) ++taken[static_cast<std::size_t>(first + i)];
        const Parameter& row = store.rows()[piece.row];
        const FlatRange range{row.offset + piece.first, piece.tensor_N.numel()};
        EXPECT_EQ(store.index_of_sum(range), first);
        const bool in_place = row.layer < 0 || (row.sharding == Sharding::by_expert && !experts_are_shared);
        EXPECT_EQ(store.grad(range).raw() == piece.tensor_N.raw(), in_place) << row.name;
      }
      EXPECT_LE(*std::max_element(taken.begin(), taken.end()), 1);
    }
  }
}

// Layers and what is of none make up each region, whatever ranks share: cut by layers, a sum over ranks sends
// the same bytes.
TEST(ParameterStore, LayersAndTheRestMakeUpEachRegion) {
  for (const int size : {1, 4}) {
    const ParameterStore store =
        with_experts({.place = size - 1, .size = size, .replica_place = size - 1, .replica_size = size});
    for (std::size_t region = 0; region < 2; ++region) {
      const FlatRange all = store.regions()[region].all;
      std::vector<FlatRange> ranges = store.ranges_of_no_layer(region);
      EXPECT_EQ(ranges.size(), region == 0 ? 1u : 0u);  // the embedding
      for (std::int64_t layer = 0; layer < store.n_layers(); ++layer)
        ranges.push_back(store.layer_ranges(layer)[region]);
      std::int64_t next = all.first;
      for (const FlatRange& range : ranges) {
        EXPECT_EQ(range.first, next);
        EXPECT_GT(range.count, 0);
        next = range.first + range.count;
      }
      EXPECT_EQ(next, all.first + all.count);
    }
  }
}

// With two memories a layer's gradients stay whole while the next layer's are made.
TEST(ParameterStore, NeighboursUseTwoMemoriesByTurns) {
  const Placement one{.size = 2, .replica_size = 2, .shard_moments = true, .shard_gradients = true};
  Placement two = one;
  two.gradient_windows = 2;
  ParameterStore store = with_experts(two);
  store.allocate(DType::f32, true);
  const Tensor first = store.layer_grads(0), second = store.layer_grads(1);
  EXPECT_EQ(store.gradients_size(), with_experts(one).gradients_size() + second.numel());
  const std::vector<float> before(static_cast<std::size_t>(first.numel()), 1.0f);
  for (std::int64_t i = 0; i < first.numel(); ++i) first.as<float>()[i] = 1;
  for (std::int64_t i = 0; i < second.numel(); ++i) second.as<float>()[i] = 2;
  EXPECT_TRUE(std::equal(before.begin(), before.end(), first.as<float>()));
  for (std::size_t row = 0; row < store.rows().size(); ++row) {
    const std::int64_t layer = store.rows()[row].layer;
    if (layer >= 0) {
      EXPECT_EQ(store.grad(row).as<float>()[0], layer == 0 ? 1 : 2) << store.rows()[row].name;
    }
  }
}

TEST(ParameterStore, MisuseIsCaught) {
  ParameterStore store = three_rows(DType::f32, false);
  EXPECT_FALSE(store.training());
  EXPECT_THROW(store.grad(0), std::logic_error);
  EXPECT_THROW(store.value(4), std::logic_error);
  EXPECT_THROW(store.add({.name = "late", .shape = {1}}), std::logic_error);
  EXPECT_THROW(store.allocate(DType::f32, false), std::logic_error);

  ParameterStore twice;
  twice.add({.name = "w", .shape = {1}});
  twice.add({.name = "v", .shape = {1}});
  twice.add({.name = "w", .shape = {2}});
  EXPECT_THROW(twice.allocate(DType::f32, false), std::logic_error);
  ParameterStore unallocated;
  unallocated.add({.name = "w", .shape = {1}});
  EXPECT_THROW(unallocated.initialise(1), std::logic_error);
  EXPECT_THROW(unallocated.allocate(DType::bf16, false), std::logic_error);
}

// A table of tokens' experts: the experts of a token differ, and every expert has as many tokens as another
// one.
TEST(ParameterStore, ExpertsAreDealtEvenlyOverTheTokens) {
  constexpr std::int64_t kTokens = 64, kExperts = 8, kSlots = 3;
  const auto dealt = [](const char* name, std::uint64_t seed, std::int64_t n_tokens) {
    ParameterStore store;
    store.add({.name = name,
               .shape = {n_tokens * kSlots},
               .init = Init::dealt,
               .trained = false,
               .dealt_experts = kExperts,
               .dealt_slots = kSlots});
    store.allocate(DType::f32, false);
    store.initialise(seed);
    const float* values = store.value(0).as<float>();
    return std::vector<float>(values, values + n_tokens * kSlots);
  };
  const std::vector<float> table = dealt("a", 1, kTokens);
  std::vector<int> count(kExperts, 0);
  std::set<std::set<float>> sets;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const std::set<float> experts(table.begin() + token * kSlots, table.begin() + (token + 1) * kSlots);
    EXPECT_EQ(experts.size(), static_cast<std::size_t>(kSlots));
    sets.insert(experts);
    for (const float expert : experts) {
      ASSERT_TRUE(expert >= 0 && expert < kExperts && expert == std::floor(expert));
      ++count[static_cast<std::size_t>(expert)];
    }
  }
  for (const int n : count) EXPECT_EQ(n, kTokens * kSlots / kExperts);
  // Of the 56 sets of three experts far more than the 8 that neighbours alone would make.
  EXPECT_GT(sets.size(), 20u);
  EXPECT_EQ(dealt("a", 1, kTokens), table);
  EXPECT_NE(dealt("b", 1, kTokens), table);
  EXPECT_NE(dealt("a", 2, kTokens), table);
  // An unfinished round leaves at most one token more for each slot.
  std::fill(count.begin(), count.end(), 0);
  for (const float expert : dealt("a", 1, kTokens + 5)) ++count[static_cast<std::size_t>(expert)];
  for (const int n : count) EXPECT_LE(n, kTokens * kSlots / kExperts + kSlots);
}

}  // namespace
}  // namespace switchyard
