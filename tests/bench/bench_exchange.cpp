// How fast ranks on devices exchange: each of the verbs that a run uses, as a share of the library's own
// all-gather in the same run. Prints a table, and writes it as JSON.
//   bench_exchange --nproc N [--smoke] [--json FILE]     N devices of this machine; smoke: a few bytes, once
//   bench_exchange --devices                             how many of them can be used
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "core/device_memory.h"
#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "ops/device.h"
#include "parallel/agreement.h"
#include "parallel/devices.h"
#include "parallel/launch.h"

namespace {

using namespace switchyard;
using Clock = std::chrono::steady_clock;
using parallel::Group;
using parallel::Traffic;

struct Sizes {
  std::int64_t piece;  // elements, f32
  int calls, rounds;
};
constexpr Sizes kFull{std::int64_t{16} << 20, 10, 7}, kSmoke{64, 1, 1};

class Bench {
 public:
  Bench(parallel::World& world, const Sizes& sizes)
      : sizes_(sizes),
        n_(world.size()),
        rank_(world.rank()),
        device_(ops::make_device_group(
            parallel::by_first(parallel::all_ranks(world), [] { return ops::make_device_group_id(); }), rank_,
            n_)),
        ordered_(*world.transport, parallel::all_ranks(world).ranks(), device_),
        library_(*world.transport, ordered_.ranks(), device_, true),
        ctx_(Device::cuda) {
    parallel::check_while_waiting({device_});
    ops::open_stream(ctx_);
    for (AlignedBuffer* memory : {&a_, &b_}) {
      const std::int64_t bytes = n_ * sizes.piece * size_of(DType::f32);
      *memory = allocate_aligned(bytes, "what is exchanged", Device::cuda);
      fill_bytes(memory->get(), 0, bytes, Device::cuda);
    }
  }

  // Of every rank; the table is of the first.
  Json run() {
    const std::int64_t P = sizes_.piece, N = n_;
    const Tensor a_NP(a_.get(), {N, P}, DType::f32, Device::cuda),
        b_NP(b_.get(), {N, P}, DType::f32, Device::cuda);
    const Tensor a_X = a_NP.reshape({N * P}), mine_P = a_NP.slice(rank_, 1).reshape({P});
    std::vector<FlatRange> part_N;
    for (int p = 0; p < n_; ++p) part_N.push_back(parallel::part_of(N * P, 1, n_, p));
    const double others = static_cast<double>((N - 1) * P * 4);  // bytes
    // First, and without anything of ours around it: what the others are compared with.
    measure("NCCL's all-gather", others, [&] { device_->all_gather(a_NP, mine_P, ctx_); });
    measure("all-gather", others,
            [&] { ordered_.all_gather(a_NP, a_NP.slice(rank_, 1), Traffic::weights, ctx_); });
    measure("all-gather of unequal parts", others,
            [&] { ordered_.all_gather_parts(a_X, part_N, Traffic::weights, ctx_); });
    measure("exchange of tokens", others, [&] { ordered_.exchange(b_NP, a_NP, Traffic::tokens, ctx_); });
    measure("sum to owners, in order", others,
            [&] { ordered_.sum_to_owners(a_X, part_N, Traffic::gradients, ctx_); });
    measure("sum to owners, NCCL's", others,
            [&] { library_.sum_to_owners(a_X, part_N, Traffic::gradients, ctx_); });
    // A ring of ranks sends each byte twice, but for the own piece.
    measure("sum on all, NCCL's", 2 * others, [&] { library_.sum(a_X, Traffic::gradients, ctx_); });
    const Tensor few = a_X.slice(0, std::min<std::int64_t>(P, 1024)),
                 few_N = b_NP.reshape({N * P}).slice(0, N * few.numel());
    measure("all-gather of 4 KiB", static_cast<double>((N - 1) * few.nbytes()),
            [&] { ordered_.all_gather(few_N, few, Traffic::sums, ctx_); });
    return Json::Object{{"ranks", n_}, {"rows", rows_}};
  }

 private:
  // received: bytes that a rank gets from others in one call.
  void measure(const char* what, double received, const std::function<void()>& call) {
    call();  // connections are made, and scratch space grows
    wait();
    std::vector<double> seconds;
    for (int round = 0; round < sizes_.rounds; ++round) {
      ordered_.barrier();
      const auto start = Clock::now();
      for (int i = 0; i < sizes_.calls; ++i) call();
      wait();
      const double mine = std::chrono::duration<double>(Clock::now() - start).count() / sizes_.calls;
      const std::vector<double> of_all = ordered_.gather_numbers(std::span(&mine, 1));
      seconds.push_back(*std::max_element(of_all.begin(), of_all.end()));
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2], rate = received / median;
    if (ceiling_ == 0) ceiling_ = rate;
    if (rank_ == 0)
      fmt::print("{:<28} {:8.2f} GB/s received a rank, {:.2f} of NCCL's all-gather; {:.1f} us a call\n", what,
                 rate * 1e-9, rate / ceiling_, median * 1e6);
    rows_.push_back(Json::Object{
        {"what", what}, {"bytes_per_second", rate}, {"share", rate / ceiling_}, {"seconds", median}});
  }

  void wait() { (void)HostCopy(Tensor(b_.get(), {1}, DType::f32, Device::cuda)); }

  Sizes sizes_;
  int n_, rank_;
  std::shared_ptr<ops::DeviceGroup> device_;
  Group ordered_, library_;
  Context ctx_;
  AlignedBuffer a_, b_;
  double ceiling_ = 0;
  Json rows_{Json::Array{}};
};

int usable_devices() {
  const ops::DeviceInventory seen = ops::device_inventory();
  return static_cast<int>(
      std::count_if(seen.device.begin(), seen.device.end(),
                    [](const ops::DeviceFacts& device) { return device.unusable.empty(); }));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("How fast ranks on devices exchange");
  int nproc = 0;
  bool smoke = false, devices = false;
  std::string json;
  app.add_option("--nproc", nproc, "ranks of this machine, a device each");
  app.add_flag("--smoke", smoke, "a few bytes, once: no measurement");
  app.add_flag("--devices", devices, "print how many devices can be used, and end");
  app.add_option("--json", json, "write the figures to a file as well");
  CLI11_PARSE(app, argc, argv);
  try {
    if (devices) {
      fmt::print("{}\n", usable_devices());
      return 0;
    }
    if (nproc < 2) throw InputError("--nproc: at least 2 ranks exchange something");
    return parallel::run_ranks(nproc, [&](parallel::World& world) {
      parallel::log_devices(parallel::take_device("cuda", world), world);
      Json result = Bench(world, smoke ? kSmoke : kFull).run();
      if (world.rank() == 0 && !json.empty()) {
        result["measured"] = !smoke;
        std::ofstream(json) << to_line(result) << '\n';
      }
      return 0;
    });
  } catch (const InputError& error) {
    log_error(error.what());
    return 2;
  }
}
