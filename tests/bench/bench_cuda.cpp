// What the CUDA kernels reach of what the card can do: two ceilings, a bf16 product and a copy, are measured
// first, then every family of kernels is timed and compared with them.
//   bench_cuda [--only TEXT] [--family NAME] [--skip N] [--count N] [--json FILE] [--smoke]
//   bench_cuda --list
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>

#include "core/error.h"
#include "core/json.h"
#include "cuda/device.h"
#include "cuda_bench.h"

namespace {

using namespace switchyard;
using namespace switchyard::bench;

struct Ceilings {
  double flops, bytes_per_second;
};

struct Result {
  std::string kernel;
  double bar;
  std::string error;  // empty: it ran
  Work work{};
  Times times{};

  // Of the ceiling that its bar is meant for: a kernel with products is held against the product.
  double share(const Ceilings& c) const {
    return work.flop > 0 ? work.flop / times.median / c.flops : work.bytes / times.median / c.bytes_per_second;
  }
  // Of what both ceilings together allow: the time that the slower of them would take.
  double share_of_bound(const Ceilings& c) const {
    return std::max(work.flop / c.flops, work.bytes / c.bytes_per_second) / times.median;
  }
};

Result run(const Case& one, bool smoke, Context& ctx) {
  Result result{.kernel = one.kernel, .bar = one.bar, .error = {}};
  try {
    result.times = measure(one, smoke, ctx, result.work);
  } catch (const std::exception& error) {  // one that does not run hides no other
    result.error = error.what();
  }
  return result;
}

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

void print(const Result& r, const std::optional<Ceilings>& c) {
  if (!r.error.empty()) {
    fmt::print("{:<40} FAILED: {}\n", r.kernel, r.error);
    return;
  }
  const double t = r.times.median;
  fmt::print("{:<40} {:<52} {:>10.4f} {:>8} {:>8.1f}", r.kernel, r.work.shape, t * 1e3,
             r.work.flop > 0 ? fmt::format("{:.1f}", r.work.flop / t * 1e-12) : "", r.work.bytes / t * 1e-9);
  if (c) {
    fmt::print(" {:>8} {:>8}", percent(r.share(*c)), percent(r.share_of_bound(*c)));
    if (r.bar > 0) fmt::print("  {:.0f} % {}", 100 * r.bar, r.share(*c) >= r.bar ? "reached" : "MISSED");
  }
  fmt::print("\n");
}

void print_head() {
  fmt::print("{:<40} {:<52} {:>10} {:>8} {:>8} {:>8} {:>8}  {}\n", "kernel", "shape", "ms", "TFLOP/s", "GB/s",
             "share", "of bound", "bar");
}

Json json_of(const Result& r, const std::optional<Ceilings>& c) {
  Json json(Json::Object{{"kernel", r.kernel}});
  if (r.bar > 0) json["bar"] = r.bar;
  if (!r.error.empty()) {
    json["error"] = r.error;
    return json;
  }
  json["shape"] = r.work.shape;
  json["milliseconds"] = r.times.median * 1e3;
  json["fastest"] = r.times.fastest * 1e3;
  json["slowest"] = r.times.slowest * 1e3;
  json["tflops"] = r.work.flop / r.times.median * 1e-12;
  json["gb_per_second"] = r.work.bytes / r.times.median * 1e-9;
  if (!c) return json;
  json["share"] = r.share(*c);
  json["share_of_bound"] = r.share_of_bound(*c);
  if (r.bar > 0) json["reached"] = r.share(*c) >= r.bar;
  return json;
}

struct Options {
  std::string only, family, json;
  std::size_t skip = 0, count = std::numeric_limits<std::size_t>::max();
  bool smoke = false, list = false;
};

struct Family {
  const char* name;
  std::vector<Case> cases;
};

struct Named {
  const char* family;
  Case one;
};

std::vector<Family> families(const Sizes& sizes) {
  return {{"rows", row_cases(sizes)}, {"model", model_cases(sizes)},
          {"moe", moe_cases(sizes)},  {"router", router_cases(sizes)},
          {"lpr", lpr_cases(sizes)},  {"attention", attention_cases(sizes)}};
}

// Those that are asked for, in their order: the n-th is the same in every call with the same --only and
// --family.
std::vector<Named> chosen(const Options& options, const Sizes& sizes) {
  std::vector<Named> all;
  for (const Family& family : families(sizes)) {
    if (!options.family.empty() && options.family != family.name) continue;
    for (const Case& one : family.cases)
      if (one.kernel.find(options.only) != std::string::npos) all.push_back({family.name, one});
  }
  const auto begin = all.begin() + static_cast<std::ptrdiff_t>(std::min(options.skip, all.size()));
  const auto left = static_cast<std::size_t>(all.end() - begin);
  return {begin, begin + static_cast<std::ptrdiff_t>(std::min(options.count, left))};
}

// An illegal access ends everything that the process does on the device: each call after it fails with the same
// error. Any other error is gone once it was read.
bool device_answers(Context& ctx) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      ops::cuda::synchronise(ctx);
      return true;
    } catch (const std::exception&) {
    }
  }
  return false;
}

// After each case, so that one which ends the process takes no other's figures with it.
void write_json(const std::string& path, const Platform& where, bool measured,
                const std::vector<Result>& results, const std::optional<Ceilings>& ceilings) {
  if (path.empty()) return;
  Json json(Json::Object{{"device", where.device},
                         {"driver", where.driver},
                         {"toolkit", where.cuda},
                         {"measured", measured},
                         {"cases", Json::Array{}}});
  if (ceilings) {
    json["product_flops"] = ceilings->flops;
    json["copy_bytes_per_second"] = ceilings->bytes_per_second;
  }
  for (const Result& result : results)
    json["cases"].push_back(json_of(result, measured ? ceilings : std::nullopt));
  const std::string beside = path + ".partial";
  std::ofstream file(beside);
  file << to_text(json);
  file.close();
  if (!file || std::rename(beside.c_str(), path.c_str()) != 0) throw_input("{}: cannot be written", path);
}

int run_all(const Options& options) {
  if (options.list) {
    for (const Named& named : chosen(options, kFull)) fmt::print("{} {}\n", named.family, named.one.kernel);
    return 0;
  }
  if (const std::string reason = ops::cuda::unavailable_reason(); !reason.empty())
    throw_input("bench_cuda: {}", reason);
  const Platform where = platform();
  if (where.emulated && !options.smoke)
    throw_input("bench_cuda: this program runs on the emulator, which measures nothing; give --smoke");
  ops::cuda::use_device_memory();
  Context ctx(Device::cuda);
  const bool measured = !where.emulated && !options.smoke;
  const Sizes& sizes = options.smoke ? kSmoke : kFull;
  const Result product = run(product_ceiling(sizes), options.smoke, ctx);
  const Result copying = run(copy_ceiling(sizes), options.smoke, ctx);

  fmt::print("{}\ndriver {}, toolkit {}\n", where.device, where.driver, where.cuda);
  if (where.emulated) {
    fmt::print("EMULATED: the times below are of this machine's processor and no measurement\n");
  } else if (options.smoke) {
    fmt::print("SMOKE: tiny sizes, one call each; the times below are no measurement\n");
  }
  fmt::print(
      "median of the calls; share: of the product where a kernel has products, else of the copy; of bound: "
      "of the time that product and copy allow\n\n");
  print_head();
  std::vector<Result> results{product, copying};
  for (const Result& ceiling : results) print(ceiling, std::nullopt);
  std::optional<Ceilings> ceilings, shown;  // a share of what is no measurement would say nothing
  if (product.error.empty() && copying.error.empty())
    ceilings = Ceilings{product.work.flop / product.times.median, copying.work.bytes / copying.times.median};
  if (measured) shown = ceilings;
  write_json(options.json, where, measured, results, ceilings);

  bool answers = true;
  for (const Named& named : chosen(options, sizes)) {
    if (!results.back().error.empty() && !device_answers(ctx)) {
      answers = false;
      break;
    }
    results.push_back(run(named.one, options.smoke, ctx));
    print(results.back(), shown);
    std::fflush(stdout);
    write_json(options.json, where, measured, results, ceilings);
  }

  const auto failed = std::count_if(results.begin(), results.end(), [](auto& r) { return !r.error.empty(); });
  fmt::print("\n{} of {} cases ran", results.size() - static_cast<std::size_t>(failed), results.size());
  if (shown) {
    const auto barred = [](const Result& r) { return r.error.empty() && r.bar > 0; };
    const auto reached = [&](const Result& r) { return barred(r) && r.share(*shown) >= r.bar; };
    fmt::print("; {} of {} bars reached", std::count_if(results.begin(), results.end(), reached),
               std::count_if(results.begin(), results.end(), barred));
  }
  fmt::print("\n");
  if (!answers) {
    fmt::print(stderr,
               "error: bench_cuda: after the error of {} the device does nothing more for this process\n",
               results.back().kernel);
    return 9;
  }
  return failed > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Measures the CUDA kernels against a product and a copy of the same card.");
  app.add_option("--only", options.only, "Only the kernels whose name holds this text");
  app.add_option("--family", options.family, "Only the kernels of one family")
      ->check(CLI::IsMember({"rows", "model", "moe", "router", "lpr", "attention"}));
  app.add_option("--skip", options.skip, "Leave out so many of them, from the first on");
  app.add_option("--count", options.count, "Run so many of them at most");
  app.add_flag("--list", options.list,
               "Only print the family and the name of each case, in the order in which they run");
  app.add_option("--json", options.json, "Write the figures to a file as well");
  app.add_flag("--smoke", options.smoke, "Tiny sizes and one call each: to see that everything runs");
  CLI11_PARSE(app, argc, argv);
  try {
    return run_all(options);
  } catch (const InputError& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 2;
  }
}
