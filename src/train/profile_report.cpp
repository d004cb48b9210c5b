#include "train/profile_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/device_memory.h"
#include "core/threads.h"
#include "ops/device.h"
#include "ops/elementwise.h"
#include "ops/linear.h"

namespace switchyard::train {

namespace {

constexpr std::array<const char*, ops::kMatmulTypes> kTypeNames = {"float32", "bfloat16", "fp8"};

// Seconds of a product of two square matrices of `size`.
double seconds_of_product(std::int64_t size, Context& ctx, int tries) {
  const bool rounded = ctx.device != Device::cpu && ctx.matmul != MatmulType::f32;
  const DType operand = rounded ? DType::bf16 : DType::f32;
  const std::int64_t bytes = size * size * size_of(DType::f32);
  const AlignedBuffer memory = allocate_aligned(3 * bytes, "a product to measure", ctx.device);
  const auto square = [&](int index, DType dtype) {
    return Tensor(memory.get() + index * bytes, Shape{size, size}, dtype, ctx.device);
  };
  fill_bytes(memory.get(), 0x3f, 3 * bytes, ctx.device);  // 0.75 in either type
  double best = 1e30;
  for (int i = 0; i < tries; ++i) {
    ops::synchronise(ctx);
    const double start = ops::steady_seconds();
    ops::linear_forward(square(2, operand), square(0, operand), square(1, operand), ops::Write::set, ctx);
    ops::synchronise(ctx);
    best = std::min(best, std::max(ops::steady_seconds() - start, 1e-9));
  }
  return best;
}

double rate_of_square(std::int64_t size, double seconds) {
  const auto n = static_cast<double>(size);
  return 2 * n * n * n / seconds;
}

// On a device as large as takes so long that starting it does not show.
double measure_product_rate_on_device(Context& ctx) {
  constexpr std::int64_t kLeast = 128, kMost = 4096;
  constexpr double kEnough = 2e-3;
  double best = 0;
  for (std::int64_t size = kLeast; size <= kMost; size *= 2) {
    const double seconds = seconds_of_product(size, ctx, 3);
    best = std::max(best, rate_of_square(size, seconds));
    if (seconds > kEnough) break;
  }
  return best;
}

// Bytes a second, read and written. By all threads, each its own part.
double measure_copy_rate_on_cpu() {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20;  // each of two
  constexpr int kTries = 5;
  const AlignedBuffer from = allocate_aligned(kBytes, "a copy to measure"),
                      to = allocate_aligned(kBytes, "a copy to measure");
  const std::int64_t parts = thread_count(), part = kBytes / parts;
  std::vector<double> seconds;
  for (int i = 0; i <= kTries; ++i) {
    const double start = ops::steady_seconds();
#pragma omp parallel for schedule(static)
    for (std::int64_t p = 0; p < parts; ++p) {
      if (i == 0) std::memset(from.get() + p * part, 1, static_cast<std::size_t>(part));
      std::memcpy(to.get() + p * part, from.get() + p * part, static_cast<std::size_t>(part));
    }
    if (i > 0) seconds.push_back(ops::steady_seconds() - start);  // pages are touched first
  }
  std::nth_element(seconds.begin(), seconds.begin() + kTries / 2, seconds.end());
  return 2.0 * static_cast<double>(parts * part) / seconds[kTries / 2];
}

double measure_copy_rate_on_device(Context& ctx) {
  constexpr std::int64_t kLeast = std::int64_t{1} << 20, kMost = std::int64_t{256} << 20;
  constexpr double kEnough = 1e-3;
  double best = 0;
  for (std::int64_t bytes = kLeast; bytes <= kMost; bytes *= 2) {
    const AlignedBuffer memory = allocate_aligned(2 * bytes, "a copy to measure", ctx.device);
    fill_bytes(memory.get(), 0, 2 * bytes, ctx.device);
    const auto half = [&](std::int64_t at) {
      return Tensor(memory.get() + at * bytes, Shape{bytes / 4}, DType::f32, ctx.device);
    };
    double seconds = 1e30;
    for (int i = 0; i < 3; ++i) {
      ops::synchronise(ctx);
      const double start = ops::steady_seconds();
      ops::copy(half(1), half(0), ctx);
      ops::synchronise(ctx);
      seconds = std::min(seconds, std::max(ops::steady_seconds() - start, 1e-9));
    }
    best = std::max(best, 2.0 * static_cast<double>(bytes) / seconds);
    if (seconds > kEnough) break;
  }
  return best;
}

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

double product_seconds(const ops::Profile::Row& row, const MachineRates& rates) {
  double seconds = 0;
  for (std::size_t type = 0; type < ops::kMatmulTypes; ++type)
    seconds += ratio(row.flops[type], rates.product[type]);
  return seconds;
}

// In its column; nothing where there is nothing to tell.
std::string cell(double value, int digits, int width) {
  return value > 0 ? fmt::format("{:>{}.{}f}", value, width, digits)
                   : std::string(static_cast<std::size_t>(width), ' ');
}

}  // namespace

double measure_product_rate(Context& ctx) {
  if (ctx.device != Device::cpu) return measure_product_rate_on_device(ctx);
  constexpr std::int64_t kSize = 512;
  constexpr int kTries = 6;  // the first of them makes oneDNN's kernel
  return rate_of_square(kSize, seconds_of_product(kSize, ctx, kTries));
}

MachineRates measure_rates(Context& ctx) {
  const MatmulType before = ctx.matmul;
  ops::Profile* const profile = std::exchange(ctx.profile, nullptr);
  MachineRates rates;
  const auto measure = [&](MatmulType type) {
    ctx.matmul = type;
    rates.product[static_cast<std::size_t>(type)] = measure_product_rate(ctx);
  };
  measure(MatmulType::f32);
  if (before == MatmulType::bf16) measure(MatmulType::bf16);
  // A CPU rounds to FP8 and multiplies in float32.
  if (ctx.e4m3_layers && ctx.device == Device::cpu)
    rates.product[static_cast<std::size_t>(MatmulType::e4m3)] = rates.product[0];
  else if (ctx.e4m3_layers)
    measure(MatmulType::e4m3);
  ctx.matmul = before;
  rates.copy = ctx.device == Device::cpu ? measure_copy_rate_on_cpu() : measure_copy_rate_on_device(ctx);
  ctx.profile = profile;
  return rates;
}

double bound_seconds(const ops::Profile::Row& row, const MachineRates& rates) {
  return std::max(product_seconds(row, rates), ratio(row.bytes, rates.copy));
}

ProfileWork work_of(const std::vector<ops::Profile::Row>& rows, const MachineRates& rates) {
  ProfileWork work;
  for (const ops::Profile::Row& row : rows) {
    work.flops += row.all_flops();
    work.bytes += row.bytes;
    work.product_seconds += product_seconds(row, rates);
    work.copy_seconds += ratio(row.bytes, rates.copy);
    work.bound_seconds += bound_seconds(row, rates);
  }
  return work;
}

std::vector<std::string> table_of(const ops::Profile& profile, const MachineRates& rates, Device device,
                                  int ranks) {
  const std::int64_t steps = profile.steps();
  if (steps == 0)
    return {fmt::format("profile: nothing to show: the first {} steps are not counted, and there was no other",
                        ops::Profile::kWarmUp)};
  std::string products;
  for (std::size_t type = 0; type < ops::kMatmulTypes; ++type)
    if (rates.product[type] > 0)
      products += fmt::format("{} {:.0f} GFLOP/s, ", kTypeNames[type], rates.product[type] * 1e-9);
  std::vector<std::string> lines = {
      fmt::format("profile of {} steps, the first {} not counted{}; this machine: {}copies {:.1f} GB/s", steps,
                  ops::Profile::kWarmUp, ranks > 1 ? fmt::format(", of rank 0 of {}", ranks) : "", products,
                  rates.copy * 1e-9)};
  if (device != Device::cpu)
    lines.push_back(
        "the device is waited for at each operator's beginning and end, and nothing is recorded: a run without "
        "a "
        "profile is faster");
  lines.push_back(fmt::format("{:<34}{:>8}{:>10}{:>8}{:>10}{:>9}{:>10}", "operator", "calls", "ms", "share",
                              "GFLOP/s", "GB/s", "of bound"));
  const auto line = [&](const std::string& name, double calls, double seconds, double flops, double bytes,
                        double bound) {
    lines.push_back(
        fmt::format("{:<34}{:>8.0f}{:>10.2f}{:>7.1f}%{}{}{}", name, calls,
                    1e3 * seconds / static_cast<double>(steps), 100 * ratio(seconds, profile.seconds()),
                    cell(ratio(flops, seconds) * 1e-9, 1, 10), cell(ratio(bytes, seconds) * 1e-9, 1, 9),
                    bound > 0 ? fmt::format("{:>9.0f}%", 100 * ratio(bound, seconds)) : ""));
  };
  const auto rows = profile.rows();
  for (const ops::Profile::Row& row : rows)
    line(row.name, static_cast<double>(row.calls) / static_cast<double>(steps), row.seconds, row.all_flops(),
         row.bytes, bound_seconds(row, rates));
  const ProfileWork total = work_of(rows, rates);
  line("whole step", 1, profile.seconds(), total.flops, total.bytes, total.bound_seconds);
  lines.push_back(fmt::format("roofline: {:.2f} of {:.2f} ms a step; share of the roofline {:.1f} %",
                              1e3 * total.bound_seconds / static_cast<double>(steps),
                              1e3 * profile.seconds() / static_cast<double>(steps),
                              100 * ratio(total.bound_seconds, profile.seconds())));
  return lines;
}

Json json_of(const ops::Profile& profile, const MachineRates& rates, Device device, int ranks) {
  const auto rows = profile.rows();
  const ProfileWork total = work_of(rows, rates);
  Json json, product, operators{Json::Array{}};
  for (std::size_t type = 0; type < ops::kMatmulTypes; ++type)
    if (rates.product[type] > 0) product[kTypeNames[type]] = rates.product[type];
  for (const ops::Profile::Row& row : rows) {
    const double bound = bound_seconds(row, rates);
    Json each;
    each["name"] = row.name;
    each["calls"] = row.calls;
    each["seconds"] = row.seconds;
    each["share"] = ratio(row.seconds, profile.seconds());
    each["flops"] = row.all_flops();
    each["bytes"] = row.bytes;
    each["bound_seconds"] = bound;
    each["share_of_bound"] = ratio(bound, row.seconds);
    operators.push_back(each);
  }
  json["device"] = name_of(device);
  json["ranks"] = ranks;
  json["threads"] = thread_count();
  json["steps"] = profile.steps();
  json["steps_not_counted"] = ops::Profile::kWarmUp;
  json["product_flops_per_second"] = product;
  json["copy_bytes_per_second"] = rates.copy;
  json["seconds"] = profile.seconds();
  json["flops"] = total.flops;
  json["bytes"] = total.bytes;
  json["bound_seconds"] = total.bound_seconds;
  json["share_of_roofline"] = ratio(total.bound_seconds, profile.seconds());
  json["operators"] = operators;
  return json;
}

}  // namespace switchyard::train
