#include "bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "config/layouts.h"
#include "config/names.h"
#include "core/log.h"
#include "core/statistics.h"
#include "core/threads.h"
#include "model/cost.h"

namespace switchyard::bench {

namespace {

constexpr std::array<const char*, ops::kMatmulTypes> kTypeNames = {"float32", "bfloat16", "fp8"};

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }
double ratio(double a, double b) { return b > 0 ? a / b : 0; }

// Tokens a second of each round.
std::vector<double> rates_of(const Part& part) {
  std::vector<double> rates;
  for (const double seconds : part.seconds_R) rates.push_back(static_cast<double>(part.tokens) / seconds);
  return rates;
}

// Of a pass's least times, the shares of the median pass.
struct Shares {
  double products, copies, roofline;
};
Shares shares_of(const Part& part, const train::MachineRates& rates) {
  const train::ProfileWork work = train::work_of(part.work, rates);
  const double seconds = spread_of(part.seconds_R).median;
  return {ratio(work.product_seconds, seconds), ratio(work.copy_seconds, seconds),
          ratio(work.bound_seconds, seconds)};
}

// Of the model as configured; null: it was not trained.
const Part* training_of(const Report& report) {
  for (const Part& part : report.parts)
    if (part.kind == Kind::training && !part.is_static) return &part;
  return nullptr;
}

void add_prediction(std::vector<std::string>& lines, const Report& report) {
  const Part* const training = training_of(report);
  if (!report.predicted || training == nullptr) return;
  const double seconds = spread_of(training->seconds_R).median, predicted = report.predicted->total();
  lines.push_back("");
  lines.push_back(
      fmt::format("training step     predicted {:.3f} s, measured {:.3f} s, predicted / measured {:.3f}",
                  predicted, seconds, ratio(predicted, seconds)));
  std::string parts;
  for (const auto& [name, part] : report.predicted->parts())
    if (part > 0) parts += fmt::format("{}{} {:.3f}", parts.empty() ? "" : ", ", name, part);
  lines.push_back("of it             " + parts);
}

std::string shape_of(const Part& part, const Subject& subject, const Settings& settings) {
  switch (part.kind) {
    case Kind::training:
      return fmt::format("{} x {}", part.sequences, subject.run.train.seq_len);
    case Kind::prefill:
      return fmt::format("{} x {}", part.sequences, settings.prompt);
    case Kind::decode:
      return fmt::format("{} x 1", part.sequences);
  }
  return "";
}

// What is written behind a part's name where two models are compared.
std::string model_of(const Part& part, const Settings& settings) {
  if (settings.static_k == 0) return "";
  return part.is_static ? " static" : " dynamic";
}

std::string number(double value) { return value >= 100 ? format_count(value) : fmt::format("{:.1f}", value); }

void add_rates(std::vector<std::string>& lines, const Report& report, const Subject& subject,
               const Settings& settings) {
  lines.push_back(fmt::format("{:<18}{:>12}{:>10}{:>12}  {:<20}{:>9}{:>9}{:>9}", "", "batch", "dtype",
                              "tokens/s", "lowest to highest", "products", "copies", "roofline"));
  for (const Part& part : report.parts) {
    const auto [median, low, high] = spread_of(rates_of(part));
    const Shares shares = shares_of(part, report.rates);
    lines.push_back(fmt::format("{:<18}{:>12}{:>10}{:>12}  {:<20}{:>8.0f}%{:>8.0f}%{:>8.0f}%",
                                name_of(part.kind) + model_of(part, settings),
                                shape_of(part, subject, settings), config::name_of(part.type), number(median),
                                number(low) + " to " + number(high), 100 * shares.products, 100 * shares.copies,
                                100 * shares.roofline));
  }
  for (const auto& [part, why] : report.not_measured)
    lines.push_back(fmt::format("{:<18}not measured: {}", part, why));
}

void add_latencies(std::vector<std::string>& lines, const Report& report, const Settings& settings) {
  lines.push_back(
      fmt::format("{:<18}{:>12}{:>10}{:>12}{:>16}", "milliseconds", "sequences", "p50", "p99", "tokens timed"));
  for (const Part& part : report.parts)
    if (part.kind == Kind::decode)
      lines.push_back(fmt::format("{:<18}{:>12}{:>10.3f}{:>12.3f}{:>16}", "a token" + model_of(part, settings),
                                  part.sequences, 1e3 * quantile_of(part.seconds_N, 0.5),
                                  1e3 * quantile_of(part.seconds_N, 0.99), part.seconds_N.size()));
}

void add_memory(std::vector<std::string>& lines, const Report& report, const Settings& settings) {
  lines.push_back(fmt::format("{:<18}{:>12}{:>10}{:>12}{:>10}{:>10}{:>13}{:>11}", "MiB", "sequences", "weights",
                              "gradients", "moments", "cache", "activations", "workspace"));
  const auto cell = [](std::int64_t bytes) { return bytes > 0 ? fmt::format("{:.1f}", mib(bytes)) : ""; };
  for (const Memory& memory : report.memory)
    lines.push_back(fmt::format("{:<18}{:>12}{:>10}{:>12}{:>10}{:>10}{:>13}{:>11}",
                                std::string(memory.kind == Kind::training ? "training" : "inference") +
                                    (settings.static_k == 0 ? ""
                                     : memory.is_static     ? " static"
                                                            : " dynamic"),
                                memory.sequences, cell(memory.weights), cell(memory.gradients),
                                cell(memory.moments), cell(memory.cache), cell(memory.activations),
                                cell(memory.workspace)));
  std::string peaks;
  if (report.training_peak > 0)
    peaks = fmt::format("training {:.1f}, {} ", mib(report.training_peak),
                        report.peaks_are_apart ? "inference" : "training and inference");
  lines.push_back(fmt::format("peak resident in MiB: {}{:.1f}{}", peaks, mib(report.inference_peak),
                              settings.static_k > 0 ? " (both models together)" : ""));
}

void add_comparison(std::vector<std::string>& lines, const Report& report, const Settings& settings) {
  const std::vector<Comparison> comparisons = compare(report);
  if (comparisons.empty()) return;
  lines.push_back("");
  lines.push_back(fmt::format("{:<12}{:>12}{:>18}{:>18}{:>8}{:>16}{:>8}",
                              "against k = " + std::to_string(settings.static_k), "sequences",
                              "experts a token", "FLOPs, saved", "", "time, saved", ""));
  for (const Comparison& c : comparisons)
    lines.push_back(
        fmt::format("{:<14}{:>10}{:>18.2f}{:>14.3f}{:>11.1f}%{:>13.3f}{:>10.1f}%  ({:.3f} to {:.3f})",
                    name_of(c.dynamic->kind), c.dynamic->sequences, c.dynamic->experts_per_token, c.flops_ratio,
                    100 * (1 - c.flops_ratio), c.time_ratio, 100 * (1 - c.time_ratio), c.time_ratio_low,
                    c.time_ratio_high));
}

Json spread_json(const std::vector<double>& values) {
  const auto [median, low, high] = spread_of(values);
  return Json::Object{{"median", median}, {"low", low}, {"high", high}, {"rounds", Json::list(values)}};
}

Json part_json(const Part& part, const train::MachineRates& rates) {
  const train::ProfileWork work = train::work_of(part.work, rates);
  const Shares shares = shares_of(part, rates);
  Json json(Json::Object{{"part", name_of(part.kind)},
                         {"static", part.is_static},
                         {"dtype", config::name_of(part.type)},
                         {"sequences", part.sequences},
                         {"tokens", part.tokens},
                         {"tokens_per_second", spread_json(rates_of(part))},
                         {"seconds", spread_json(part.seconds_R)},
                         {"flops", work.flops},
                         {"bytes", work.bytes},
                         {"share_of_product_rate", shares.products},
                         {"share_of_copy_rate", shares.copies},
                         {"share_of_roofline", shares.roofline},
                         {"experts_per_token", part.experts_per_token}});
  if (part.kind == Kind::training) {
    json["micro_batches"] = part.micro_batches;
    json["micro_batches_measured"] = part.micro_batches_measured;
  }
  if (part.kind == Kind::decode)
    json["milliseconds_per_token"] = Json::Object{{"p50", 1e3 * quantile_of(part.seconds_N, 0.5)},
                                                  {"p99", 1e3 * quantile_of(part.seconds_N, 0.99)},
                                                  {"timed", part.seconds_N.size()}};
  return json;
}

Json memory_json(const Memory& memory) {
  return Json::Object{{"part", memory.kind == Kind::training ? "training" : "inference"},
                      {"static", memory.is_static},
                      {"sequences", memory.sequences},
                      {"weights", memory.weights},
                      {"gradients", memory.gradients},
                      {"moments", memory.moments},
                      {"cache", memory.cache},
                      {"activations", memory.activations},
                      {"workspace", memory.workspace}};
}

}  // namespace

std::vector<std::string> lines_of(const Report& report, const Subject& subject, const Settings& settings,
                                  Device device) {
  const config::Run& run = subject.run;
  const model::ParameterCount count = model::count_parameters(run.model, run.router);
  std::string products;
  for (std::size_t type = 0; type < ops::kMatmulTypes; ++type)
    if (report.rates.product[type] > 0)
      products += fmt::format("{} {:.0f} GFLOP/s, ", kTypeNames[type], report.rates.product[type] * 1e-9);
  std::vector<std::string> lines = {
      fmt::format("{}: {:.1f} M parameters, {:.1f} M active per token; {}, router {}; {} weights", subject.name,
                  static_cast<double>(count.total) * 1e-6, static_cast<double>(count.active) * 1e-6,
                  run.model.layout->name, run.router.type, subject.directory ? "its" : "random"),
      fmt::format("{}, {} thread{}; this machine: products in {}copies {:.1f} GB/s", name_of(device),
                  thread_count(), thread_count() == 1 ? "" : "s", products, report.rates.copy * 1e-9),
      fmt::format("random tokens, {} round{} after a warm-up{}", settings.rounds,
                  settings.rounds == 1 ? "" : "s", settings.static_k > 0 ? ", both models in turns" : ""),
      ""};
  add_rates(lines, report, subject, settings);
  for (const Part& part : report.parts)
    if (part.micro_batches_measured < part.micro_batches)
      lines.push_back(
          fmt::format("training{}: {} of a step's {} micro-batches were measured, the others are "
                      "counted as long",
                      model_of(part, settings), part.micro_batches_measured, part.micro_batches));
  add_prediction(lines, report);
  lines.push_back("");
  add_latencies(lines, report, settings);
  lines.push_back("");
  add_memory(lines, report, settings);
  add_comparison(lines, report, settings);
  return lines;
}

Json json_of(const Report& report, const Subject& subject, const Settings& settings, Device device) {
  const config::Run& run = subject.run;
  const model::ParameterCount count = model::count_parameters(run.model, run.router);
  Json product(Json::Object{}), parts(Json::Array{}), memory(Json::Array{}), missing(Json::Array{});
  for (std::size_t type = 0; type < ops::kMatmulTypes; ++type)
    if (report.rates.product[type] > 0) product[kTypeNames[type]] = report.rates.product[type];
  for (const Part& part : report.parts) parts.push_back(part_json(part, report.rates));
  for (const Memory& each : report.memory) memory.push_back(memory_json(each));
  for (const auto& [part, why] : report.not_measured)
    missing.push_back(Json::Object{{"part", part}, {"why", why}});
  Json json(Json::Object{{"subject", subject.name},
                         {"layout", run.model.layout->name},
                         {"router", run.router.type},
                         {"parameters", count.total},
                         {"active_parameters", count.active},
                         {"weights", subject.directory ? "its" : "random"},
                         {"device", name_of(device)},
                         {"threads", thread_count()},
                         {"rounds", settings.rounds},
                         {"steps", settings.steps},
                         {"batch", settings.batch},
                         {"prompt", settings.prompt},
                         {"new_tokens", settings.new_tokens},
                         {"product_flops_per_second", product},
                         {"copy_bytes_per_second", report.rates.copy},
                         {"parts", parts},
                         {"memory", memory},
                         {"peak_resident_bytes", Json::Object{{"training", report.training_peak},
                                                              {"inference", report.inference_peak},
                                                              {"apart", report.peaks_are_apart}}},
                         {"not_measured", missing}});
  if (report.predicted) {
    Json seconds(Json::Object{});
    for (const auto& [name, part] : report.predicted->parts()) seconds[name] = part;
    json["predicted_training_step"] = Json::Object{{"seconds", report.predicted->total()}, {"parts", seconds}};
  }
  if (settings.static_k == 0) return json;
  json["static_k"] = settings.static_k;
  Json comparisons(Json::Array{});
  for (const Comparison& c : compare(report))
    comparisons.push_back(Json::Object{{"part", name_of(c.dynamic->kind)},
                                       {"sequences", c.dynamic->sequences},
                                       {"experts_per_token", c.dynamic->experts_per_token},
                                       {"flops_ratio", c.flops_ratio},
                                       {"time_ratio", c.time_ratio},
                                       {"time_ratio_low", c.time_ratio_low},
                                       {"time_ratio_high", c.time_ratio_high}});
  json["comparison"] = comparisons;
  return json;
}

}  // namespace switchyard::bench
