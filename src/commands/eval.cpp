#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "commands/commands.h"
#include "commands/eval_tasks.h"
#include "commands/evaluation.h"
#include "commands/options.h"
#include "core/json.h"
#include "core/threads.h"
#include "model/transformer.h"
#include "parallel/launch.h"
#include "train/evaluator.h"

namespace switchyard::commands {

namespace {

struct Options {
  EvaluationOptions evaluation;
  std::vector<std::string> overrides;  // of the routing
  TaskOptions tasks;
};

void describe(CLI::App& app, Options& options) {
  describe_evaluation(app, options.evaluation);
  describe_routing(app, options.overrides);
  describe_tasks(app, options.tasks);
  app.footer(
      "Windows follow one another; every token but the first is predicted exactly once. The loss over all "
      "domains is the mean over their tokens.\n"
      "Examples:\n"
      "  switchyard eval runs/quickstart\n"
      "  switchyard eval runs/quickstart/checkpoints/best --data 'data/quickstart/legal/val_*.bin' --json -\n"
      "  switchyard eval runs/quickstart --task arc_easy.jsonl --shots 5\n"
      "  switchyard eval runs/quickstart --set router.type=dynamic_k --set router.max_experts=4 --calibrate "
      "50000");
}

// Of a domain or of all: `part` is a DomainLoss or the EvalResult.
template <typename Part>
void add_losses(Json& json, const Part& part) {
  json["loss"] = part.loss;
  json["perplexity"] = std::exp(part.loss);
  json["tokens"] = part.tokens;
  if (const auto bits = train::bits_per_byte(part.loss, part.tokens, part.text)) {
    json["bits_per_byte"] = *bits;
    json["bits_per_byte_is_estimated"] = part.text->is_estimate;
  }
}

Json whole_numbers(const std::vector<double>& counts) {
  return Json::list(std::vector<std::int64_t>(counts.begin(), counts.end()));
}

Json to_json(const train::EvalResult& result, const model::Transformer& model) {
  const auto figures = result.load.figures();
  Json layers(Json::Array{});
  for (std::int64_t l = 0; l < model.routing().n_main_layers(); ++l) {
    Json layer;
    layer["layer"] = model.routing().layer(l).layer();
    add_figures(layer, figures[static_cast<std::size_t>(l)]);
    layer["counts"] = whole_numbers(result.load.layer(l));
    layer["specialisation"] = result.load.specialisation(l);
    const auto count_DE = result.load.by_domain(l);
    for (std::size_t d = 0; d < count_DE.size(); ++d)
      layer["counts_by_domain"][result.domains[d].name] = whole_numbers(count_DE[d]);
    layers.push_back(std::move(layer));
  }
  Json balance;
  add_figures(balance, router::mean_of(figures));
  balance["layers"] = std::move(layers);
  Json domains(Json::Array{});
  for (const train::DomainLoss& domain : result.domains) {
    Json entry;
    entry["name"] = domain.name;
    add_losses(entry, domain);
    domains.push_back(std::move(entry));
  }
  Json report;
  add_losses(report, result);
  report["tokens_per_second"] = static_cast<double>(result.tokens) / result.seconds;
  report["domains"] = std::move(domains);
  report["balance"] = std::move(balance);
  report["drop_rate"] = result.load.drop_rate();
  report["flops"] = flops_json(result, model);
  return report;
}

// One line a domain, then one of all.
void print_losses(const train::EvalResult& result, std::FILE* to) {
  const std::string total = "all domains";
  std::size_t width = total.size();
  for (const train::DomainLoss& domain : result.domains) width = std::max(width, domain.name.size());
  fmt::print(to, "{:<{}}  {:>8}  {:>10}  {:>9}  {:>12}\n", "domain", width, "loss", "perplexity", "bits/byte",
             "tokens");
  const auto line = [&](const std::string& name, const auto& part) {
    const auto bits = train::bits_per_byte(part.loss, part.tokens, part.text);
    const std::string bits_text =
        bits ? fmt::format("{}{:.4f}", part.text->is_estimate ? "~" : "", *bits) : "unknown";
    fmt::print(to, "{:<{}}  {:8.4f}  {:10.3f}  {:>9}  {:>12}\n", name, width, part.loss, std::exp(part.loss),
               bits_text, part.tokens);
  };
  for (const train::DomainLoss& domain : result.domains) line(domain.name, domain);
  line(total, result);
  const auto estimated = [](const train::DomainLoss& domain) {
    return domain.text && domain.text->is_estimate;
  };
  if (std::any_of(result.domains.begin(), result.domains.end(), estimated))
    fmt::print(to, "~: estimated, by the bytes per token that meta.json states of the whole split\n");
  fmt::print(to, "{:.0f} tokens/s\n", static_cast<double>(result.tokens) / result.seconds);
}

void print_table(const train::EvalResult& result, const model::Transformer& model, std::FILE* to) {
  print_losses(result, to);
  if (model.routing().n_main_layers() == 0) return;
  const auto row = [&](const std::string& name, const router::BalanceFigures& f) {
    fmt::print(to, "{:>6}  {:7.4f}  {:8.2e}  {:7.4f}  {:8.4f}  {:11.3f}  {:8.4f}\n", name, f.gini, f.min_max,
               f.cv, f.max_vio, f.utilisation, f.entropy);
  };
  fmt::print(to, "{:>6}  {:>7}  {:>8}  {:>7}  {:>8}  {:>11}  {:>8}\n", "layer", "Gini", "min/max", "CV",
             "MaxVio", "utilisation", "entropy");
  const auto figures = result.load.figures();
  for (std::int64_t l = 0; l < model.routing().n_main_layers(); ++l)
    row(std::to_string(model.routing().layer(l).layer()), figures[static_cast<std::size_t>(l)]);
  row("mean", router::mean_of(figures));
}

int run_rank(const Options& options, parallel::World& world) {
  const EvaluationOptions& evaluated = options.evaluation;
  set_threads(static_cast<int>(evaluated.threads > 0 ? evaluated.threads : world.threads()));
  check_writable({evaluated.json, options.tasks.samples}, parallel::all_ranks(world));
  if (!options.tasks.files.empty()) {
    const checkpoint::ModelDirectory directory(evaluated.checkpoint);
    const Calibration calibration(directory, evaluated.calibration, evaluated.seq_len, evaluated.batch,
                                  parallel::all_ranks(world));
    const config::RoutedModel routed = routed_model(directory, options.overrides);
    return evaluate_tasks(
        options.tasks,
        {.seq_len = evaluated.seq_len,
         .batch = evaluated.batch,
         .json = evaluated.json,
         .device = evaluated.device},
        directory, [&](Context& ctx) { return calibration.open(routed, evaluated.dtype, ctx); }, world);
  }
  Evaluation evaluation(evaluated, world);
  const auto [model, result] = evaluation.evaluate(routed_model(evaluation.directory(), options.overrides), {});
  if (world.rank() != 0) return 0;
  print_table(result, *model, text_output(evaluated.json));
  Json report = to_json(result, *model);
  if (const auto& checkpoint = evaluation.directory().checkpoint()) report["step"] = checkpoint->state().step;
  write_json(evaluated.json, report);
  return 0;
}

int run(const Options& options) {
  return parallel::run_ranks(static_cast<int>(options.evaluation.nproc),
                             [&](parallel::World& world) { return run_rank(options, world); });
}

}  // namespace

const Command kEval = {
    "eval",
    "Loss, perplexity, bits per byte and expert balance of a checkpoint on token shards; or its "
    "score in tasks",
    with_options<Options, describe, run>};

}  // namespace switchyard::commands
