// How fast ranks of one machine move bytes, as a share of what the same ranks copy by memcpy at the same time.
// With OMP_NUM_THREADS=1, as a rank on a core of its own: more threads than cores spin against each other.
//   bench_transport RANKS [RING_KIB]          shared memory, as with --nproc
//   mpirun -n RANKS bench_transport           MPI
#include <fmt/core.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "parallel/mpi.h"
#include "parallel/shared_memory.h"

namespace {

using namespace switchyard;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPiece = std::int64_t{32} << 20;  // bytes
constexpr int kRounds = 15;

double processor_seconds() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Seconds of f on all ranks together: the best and the middle one of the rounds, and what this rank's processor
// worked for one (waiting in the kernel is not work), which says more where other programs run.
struct Seconds {
  double best, median, processor;
};
Seconds measure(const parallel::Group& group, int rounds, const std::function<void()>& f) {
  std::vector<double> seconds;
  f();  // touches the pages
  group.barrier();
  const double before = processor_seconds();
  for (int round = 0; round < rounds; ++round) {
    group.barrier();
    const auto start = Clock::now();
    f();
    group.barrier();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2], (processor_seconds() - before) / rounds};
}

void bench(parallel::World& world, const std::string& name) {
  Context ctx;
  const int n = world.size();
  const parallel::Group group = parallel::all_ranks(world);
  std::vector<float> a(static_cast<std::size_t>(n * kPiece / 4), 1.0f), b(a.size(), 2.0f);
  const Tensor a_NX(a.data(), {n, kPiece / 4}, DType::f32), b_NX(b.data(), {n, kPiece / 4}, DType::f32);
  const double received = static_cast<double>((n - 1) * kPiece);
  const auto rate = [&](double seconds) { return received / seconds * 1e-9; };
  const Seconds copied = measure(
      group, kRounds, [&] { std::memcpy(b.data(), a.data(), static_cast<std::size_t>((n - 1) * kPiece)); });
  const auto say = [&](const char* what, Seconds taken) {
    if (world.rank() == 0)
      fmt::print(
          "{}, {} ranks: {:<14} {:5.2f} GB/s received a rank (median {:5.2f}), {:.2f} of memcpy; "
          "processor {:.2f} s a GB, {:.1f} times memcpy's\n",
          name, n, what, rate(taken.best), rate(taken.median), copied.best / taken.best,
          taken.processor / received * 1e9, taken.processor / copied.processor);
  };
  say("memcpy", copied);
  using parallel::Traffic;
  say("all_gather", measure(group, kRounds, [&] {
        group.all_gather(a_NX, a_NX.slice(world.rank(), 1), Traffic::weights, ctx);
      }));
  say("exchange", measure(group, kRounds, [&] { group.exchange(b_NX, a_NX, Traffic::tokens, ctx); }));
  std::vector<parallel::Part> part_N;
  for (int p = 0; p < n; ++p) part_N.push_back(parallel::part_of(n * kPiece / 4, 1, n, p));
  say("sum_to_owners", measure(group, kRounds, [&] {
        group.sum_to_owners(a_NX.reshape({n * kPiece / 4}), part_N, Traffic::gradients, ctx);
      }));
  const Seconds barrier = measure(group, 1000, [] {});
  if (world.rank() == 0)
    fmt::print("{}, {} ranks: a barrier      {:.1f} us (median {:.1f})\n", name, n, barrier.best * 1e6,
               barrier.median * 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (parallel::launched_copies().count > 1) {
      parallel::World world = parallel::make_mpi_world();
      bench(world, "MPI");
      parallel::finish_mpi();
      return 0;
    }
    const int ranks = argc > 1 ? std::atoi(argv[1]) : 2;
    const std::size_t ring =
        argc > 2 ? std::stoul(argv[2]) << 10 : parallel::SharedMemory::ring_bytes_for(ranks);
    parallel::SharedMemory memory(ranks, ring);
    for (int rank = 1; rank < ranks; ++rank)
      if (fork() == 0) {
        parallel::World world;
        world.transport = parallel::make_shared_memory_transport(memory, rank);
        bench(world, "");
        _exit(0);
      }
    parallel::World world;
    world.transport = parallel::make_shared_memory_transport(memory, 0);
    bench(world, fmt::format("shared memory, rings of {} KiB", ring >> 10));
    while (wait(nullptr) > 0) {
    }
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_transport: {}\n", error.what());
    return 1;
  }
}
