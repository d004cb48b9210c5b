#include "parallel/agreement.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "temp_dir.h"
#include "world_threads.h"

namespace switchyard::parallel {
namespace {

using namespace test;

// Checks that every rank of three throws `Error` with this text.
template <class Error>
void expect_error(const std::string& text, const std::function<void(const Group&, int rank)>& f) {
  on_world_threads(3, [&](World& world) {
    const Group all = all_ranks(world);
    EXPECT_EQ(message_of<Error>([&] { f(all, world.rank()); }), text);
    EXPECT_FALSE(all.any(false));  // and all go on together
  });
}

TEST(Agreement, GathersWhatEachRankSays) {
  on_world_threads(3, [](World& world) {
    const Group all = all_ranks(world);
    EXPECT_EQ(gather(all, [&] { return std::string(static_cast<std::size_t>(world.rank()), 'x'); }),
              (std::vector<std::string>{"", "x", "xx"}));
    EXPECT_EQ(by_first(all, [&] { return world.rank() == 0 ? "of the first" : "not called"; }), "of the first");
  });
}

TEST(Agreement, TheFirstRankThatFailsIsNamedOnAll) {
  expect_error<InputError>("rank 1: no file", [](const Group& all, int rank) {
    together(all, [&] {
      if (rank == 1) throw InputError("no file");
      if (rank == 2) throw InputError("no memory");
    });
  });
}

TEST(Agreement, WhatAllSayIsSaidOnce) {
  expect_error<InputError>("no file",
                           [](const Group& all, int) { together(all, [] { throw InputError("no file"); }); });
}

TEST(Agreement, WhatTheFirstDoesForAllHasNoNumber) {
  expect_error<InputError>("no file", [](const Group& all, int) {
    by_first(all, []() -> std::string { throw InputError("no file"); });
  });
}

TEST(Agreement, OtherErrorsEndTheRunAsItsOwn) {
  expect_error<RunError>("rank 2: a fault", [](const Group& all, int rank) {
    together(all, [&] {
      if (rank == 2) throw std::logic_error("a fault");
    });
  });
}

TEST(Agreement, ARankAloneThrowsWhatWasThrown) {
  World world = make_lone_world();
  const Group all = all_ranks(world);
  EXPECT_EQ(message_of<std::logic_error>([&] { together(all, [] { throw std::logic_error("a fault"); }); }),
            "a fault");
}

}  // namespace
}  // namespace switchyard::parallel
