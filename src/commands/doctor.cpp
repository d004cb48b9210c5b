#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "commands/commands.h"
#include "commands/options.h"
#include "core/cores.h"
#include "core/error.h"
#include "core/json.h"
#include "core/threads.h"
#include "machine/findings.h"
#include "machine/measure.h"
#include "machine/read.h"
#include "machine/report.h"
#include "ops/device.h"
#include "ops/device_group.h"
#include "ops/product_paths.h"
#include "parallel/mpi.h"
#include "train/profile_report.h"

namespace switchyard::commands {

namespace {

namespace fs = std::filesystem;
using namespace machine;

struct Options {
  std::string directory;  // empty: runs, where there is one, or the current directory
  std::int64_t nproc = 1;
  bool json = false, quick = false;
};

void describe(CLI::App& app, Options& options) {
  app.add_option("--dir", options.directory,
                 "Where runs would be written, whose disk is tried (default: runs, or the current directory)")
      ->type_name("DIR");
  app.add_option("--nproc", options.nproc, "Judge for so many ranks on this machine")
      ->type_name("N")
      ->transform(whole_number(1, "", 4096))
      ->capture_default_str();
  app.add_flag("--json", options.json,
               "One JSON object, to paste into an issue: it has no host or user name and no path");
  app.add_flag("--quick", options.quick, "Measure nothing: neither the disk's nor the processor's speed");
  app.footer(
      "Shows what this machine is and what of it a run may use, and at the end what will fail or be slow, and "
      "what "
      "to do, the most important first (docs/doctor.md).\n"
      "Exit code 0; 1 where no run could end well here ('impossible:' lines).\n"
      "Examples:\n"
      "  switchyard doctor\n"
      "  switchyard doctor --dir /scratch/runs --nproc 8\n"
      "  switchyard doctor --json > machine.json");
}

void look_at_devices(CudaFacts& facts) {
  read_devices(facts);
  try {
    const ops::DeviceInventory inventory = ops::device_inventory();
    facts.built = inventory.toolkit > 0;
    if (!facts.built) return;
    facts.unusable = inventory.unusable;
    facts.driver = inventory.driver;
    facts.toolkit = inventory.toolkit;
    facts.cublas = inventory.cublas;
    facts.cudnn = inventory.cudnn;
    for (const ops::DeviceFacts& device : inventory.device)
      facts.device.push_back({device.name, device.capability, device.memory, device.unusable});
    for (const auto& [low, high] : inventory.apart) facts.apart.emplace_back(low, high);
    facts.nccl = ops::device_group_version();
  } catch (const std::exception& error) {  // by the backend, of a device that fails
    facts.built = true;
    facts.unusable = error.what();
  }
}

ProductFacts look_at_products() {
  const ops::ProductPaths paths = ops::product_paths();
  return {paths.library, paths.library_level, paths.compiled, paths.bf16_products};
}

train::MachineRates rates_on(Device device) {
  Context ctx(device);
  ctx.matmul = MatmulType::bf16;  // float32 is measured beside it
  ops::open_stream(ctx);
  return train::measure_rates(ctx);
}

double rate_of(const train::MachineRates& rates, MatmulType type) {
  return rates.product[static_cast<std::size_t>(type)];
}

RateFacts measure(const MachineFacts& facts) {
  RateFacts rates;
  constexpr std::int64_t kRoom = std::int64_t{1} << 30;  // copies take half of it
  if (facts.memory.available && *facts.memory.available < kRoom) {
    rates.not_measured = "less than 1 GiB of memory is left";
    return rates;
  }
  const Ticks before = read_ticks();
  const train::MachineRates here = rates_on(Device::cpu);
  set_shares(rates, before, read_ticks());
  rates.threads = thread_count();
  rates.float32 = rate_of(here, MatmulType::f32);
  rates.bfloat16 = rate_of(here, MatmulType::bf16);
  rates.copy = here.copy;
  return rates;
}

// Of the first device, where it can be used.
void measure_device(MachineFacts& facts) {
  if (facts.cuda.device.empty() || !facts.cuda.device.front().unusable.empty()) return;
  try {
    const train::MachineRates there = rates_on(ops::choose_device("cuda"));
    facts.rates.device_float32 = rate_of(there, MatmulType::f32);
    facts.rates.device_bfloat16 = rate_of(there, MatmulType::bf16);
    facts.rates.device_copy = there.copy;
  } catch (const std::exception& error) {
    facts.cuda.device.front().unusable = fmt::format("device 0 fails at a product: {}", error.what());
  }
}

int run(const Options& options) {
  set_threads(0);
  MachineFacts facts;
  facts.program = SWITCHYARD_VERSION;
  facts.kernel = read_kernel();
  facts.processor = read_processor();
  ask_processor(facts.processor);
  facts.cores = read_cores();
  facts.cores.ranks = static_cast<int>(options.nproc);
  facts.cores.threads =
      options.nproc == 1
          ? thread_count()
          : std::max(1, static_cast<int>(facts.cores.usable.size()) / static_cast<int>(options.nproc));
  facts.memory = read_memory();
  facts.limits = read_limits();
  facts.products = look_at_products();
  look_at_devices(facts.cuda);
  facts.mpi.built = parallel::built_with_mpi();
  facts.mpi.library = parallel::mpi_library();
  ask_mpirun(facts.mpi);
  facts.python = ask_python();
  std::error_code ignored;
  const fs::path directory = !options.directory.empty()          ? fs::path(options.directory)
                             : fs::is_directory("runs", ignored) ? fs::path("runs")
                                                                 : fs::path(".");
  facts.disk = look_at_disk(directory, !options.quick);
  if (!options.quick) {
    facts.rates = measure(facts);
    measure_device(facts);
  } else {
    facts.rates.not_measured = "--quick";
  }
  if (options.json) facts.disk.directory = "the directory of runs";
  const std::vector<Finding> findings = findings_of(facts);
  if (options.json) {
    std::fputs(to_text(json_of(facts, findings)).c_str(), stdout);
  } else {
    for (const std::string& line : lines_of(facts, findings)) std::puts(line.c_str());
  }
  if (std::fflush(stdout) != 0) throw_input("standard output cannot be written");
  const bool is_impossible = std::any_of(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.severity == Severity::impossible;
  });
  return is_impossible ? 1 : 0;
}

}  // namespace

const Command kDoctor = {"doctor", "What this machine is, and what on it will fail or be slow",
                         with_options<Options, describe, run>};

}  // namespace switchyard::commands
