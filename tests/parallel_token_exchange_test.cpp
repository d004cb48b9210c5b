#include "parallel/token_exchange.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "tensors.h"
#include "world_threads.h"

namespace switchyard::parallel {
namespace {

using test::on_world_threads;
using Way = TokenExchange::Way;

struct Sizes {
  int ranks;
  std::int64_t tokens, slots, experts_each, width;
};
// Of one rank, odd numbers, more ranks than tokens, no token at all, wide enough for several threads.
const Sizes kSizes[] = {{1, 3, 2, 4, 5}, {2, 7, 3, 2, 3}, {3, 5, 2, 1, 4},
                        {5, 2, 4, 3, 1}, {2, 0, 2, 2, 3}, {4, 40, 2, 2, 260}};

// About one slot in five is free; token 0 has no expert.
test::OwnedTensor experts_of(const Sizes& s, int rank) {
  test::OwnedTensor expert({s.tokens, s.slots}, DType::i32);
  test::fill_int(expert, "expert" + std::to_string(rank), -1, s.ranks * s.experts_each);
  for (std::int64_t k = 0; k < s.slots && s.tokens > 0; ++k) test::set(expert, k, -1);
  return expert;
}

bool goes_to(const Tensor& expert_TK, std::int64_t t, int place, std::int64_t experts_each) {
  bool goes = false;
  for (std::int64_t k = 0; k < expert_TK.dim(1); ++k) {
    const double expert = test::get(expert_TK, t * expert_TK.dim(1) + k);
    goes = goes || (expert >= 0 && static_cast<std::int64_t>(expert) / experts_each == place);
  }
  return goes;
}

class EveryWay : public ::testing::TestWithParam<Way> {};

// f(sizes, exchange, rank, context) on each rank, for all sizes; its context's scratch is poisoned.
template <class F>
void for_all_sizes(Way way, F&& f) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.ranks << " ranks, " << s.tokens << " tokens");
    on_world_threads(s.ranks, [&](World& world) {
      const Mesh mesh = make_mesh(world, s.ranks);
      TokenExchange exchange(mesh.expert, way);
      Context ctx;
      ctx.scratch.set_poison(true);
      f(s, mesh.all, exchange, world.rank(), ctx);
    });
  }
}

TEST_P(EveryWay, TokensComeSourceAfterSourceInOrder) {
  for_all_sizes(GetParam(), [&](const Sizes& s, const Group&, TokenExchange& exchange, int rank, Context& ctx) {
    std::vector<double> expected;
    for (int source = 0; source < s.ranks; ++source)
      for (std::int64_t t = 0; t < s.tokens; ++t)
        if (GetParam() == Way::all || goes_to(experts_of(s, source), t, rank, s.experts_each))
          for (std::int64_t k = 0; k < s.slots; ++k)
            expected.push_back(test::get(experts_of(s, source), t * s.slots + k));
    const test::OwnedTensor expert = experts_of(s, rank);
    const std::int64_t n = exchange.route(expert, s.experts_each, ctx);
    EXPECT_LE(n, exchange.most_tokens(s.tokens));
    const test::OwnedTensor spread({n, s.slots}, DType::i32);
    exchange.spread(spread, expert, ctx);
    EXPECT_EQ(test::values(spread), expected);
  });
}

// <spread(x), y> = <x, collect(y)>, both summed over ranks.
TEST_P(EveryWay, CollectIsTheAdjointOfSpread) {
  for_all_sizes(
      GetParam(), [&](const Sizes& s, const Group& all, TokenExchange& exchange, int rank, Context& ctx) {
        const std::string of_rank = std::to_string(rank);
        const test::OwnedTensor x = test::normal({s.tokens, s.width}, DType::f64, "x" + of_rank);
        const std::int64_t n = exchange.route(experts_of(s, rank), s.experts_each, ctx);
        const test::OwnedTensor y = test::normal({n, s.width}, DType::f64, "y" + of_rank);
        const test::OwnedTensor spread({n, s.width}, DType::f64), collected({s.tokens, s.width}, DType::f64);
        exchange.spread(spread, x, ctx);
        exchange.collect(collected, {}, y, ctx);
        const test::OwnedTensor dots = test::doubles({test::dot(spread, y), test::dot(x, collected)});
        all.sum(dots, Traffic::sums, ctx);
        // Up to some 40,000 terms of order one, whose sums are off by 1e-16 of the sum of their sizes.
        EXPECT_NEAR(dots[0], dots[1], 1e-10);
        EXPECT_TRUE(s.tokens == 0 || dots[0] != 0);
      });
}

// The sum over ranks by halves, written out, and an addend; in place, too.
TEST_P(EveryWay, CollectAddsByHalves) {
  for (const DType dtype : {DType::f32, DType::f64})
    for_all_sizes(GetParam(), [&](const Sizes& s, const Group&, TokenExchange& exchange, int rank,
                                  Context& ctx) {
      const test::OwnedTensor expert = experts_of(s, rank);
      const std::int64_t n = exchange.route(expert, s.experts_each, ctx);
      // What a rank makes of a token: a number of rank and token, in every column; 0 where it has no part.
      const test::OwnedTensor token({s.tokens, 1}, DType::f64), token_here({n, 1}, DType::f64);
      for (std::int64_t t = 0; t < s.tokens; ++t) test::set(token, t, static_cast<double>(100 * rank + t));
      exchange.spread(token_here, token, ctx);
      const test::OwnedTensor expert_here({n, s.slots}, DType::i32);
      exchange.spread(expert_here, expert, ctx);
      const auto part = [&](double of_token, int place) { return 1.0 / (3.0 + of_token + 7.0 * place); };
      const test::OwnedTensor from({n, s.width}, dtype);
      for (std::int64_t i = 0; i < n * s.width; ++i)
        test::set(
            from, i,
            goes_to(expert_here, i / s.width, rank, s.experts_each) ? part(token_here[i / s.width], rank) : 0);
      const test::OwnedTensor sum = test::normal({s.tokens, s.width}, dtype, "addend");
      const test::OwnedTensor addend = test::normal({s.tokens, s.width}, dtype, "addend");
      const test::OwnedTensor expected({s.tokens, s.width}, dtype);
      const auto add = [&](double a, double b) {
        return dtype == DType::f64 ? a + b : static_cast<double>(static_cast<float>(a) + static_cast<float>(b));
      };
      const auto rounded = [&](double x) {
        return dtype == DType::f64 ? x : static_cast<double>(static_cast<float>(x));
      };
      for (std::int64_t i = 0; i < s.tokens * s.width; ++i) {
        const auto by_halves = [&](const auto& self, int first, int count) -> double {
          if (count == 1)
            return goes_to(expert, i / s.width, first, s.experts_each)
                       ? rounded(part(token[i / s.width], first))
                       : 0.0;
          const int half = (count + 1) / 2;
          return add(self(self, first, half), self(self, first + half, count - half));
        };
        test::set(expected, i, add(addend[i], by_halves(by_halves, 0, s.ranks)));
      }
      exchange.collect(sum, sum, from, ctx);
      EXPECT_TRUE(test::same_bits(sum, expected));
    });
}

// A run rehearses with padding, which goes nowhere, and plans memory by what that took.
TEST_P(EveryWay, WorkspaceDoesNotGrowWithTokens) {
  for_all_sizes(GetParam(), [&](const Sizes& s, const Group&, TokenExchange& exchange, int rank, Context& ctx) {
    const test::OwnedTensor nowhere({s.tokens, s.slots}, DType::i32);
    test::fill(nowhere, std::vector<double>(static_cast<std::size_t>(s.tokens * s.slots), -1));
    const test::OwnedTensor x = test::normal({s.tokens, s.width}, DType::f64, "x");
    const auto workspace_for = [&](const Tensor& expert_TK) {
      const test::OwnedTensor spread({exchange.route(expert_TK, s.experts_each, ctx), s.width}, DType::f64);
      exchange.spread(spread, x, ctx);
      exchange.collect(x, {}, spread, ctx);
      return ctx.scratch.reserved();
    };
    const std::int64_t rehearsed = workspace_for(nowhere);
    EXPECT_EQ(workspace_for(experts_of(s, rank)), rehearsed);
  });
}

INSTANTIATE_TEST_SUITE_P(Ways, EveryWay, ::testing::Values(Way::all, Way::rows),
                         [](const auto& test) { return test.param == Way::all ? "All" : "Rows"; });

// Windows of all ranks, which are threads here, filled with NaN.
struct SharedWindows {
  std::vector<test::OwnedTensor> arrivals, departures;
  SharedWindows(const Sizes& s, DType dtype) {
    const Shape rows{s.ranks * s.tokens, s.width};
    for (int place = 0; place < s.ranks; ++place)
      arrivals.emplace_back(rows, dtype), departures.emplace_back(rows, dtype);
  }
  static std::vector<void*> memory(const std::vector<test::OwnedTensor>& window_N) {
    std::vector<void*> memory_N;
    for (const test::OwnedTensor& window : window_N) memory_N.push_back(window.view().raw());
    return memory_N;
  }
};

void fill_with_nan(const Tensor& x) {
  for (std::int64_t i = 0; i < x.numel(); ++i) test::set(x, i, std::numeric_limits<double>::quiet_NaN());
}

// Sums, and rows that have come, are those of tokens that all go everywhere, to the bit, in several turns with
// other experts: what is left of an earlier turn, or was never written, is NaN. Ranks nap, so that one that
// does not wait for the others' reading or writing is seen.
TEST(TokenExchange, WindowsBringWhatIsNeededAndNothingElse) {
  constexpr int kTurns = 4;
  for (const DType dtype : {DType::f32, DType::f64})
    for (const Sizes& s : kSizes) {
      SCOPED_TRACE(::testing::Message() << s.ranks << " ranks, " << s.tokens << " tokens");
      const SharedWindows shared(s, dtype);
      on_world_threads(s.ranks, [&](World& world) {
        const Mesh mesh = make_mesh(world, s.ranks);
        const int rank = world.rank();
        Context ctx;
        ctx.scratch.set_poison(true);
        const test::OwnedTensor sent_1({1}, DType::f64);
        test::set(sent_1, 0, 0);
        const std::int64_t S = s.ranks * s.tokens;
        const TokenWindows windows(mesh.expert, S, s.width, dtype, SharedWindows::memory(shared.arrivals),
                                   SharedWindows::memory(shared.departures), sent_1);
        TokenExchange all(mesh.expert, Way::all), exchange(mesh.expert, Way::windows, &windows);
        double expected_bytes = 0;
        const auto nap = [&](int turn, int number) {
          std::this_thread::sleep_for(std::chrono::microseconds((rank * 7 + turn * 5 + number * 3) % 11 * 100));
        };
        for (int turn = 0; turn < kTurns; ++turn) {
          const std::string name = std::to_string(rank) + "." + std::to_string(turn);
          const test::OwnedTensor expert({s.tokens, s.slots}, DType::i32),
              expert_here({S, s.slots}, DType::i32);
          test::fill_int(expert, "expert" + name, -1, s.ranks * s.experts_each);
          const test::OwnedTensor x = test::normal({s.tokens, s.width}, dtype, "x" + name);
          const test::OwnedTensor small = test::normal({s.tokens, s.slots}, dtype, "small" + name);
          const test::OwnedTensor all_here({S, s.width}, dtype), small_here({S, s.slots}, dtype);
          all.route(expert, s.experts_each, ctx);
          all.spread(all_here, x, ctx);
          EXPECT_EQ(exchange.route(expert, s.experts_each, ctx), S);
          const Tensor here = exchange.arrivals(x, s.tokens, ctx), from = exchange.departures(x, s.tokens, ctx);
          fill_with_nan(here);
          nap(turn, 0);
          exchange.spread({here, x}, {{expert_here, expert}, {small_here, small}}, ctx);
          nap(turn, 1);
          const test::OwnedTensor from_all({S, s.width}, dtype);
          for (std::int64_t i = 0; i < S * s.width; ++i) {
            const bool has_come = goes_to(expert_here, i / s.width, rank, s.experts_each);
            const double came = test::get(here, i);
            EXPECT_TRUE(has_come ? came == all_here[i] : std::isnan(came)) << came;
            // What this rank makes of it; from rows that have not come, which others do not read, NaN.
            test::set(from, i, has_come ? came / (3.0 + rank) : came);
            test::set(from_all, i, has_come ? came / (3.0 + rank) : 0);
          }
          const test::OwnedTensor sum({s.tokens, s.width}, dtype), sum_all({s.tokens, s.width}, dtype);
          const test::OwnedTensor sums({s.tokens, s.slots}, dtype), sums_all({s.tokens, s.slots}, dtype);
          if (turn % 2 == 0)
            exchange.collect({sum, x, from}, {{sums, {}, small_here}}, ctx);
          else
            exchange.collect(sum, x, from, ctx);
          nap(turn, 2);
          all.collect({sum_all, x, from_all}, {{sums_all, {}, small_here}}, ctx);
          nap(turn, 3);
          EXPECT_TRUE(test::same_bits(sum, sum_all));
          EXPECT_TRUE(turn % 2 != 0 || test::same_bits(sums, sums_all));
          // The gradient goes the same way, and nothing small comes along.
          fill_with_nan(here);
          exchange.spread(here, x, ctx);
          nap(turn, 4);
          for (std::int64_t i = 0; i < S * s.width; ++i)
            EXPECT_TRUE(!goes_to(expert_here, i / s.width, rank, s.experts_each) ||
                        test::get(here, i) == all_here[i]);
          for (std::int64_t t = 0; t < s.tokens; ++t)
            for (int place = 0; place < s.ranks; ++place)
              if (place != rank && goes_to(expert, t, place, s.experts_each))
                expected_bytes += static_cast<double>(3 * s.width * size_of(dtype));
        }
        EXPECT_EQ(sent_1[0], expected_bytes);
      });
    }
}

TEST(TokenExchange, AnExpertThatIsNowhereIsNamed) {
  for (const std::string& error : test::errors_of_ranks(2, [&](World& world) {
         const Mesh mesh = make_mesh(world, 2);
         Context ctx;
         TokenExchange(mesh.expert, Way::rows).route(test::ints({4}).view().reshape({1, 1}), 2, ctx);
       }))
    EXPECT_NE(error.find("names expert 4 of 4"), std::string::npos) << error;
}

}  // namespace
}  // namespace switchyard::parallel
