// Saves and loads one checkpoint of a training run's size, and says how fast and with how much memory, and what
// reading it back after a save costs.
//   bench_checkpoint_io CONFIG DIRECTORY [a.b=value ...]
#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "config/load.h"
#include "core/statistics.h"
#include "model/transformer.h"
#include "router/router.h"

namespace {

constexpr int kRounds = 9;

// Seconds: of the clock, and of this process on all cores.
struct Cost {
  double wall = 0, cpu = 0;
  static Cost now() {
    struct rusage usage {};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
    };
    return {std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(),
            seconds(usage.ru_utime) + seconds(usage.ru_stime)};
  }
  Cost operator-(const Cost& start) const { return {wall - start.wall, cpu - start.cpu}; }
};

double peak_mb() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024e-6;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace switchyard;
  if (argc < 3) {
    fmt::print(stderr, "usage: bench_checkpoint_io CONFIG DIRECTORY [a.b=value ...]\n");
    return 2;
  }
  const auto transport = parallel::make_lone_transport();
  const parallel::Group alone(*transport, {0});
  try {
    const config::Run run =
        config::load_run(argv[1], std::vector<std::string>(argv + 3, argv + argc), router::router_schemas());
    const std::filesystem::path directory(argv[2]);
    model::Transformer model(run.model, run.router, DType::f32, true);
    model.allocate();
    ParameterStore& store = model.parameters();
    store.initialise(run.train.seed);
    // Pages of zeros that nothing wrote would cost nothing to read.
    for (const Tensor& moments : {store.moments1(), store.moments2()})
      std::fill_n(moments.as<float>(), moments.numel(), 0.5f);
    const double own_mb = peak_mb();
    fmt::print("{:.1f}M parameters; memory with weights, gradients and moments: {:.0f} MB\n",
               static_cast<double>(store.count()) * 1e-6, own_mb);
    std::vector<double> wall, cpu;  // of a save that is read back, over one that is not
    for (int round = 0; round < kRounds; ++round) {
      Cost verified, unread;
      double mb = 0, load = 0;
      // In turns, so that neither is always the first.
      for (const bool verify : {round % 2 == 0, round % 2 != 0}) {
        config::Run asked = run;
        asked.checkpoint.verify = verify;
        const Cost start = Cost::now();
        const auto path = checkpoint::save_checkpoint(directory, store, {.step = round, .seed = run.train.seed},
                                                      asked, {}, "", alone);
        (verify ? verified : unread) = Cost::now() - start;
        if (verify) {
          const Cost before = Cost::now();
          const checkpoint::Checkpoint saved(path);
          saved.load_weights(store);
          saved.load_state(store, {});
          load = (Cost::now() - before).wall;
          std::uint64_t bytes = 0;
          for (const auto& entry : std::filesystem::directory_iterator(path)) bytes += entry.file_size();
          mb = static_cast<double>(bytes) * 1e-6;
        }
        std::filesystem::remove_all(path);
      }
      wall.push_back(verified.wall / unread.wall);
      cpu.push_back(verified.cpu / unread.cpu);
      fmt::print(
          "{:.0f} MB: save {:.0f} MB/s, not read back {:.0f} MB/s, load {:.0f} MB/s; peak memory {:.0f} MB, "
          "{:.0f} more "
          "than its own\n",
          mb, mb / verified.wall, mb / unread.wall, mb / load, peak_mb(), peak_mb() - own_mb);
    }
    for (auto* ratios : {&wall, &cpu}) {
      const auto [low, high] = std::minmax_element(ratios->begin(), ratios->end());
      fmt::print(
          "{} of a save that is read back, over one that is not: {:.2f} ({:.2f} to {:.2f}), the median of {}\n",
          ratios == &wall ? "time" : "processor time", quantile_of(*ratios, 0.5), *low, *high, ratios->size());
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_checkpoint_io: {}\n", error.what());
    return 1;
  }
  return 0;
}
