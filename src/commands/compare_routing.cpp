#include <fmt/core.h>

#include <algorithm>
#include <string>
#include <vector>

#include "commands/commands.h"
#include "commands/evaluation.h"
#include "commands/options.h"
#include "config/layouts.h"
#include "core/error.h"
#include "core/json.h"
#include "core/threads.h"
#include "model/cost.h"
#include "parallel/launch.h"
#include "router/balance_figures.h"

namespace switchyard::commands {

namespace {

struct Options {
  EvaluationOptions evaluation;
  std::vector<std::string> routers;
};

void describe(CLI::App& app, Options& options) {
  describe_evaluation(app, options.evaluation);
  app.add_option(
         "--routers", options.routers,
         "The routers to compare with the model's own, each TYPE or TYPE:KEY=VALUE:KEY=VALUE with options "
         "of the router, or num_experts_per_tok of the model")
      ->type_name("A,B,...")
      ->delimiter(',')
      ->required();
  app.footer(
      "Nothing is trained: each router stands on the model's weights. What it lacks begins anew, and is fitted "
      "to "
      "data only with --calibrate; the model's own router, the first row, is taken as it is. 'saved' is the "
      "share "
      "of FLOPs against that model with all slots of its router taken.\n"
      "Example:\n"
      "  switchyard compare-routing runs/quickstart --calibrate 50000 --routers "
      "top_p,dynamic_k:min_experts=1:max_experts=4,softmax_topk:num_experts_per_tok=1");
}

// "dynamic_k:min_experts=1" as overrides of --set.
std::vector<std::string> overrides_of(const std::string& spec) {
  std::vector<std::string> overrides;
  for (std::size_t begin = 0; begin <= spec.size();) {
    const std::size_t end = std::min(spec.find(':', begin), spec.size());
    const std::string part = spec.substr(begin, end - begin);
    const bool is_option = part.find('=') != std::string::npos;
    if (begin > 0 && part.starts_with("type="))
      throw_input("--routers {}: \"{}\" is given already, in front; remove it", spec, part);
    if (part.empty() || part.front() == '=' || is_option == (begin == 0))
      throw_input("--routers {}: \"{}\" is no {}; write TYPE:KEY=VALUE:KEY=VALUE", spec, part,
                  begin == 0 ? "type of a router" : "KEY=VALUE");
    overrides.push_back((!is_option                                 ? "router.type="
                         : part.starts_with("num_experts_per_tok=") ? "model."
                                                                    : "router.") +
                        part);
    begin = end + 1;
  }
  return overrides;
}

// One row of the table.
struct Row {
  std::string router;
  double loss = 0, experts = 0, flops = 0, saved = 0, tokens_per_second = 0;
  router::BalanceFigures figures;
};

// A token's FLOPs with all slots of the router taken.
double static_flops_of(const Evaluation::Evaluated& evaluated) {
  const model::TokenCounts& counts = evaluated.result.counts;
  return model::FlopCounter(*evaluated.model).count_static(counts).total() / static_cast<double>(counts.tokens);
}

// static_flops: of the model's own router.
Row row_of(const std::string& router, const Evaluation::Evaluated& evaluated, double static_flops) {
  const train::EvalResult& result = evaluated.result;
  const auto tokens = static_cast<double>(result.counts.tokens);
  const std::vector<double> slot_L = slots_by_layer(result);
  double slots = 0;
  for (const double each : slot_L) slots += each;
  const double flops = model::FlopCounter(*evaluated.model).count(result.counts, slot_L).total() / tokens;
  return {.router = router,
          .loss = result.loss,
          .experts = slots / tokens / static_cast<double>(slot_L.size()),
          .flops = flops,
          .saved = 1 - flops / static_flops,
          .tokens_per_second = static_cast<double>(result.tokens) / result.seconds,
          .figures = router::mean_of(result.load.figures())};
}

void print_table(const std::vector<Row>& rows, std::FILE* to) {
  std::size_t width = 6;
  for (const Row& row : rows) width = std::max(width, row.router.size());
  fmt::print(to, "{:<{}}  {:>8}  {:>13}  {:>12}  {:>7}  {:>8}  {:>7}  {:>8}\n", "router", width, "loss",
             "experts/token", "MFLOPs/token", "saved", "tokens/s", "Gini", "min/max");
  for (const Row& row : rows)
    fmt::print(to, "{:<{}}  {:8.4f}  {:13.3f}  {:12.4g}  {:6.1f}%  {:8.0f}  {:7.4f}  {:8.2e}\n", row.router,
               width, row.loss, row.experts, row.flops * 1e-6, 100 * row.saved, row.tokens_per_second,
               row.figures.gini, row.figures.min_max);
}

Json json_of(const Row& row, const Evaluation::Evaluated& evaluated) {
  Json json;
  json["router"] = row.router;
  json["loss"] = row.loss;
  json["tokens"] = evaluated.result.tokens;
  json["experts_per_token"] = row.experts;
  json["tokens_per_second"] = row.tokens_per_second;
  json["saved"] = row.saved;
  json["drop_rate"] = evaluated.result.load.drop_rate();
  add_figures(json["balance"], row.figures);
  json["flops"] = flops_json(evaluated.result, *evaluated.model);
  return json;
}

int run_rank(const Options& options, parallel::World& world) {
  const EvaluationOptions& evaluated = options.evaluation;
  set_threads(static_cast<int>(evaluated.threads > 0 ? evaluated.threads : world.threads()));
  check_writable({evaluated.json}, parallel::all_ranks(world));
  std::vector<std::vector<std::string>> overrides;  // refused before any data are read
  for (const std::string& spec : options.routers) overrides.push_back(overrides_of(spec));
  Evaluation evaluation(evaluated, world);
  const config::RoutedModel own = routed_model(evaluation.directory());
  if (!config::has_moe_layer(own.model))
    throw_input("{}: has no layer with experts, and hence no router to compare; give a mixture",
                evaluated.checkpoint);
  std::vector<config::RoutedModel> routed;
  for (std::size_t i = 0; i < overrides.size(); ++i) {
    try {
      routed.push_back(routed_model(evaluation.directory(), overrides[i]));
    } catch (const InputError& error) {
      throw_input("--routers {}: {}", options.routers[i], error.what());
    }
  }

  std::vector<Row> rows;
  Json report(Json::Array{});
  double static_flops = 0;
  const auto add = [&](const std::string& name, const config::RoutedModel& model, bool calibrates) {
    const Evaluation::Evaluated each = evaluation.evaluate(model, {.calibrates = calibrates, .warms_up = true});
    if (rows.empty()) static_flops = static_flops_of(each);
    rows.push_back(row_of(name, each, static_flops));
    report.push_back(json_of(rows.back(), each));
  };
  add(own.router.type + " (own)", own, false);
  for (std::size_t i = 0; i < routed.size(); ++i) add(options.routers[i], routed[i], true);
  if (world.rank() != 0) return 0;
  print_table(rows, text_output(evaluated.json));
  write_json(evaluated.json, Json::Object{{"routers", std::move(report)}});
  return 0;
}

int run(const Options& options) {
  return parallel::run_ranks(static_cast<int>(options.evaluation.nproc),
                             [&](parallel::World& world) { return run_rank(options, world); });
}

}  // namespace

const Command kCompareRouting = {
    "compare-routing", "Loss, experts, FLOPs, speed and balance of a model's weights under other routers",
    with_options<Options, describe, run>};

}  // namespace switchyard::commands
