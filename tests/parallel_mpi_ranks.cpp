// The checks of group_checks.h between the ranks that mpirun has started; tests/cli/mpi_test.py runs it.
//   parallel_mpi_ranks [PIECE_BYTES]     messages are cut into pieces of so many bytes
//   parallel_mpi_ranks disagree          ranks 0 and 1 send each other what the other does not expect
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <string>

#include "group_checks.h"
#include "parallel/mpi.h"

namespace switchyard::test {
namespace {

World* the_world = nullptr;

TEST(MpiRanks, EveryCheckOfAGroupHolds) {
  for (const GroupCheck& each : kGroupChecks) {
    SCOPED_TRACE(each.name);
    each.check(*the_world);
  }
}

TEST(MpiRanks, RanksOfOneMachineKnowTheirPlacesAndCores) {
  EXPECT_EQ(the_world->node_size, the_world->size());
  EXPECT_EQ(the_world->node_rank, the_world->rank());
  fmt::print("rank {} of {} may use {} cores\n", the_world->rank(), the_world->size(), the_world->cores);
}

// Each kind of disagreement ends in a text that names both sides.
void disagree(World& world) {
  PoisonedContext ctx;
  const std::int64_t count = world.rank() == 0 ? 10 : 1000;
  const OwnedTensor to_NX({world.size(), count}, DType::f32), from_X = made_by(world.rank(), count, DType::f32);
  all_of(world).all_gather(to_NX, from_X, Traffic::weights, ctx);
}

}  // namespace
}  // namespace switchyard::test

int main(int argc, char** argv) {
  using namespace switchyard;
  ::testing::InitGoogleTest(&argc, argv);
  const std::string argument = argc > 1 ? argv[1] : "";
  try {
    const bool is_size = !argument.empty() && argument != "disagree";
    parallel::World world =
        is_size ? parallel::make_mpi_world(std::stoul(argument)) : parallel::make_mpi_world();
    if (argument == "disagree") {
      test::disagree(world);
      return 0;
    }
    test::the_world = &world;
    const int result = RUN_ALL_TESTS();
    fmt::print("rank {} of {} ends with {}\n", world.rank(), world.size(), result);
    // A rank that failed may have left messages of others untaken: it does not wait for them.
    if (result == 0) parallel::finish_mpi();
    return result;
  } catch (const InputError& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    std::fflush(nullptr);
    _exit(1);
  }
}
