// What a run on several ranks refuses, counts and compares.
#include "train/ranks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "run_samples.h"
#include "shards.h"
#include "temp_dir.h"
#include "tensors.h"
#include "train/gradient_sums.h"
#include "train/optimizer.h"
#include "train/token_data.h"
#include "world_threads.h"

namespace switchyard::train {
namespace {

using namespace test;

TEST(MicroBatches, AreNeighboursAndEachIsDoneOnce) {
  config::Train train;
  train.micro_batch_size = 2;
  for (const int all : {1, 4, 7, 64}) {
    train.global_batch_size = 2 * all;
    for (int size = 1; size <= std::min(all, 9); ++size) {
      std::int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const MicroBatches mine = micro_batches_of(train, rank, size);
        EXPECT_EQ(mine.first, next);
        EXPECT_GE(mine.count, 1);
        EXPECT_LE(mine.count, mine.run);
        EXPECT_EQ(mine.run, (all + size - 1) / size);
        next += mine.count;
      }
      EXPECT_EQ(next, all);
    }
  }
}

struct Refusal {
  const char* what;
  int size;
  void (*change)(config::Run&);
  const char* message;
};
const Refusal kRefusals[] = {
    {"Ranks", 2, [](config::Run& run) { run.parallel.ranks = 4; },
     "parallel.ranks: is 4, but 2 ranks were started; use mpirun -n 4 or --nproc 4, or leave it out"},
    {"ExpertOfRanks", 6, [](config::Run& run) { run.parallel.expert = 4; },
     "parallel.expert: 4 does not divide the 6 ranks; start a multiple of 4 with --nproc or mpirun -n, or set "
     "it to 1"},
    {"ExpertOfExperts", 4,
     [](config::Run& run) {
       run.parallel.expert = 4;
       run.model.num_experts = 10;
     },
     "parallel.expert: 4 does not divide model.num_experts, 10; choose a number that does"},
    {"OutputsApart", 2,
     [](config::Run& run) {
       run.parallel.expert = 2;
       run.router.orthogonality_coef = 0.25;
     },
     "router.orthogonality_coef: is 0.25, but parallel.expert is 2: the outputs that a token has of its "
     "experts "
     "are on several ranks, and none compares them; set router.orthogonality_coef to 0 or parallel.expert to "
     "1"},
    {"NoExperts", 2,
     [](config::Run& run) {
       run.parallel.expert = 2;
       run.model.num_experts = 0;
     },
     "parallel.expert: is 2, but the model has no experts; leave it out"},
    {"MicroBatches", 16, [](config::Run&) {},
     "train.global_batch_size: 8 micro-batches for 16 ranks: 8 would have nothing to do; use at most 8, or a "
     "smaller "
     "micro_batch_size"},
    {"SameBitsOfThree", 3, [](config::Run& run) { run.train.same_bits = true; },
     "train.same_bits: needs a number of ranks that is a power of two and divides the 8 micro-batches of a "
     "step; 3 "
     "ranks were started"},
    {"SameBitsOfExperts", 2,
     [](config::Run& run) {
       run.train.same_bits = true;
       run.parallel.expert = 2;
     },
     "train.same_bits: needs parallel.expert 1, which is 2: experts add up in another order"},
    {"LibrarySumsOnCpu", 2, [](config::Run& run) { run.parallel.sums = config::Sums::library; },
     "parallel.sums: \"library\" is of ranks on CUDA devices, and these compute on the CPU; set it to "
     "\"ordered\""},
};

TEST(CheckRanks, RefusesInOneLine) {
  for (const Refusal& refusal : kRefusals) {
    config::Run run = small_run();
    run.train.global_batch_size = 8;
    run.train.micro_batch_size = 1;
    EXPECT_NO_THROW(check_ranks(run, 2, Device::cpu));
    refusal.change(run);
    const std::string message = message_of<InputError>([&] { check_ranks(run, refusal.size, Device::cpu); });
    EXPECT_EQ(message, refusal.message) << refusal.what;
  }
}

// Four ranks on devices, of two machines where `hosts` says so.
parallel::DeviceChoice four_devices(std::vector<std::string> hosts = {"a", "a", "a", "a"}) {
  parallel::DeviceChoice devices;
  devices.device = Device::cuda;
  devices.host_R = std::move(hosts);
  return devices;
}

TEST(CheckWindows, RowsNeedDevicesThatReachEachOther) {
  config::Run run = small_run();
  run.parallel.expert = 2;
  parallel::DeviceChoice apart = four_devices();
  apart.apart = {{1, 2}, {2, 3}};  // the first two are not of one group
  const parallel::DeviceChoice machines = four_devices({"a", "a", "b", "c"}),
                               beside = four_devices({"a", "a", "b", "b"});
  for (const auto& devices : {apart, machines})
    EXPECT_NO_THROW(check_windows(run, devices)) << "all is for any";
  run.parallel.token_exchange = config::TokenExchange::rows;
  EXPECT_NO_THROW(check_windows(run, beside));
  const auto refusal = [&](const parallel::DeviceChoice& devices) {
    return message_of<InputError>([&] { check_windows(run, devices); });
  };
  const std::string rows =
      "parallel.token_exchange: \"rows\" writes to the memory of the other devices of an expert group, and ";
  EXPECT_EQ(refusal(apart),
            rows + "the devices of ranks 2 and 3 do not reach each other's memory; set it to \"all\"");
  EXPECT_EQ(refusal(machines), rows + "ranks 2 and 3 are on machines of their own, b and c; set it to \"all\"");
  run.parallel.expert = 64;
  EXPECT_EQ(refusal(four_devices(std::vector<std::string>(64, "a"))),
            rows + "it is for at most 32 ranks; set it to \"all\"");
}

// A store of two layers of experts, and rows of none, on four ranks, two of which hold them once.
struct Store : ParameterStore {
  explicit Store(const Placement& placement) {
    for (const char* name : {"a", "b", "c"}) {
      if (name[0] == 'c')
        end_layers();
      else
        begin_layer();
      begin_group();
      add({.name = name, .shape = {70000, 2}, .init_std = 0.1});
      for (int e = 0; e < 4; ++e)
        add({.name = std::string(name) + std::to_string(e),
             .shape = {30, 11},
             .init_std = 0.1,
             .sharding = Sharding::by_expert,
             .expert = e,
             .n_experts = 4});
    }
    place(placement);
    allocate(DType::f32, true);
    initialise(3);
  }
};

std::vector<std::string> findings(std::size_t changed_rank, const char* row_name) {
  return errors_of_ranks(4, [&](parallel::World& world) {
    const parallel::Mesh mesh = parallel::make_mesh(world, 2);
    const Store store(placement_of(mesh, 1));
    check_replicas(store, mesh, 6);
    for (std::size_t i = 0; i < store.rows().size(); ++i) {
      if (store.rows()[i].name != row_name || static_cast<std::size_t>(world.rank()) != changed_rank) continue;
      std::byte* const last = static_cast<std::byte*>(store.value(i).raw()) + store.value(i).nbytes() - 1;
      *last ^= std::byte{1};
    }
    check_replicas(store, mesh, 7);
  });
}

TEST(CheckReplicas, FindsOneBit) {
  struct Case {
    std::size_t rank;
    const char* row;
    const char* words;  // empty: nothing differs
  };
  // Ranks 1 and 3 hold experts 2 and 3.
  for (const Case& c : {Case{2, "b", "b of rank 2 is not that of rank 0"},
                        Case{3, "a2", "a2 of rank 3 is not that of rank 1"}, Case{0, "nothing", ""}}) {
    const std::vector<std::string> found = findings(c.rank, c.row);
    const bool any = std::any_of(found.begin(), found.end(), [](const auto& text) { return !text.empty(); });
    EXPECT_EQ(any, c.words[0] != 0) << c.row;
    for (const std::string& text : found)  // those that another has ended say nothing
      if (!text.empty()) {
        EXPECT_CONTAINS(text, std::string("step 7: what ranks hold alike is not alike: ") + c.words);
      }
  }
}

TEST(IdealBytes, AreWhatRanksSend) {
  for (const auto& [size, expert] : {std::pair{1, 1}, {2, 1}, {2, 2}, {3, 1}, {4, 2}})
    for (const std::int64_t zero : {0, 1, 2}) {
      SCOPED_TRACE(::testing::Message() << size << " ranks, expert " << expert << ", zero " << zero);
      on_world_threads(size, [&, expert = expert](parallel::World& world) {
        const parallel::Mesh mesh = parallel::make_mesh(world, expert);
        Store store(placement_of(mesh, zero));
        const GradientSums gradient_sums(store, mesh, zero, false);
        const AdamW optimizer({}, store, mesh, zero, Device::cpu);
        Context ctx;
        const OwnedTensor squares({1}, DType::f64);
        RankWatch watch;
        watch.gather(world, mesh.all);
        for (int micro = 0; gradient_sums.in_backward(micro == 1) && micro < 2; ++micro) {
          LayerSums sums(gradient_sums, ctx);
          for (std::int64_t layer = store.n_layers(); layer-- > 0;) {
            sums.calls().begin_layer(layer);
            sums.calls().end_layer(layer);
          }
          sums.join();
        }
        gradient_sums.sum_rest(ctx);
        optimizer.measure(store, squares, ctx);
        optimizer.update(store, squares, 0.1, 1, ctx);
        const RankFigures figures = watch.gather(world, mesh.all);
        const IdealBytes ideal = ideal_bytes(store, mesh, world.size() > 1 ? zero : 0, 2);
        const auto sent = [&](parallel::Traffic kind) {
          return figures.sent_bytes[static_cast<std::size_t>(kind)];
        };
        EXPECT_EQ(sent(parallel::Traffic::gradients), ideal.gradients);
        EXPECT_EQ(sent(parallel::Traffic::weights), ideal.weights);
        EXPECT_EQ(ideal.gradients > 0, world.size() > 1);
        EXPECT_EQ(std::ssize(figures.wait_seconds_N), world.size());
        EXPECT_TRUE(figures.exchange_seconds_N.empty());
      });
    }
}

TEST(RankWatch, ARankWaitsOnItsDeviceBeyondTheOneThatIsInExchangesLeast) {
  on_world_threads(3, [](parallel::World& world) {
    const double in_exchanges[] = {5000, 3000, 4000};  // far beyond what hosts here wait in seconds
    const RankFigures figures =
        RankWatch().gather(world, parallel::all_ranks(world), in_exchanges[world.rank()]);
    EXPECT_EQ(figures.exchange_seconds_N, (std::vector<double>{5000, 3000, 4000}));
    for (std::size_t rank = 0; rank < 3; ++rank)
      EXPECT_NEAR(figures.wait_seconds_N[rank], in_exchanges[rank] - 3000, 500);
  });
}

// Sums of a step of two micro-batches, as its numbers are when they are added up after both, or each layer in
// the backward pass of the last.
std::vector<double> sums_of_step(parallel::World& world, const parallel::Mesh& mesh, std::int64_t zero,
                                 bool beside) {
  Store store(placement_of(mesh, zero, beside));
  fill_normal(store.grads(), "gradients of rank " + std::to_string(world.rank()));
  const GradientSums gradient_sums(store, mesh, zero, beside);
  Context ctx;
  EXPECT_FALSE(gradient_sums.in_backward(false));
  EXPECT_EQ(gradient_sums.in_backward(true), beside);
  if (beside) {
    LayerSums sums(gradient_sums, ctx);
    const model::BackwardCalls calls = sums.calls();
    for (std::int64_t layer = store.n_layers(); layer-- > 0;) {
      const FlatRange range = store.layer_ranges(layer)[0];
      const bool gets_sums = zero == 0 || overlap(range, store.regions()[0].own_part()).count > 0;
      const Tensor grad = store.grad(range);
      const std::vector<double> before = values(grad);
      calls.begin_layer(layer);
      calls.before_attention();
      EXPECT_EQ(values(grad), before);
      calls.end_layer(layer);
      // Where ranks share experts it waits for the next layer's attention, or for the end.
      EXPECT_EQ(values(grad) == before, mesh.expert.size() > 1 || !gets_sums);
    }
    sums.join();
  }
  gradient_sums.sum_rest(ctx);
  std::vector<double> all;
  for (const RowPiece& piece : zero == 0 ? store.held(RowArray::gradient) : store.owned(RowArray::gradient))
    for (const double value : values(piece.tensor_N)) all.push_back(value);
  return all;
}

TEST(GradientSums, AreTheSameBitsBesideTheBackwardPassAndAfterIt) {
  for (const auto& [size, expert] : {std::pair{2, 1}, {2, 2}, {4, 2}})
    for (const std::int64_t zero : {0, 1}) {
      SCOPED_TRACE(::testing::Message() << size << " ranks, expert " << expert << ", zero " << zero);
      on_world_threads(size, [&, expert = expert](parallel::World& world) {
        const parallel::Mesh mesh = parallel::make_mesh(world, expert);
        const std::vector<double> after = sums_of_step(world, mesh, zero, false);
        EXPECT_EQ(sums_of_step(world, mesh, zero, true), after);
        EXPECT_GT(after.size(), 0u);
      });
    }
}

TEST(ExpectSameEverywhere, NamesTheFirstRankThatDiffers) {
  const std::vector<std::string> errors = errors_of_ranks(3, [](parallel::World& world) {
    const parallel::Group all = parallel::all_ranks(world);
    expect_same_everywhere(all, "the weather", "fine", "move");
    expect_same_everywhere(all, "the program", world.rank() < 2 ? "a" : "b", "start the same build everywhere");
  });
  const auto is_it = [](const std::string& error) {
    return error == "the program of rank 2 is not that of rank 0; start the same build everywhere";
  };
  EXPECT_TRUE(std::any_of(errors.begin(), errors.end(), is_it));
}

TEST(OpenDomains, RanksThatSeeOtherShardsAreNamed) {
  const TempDir dir;
  for (const char* view : {"0", "1"}) std::filesystem::create_directory(dir / view);
  write_shard(dir / "0" / "a.bin", {1, 2, 3});
  write_shard(dir / "1" / "a.bin", {1, 2, 4});
  const std::vector<std::string> errors = errors_of_ranks(2, [&](parallel::World& world) {
    const auto path = dir / std::to_string(world.rank()) / "a.bin";
    open_domains({{path.string(), "law", std::nullopt}}, 10, parallel::all_ranks(world));
  });
  EXPECT_TRUE(std::any_of(errors.begin(), errors.end(), [](const std::string& error) {
    return error.find("rank 1 does not see the shards of domain law that rank 0 sees") == 0;
  }));
}

}  // namespace
}  // namespace switchyard::train
