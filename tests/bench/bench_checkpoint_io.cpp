// Saves and loads one checkpoint of a training run's size, and says how fast and with how much memory.
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
#include "model/transformer.h"
#include "router/router.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

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
    for (int round = 0; round < 3; ++round) {
      auto start = Clock::now();
      const auto path = checkpoint::save_checkpoint(directory, store, {.step = round, .seed = run.train.seed},
                                                    run, {}, "", alone);
      const double save = seconds_since(start);
      start = Clock::now();
      const checkpoint::Checkpoint saved(path);
      saved.load_weights(store);
      saved.load_state(store, {});
      const double load = seconds_since(start);
      std::uint64_t bytes = 0;
      for (const auto& entry : std::filesystem::directory_iterator(path)) bytes += entry.file_size();
      const double mb = static_cast<double>(bytes) * 1e-6;
      fmt::print(
          "{:.0f} MB: save {:.0f} MB/s, load {:.0f} MB/s; peak memory {:.0f} MB, {:.0f} more than its own\n",
          mb, mb / save, mb / load, peak_mb(), peak_mb() - own_mb);
      std::filesystem::remove_all(path);
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_checkpoint_io: {}\n", error.what());
    return 1;
  }
  return 0;
}
