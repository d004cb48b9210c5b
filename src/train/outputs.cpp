#include "train/outputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <span>
#include <vector>

#include "core/process_memory.h"

namespace switchyard::train {

namespace {

void add_figures(MetricsRecord& record, const router::BalanceFigures& figures) {
  for (const auto& [name, value] : router::named(figures)) record.add(name, value);
}

router::BalanceFigures headline_figures(const LoadAverage& load, const router::RoutingStep& routing) {
  const auto layers = load.figures();
  return router::mean_of(std::span(layers).first(static_cast<std::size_t>(routing.n_main_layers())));
}

// Slots that experts took in the step, of each main layer with experts.
std::vector<double> slots_of(const LoadCounts& load, const router::RoutingStep& routing) {
  std::vector<double> slot_L;
  for (std::int64_t l = 0; l < routing.n_main_layers(); ++l) slot_L.push_back(load.slots(l));
  return slot_L;
}

// When, how long, with how much memory, and at which share of the machine's rate of products the step ran. A
// training step is three times its forward pass: the gradients of inputs and of weights are a product each.
void add_machine(MetricsRecord& record, const StepOutcome& outcome, double flops_per_token) {
  record
      .add("wall_time",
           std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count())
      .add("train_seconds", outcome.state.train_seconds)
      .add("memory_bytes", peak_resident());
  if (outcome.product_rate > 0)
    record.add("product_rate_share", 3 * flops_per_token * outcome.tokens_per_second / outcome.product_rate);
}

// What the ranks sent each other in the step, by kind, beside what the formulas say; how long each waited, and
// its memory. Nothing with one rank.
void add_ranks(MetricsRecord& record, const StepOutcome& outcome) {
  const RankFigures& ranks = outcome.ranks;
  if (ranks.wait_seconds_N.size() < 2) return;
  MetricsRecord sent, ideal;
  for (std::size_t kind = 0; kind < parallel::kTrafficKinds; ++kind)
    sent.add(parallel::name_of(static_cast<parallel::Traffic>(kind)), ranks.sent_bytes[kind]);
  ideal.add("gradients", outcome.ideal_bytes.gradients).add("weights", outcome.ideal_bytes.weights);
  record.add("sent_bytes", sent).add("ideal_bytes", ideal);
  if (const std::vector<double>& seconds = ranks.exchange_seconds_N; !seconds.empty()) {
    const auto [least, largest] = std::minmax_element(seconds.begin(), seconds.end());
    const double sum = std::accumulate(seconds.begin(), seconds.end(), 0.0);
    MetricsRecord exchanges;
    exchanges.add("least", *least)
        .add("mean", sum / static_cast<double>(seconds.size()))
        .add("largest", *largest);
    record.add("exchange_seconds", exchanges);
  }
  record.add("wait_seconds", ranks.wait_seconds_N).add("memory_bytes_by_rank", ranks.memory_bytes_N);
  if (outcome.expert_ranks == 1) return;
  record.add("rank_load", rank_load(outcome.result.load, outcome.expert_ranks))
      .add("room_needed", static_cast<double>(outcome.result.experts.rows) / outcome.even_rows)
      .add("rounds", outcome.result.experts.rounds)
      .add("steps_redone", outcome.steps_redone);
}

// The moving average's figures and the step's counts, of each layer with a router.
std::vector<MetricsRecord> trained_layers(const StepOutcome& outcome, const router::RoutingStep& routing) {
  const auto figures = outcome.load.figures();
  std::vector<MetricsRecord> records;
  for (std::int64_t l = 0; l < routing.n_layers(); ++l) {
    MetricsRecord layer;
    layer.add("layer", routing.layer(l).layer());
    add_figures(layer, figures[static_cast<std::size_t>(l)]);
    const auto load_E = outcome.result.load.layer(l);
    layer.add("counts", std::vector<std::int64_t>(load_E.begin(), load_E.end()));
    records.push_back(std::move(layer));
  }
  return records;
}

// What an evaluation counted in each layer: exact figures, and the counts of each domain.
std::vector<MetricsRecord> evaluated_layers(const EvalResult& result, const router::RoutingStep& routing) {
  std::vector<MetricsRecord> records;
  const auto figures = result.load.figures();
  for (std::int64_t l = 0; l < routing.n_main_layers(); ++l) {
    MetricsRecord layer, counts;
    layer.add("layer", routing.layer(l).layer());
    add_figures(layer, figures[static_cast<std::size_t>(l)]);
    const auto count_DE = result.load.by_domain(l);
    for (std::size_t d = 0; d < count_DE.size(); ++d)
      counts.add(result.domains[d].name, std::vector<std::int64_t>(count_DE[d].begin(), count_DE[d].end()));
    layer.add("specialisation", result.load.specialisation(l)).add("counts_by_domain", counts);
    records.push_back(std::move(layer));
  }
  return records;
}

void add_validation(MetricsRecord& record, const EvalResult& validation, const router::RoutingStep& routing) {
  record.add("val_loss", validation.loss).add("val_tokens", validation.tokens);
  if (const auto bits = bits_per_byte(validation.loss, validation.tokens, validation.text))
    record.add("val_bits_per_byte", *bits);
  MetricsRecord balance, domain_losses;
  add_figures(balance, router::mean_of(validation.load.figures()));
  for (const DomainLoss& domain : validation.domains) domain_losses.add(domain.name, domain.loss);
  record.add("val_balance", balance)
      .add("val_loss_by_domain", domain_losses)
      .add("val_layers", evaluated_layers(validation, routing));
}

void add_tasks(MetricsRecord& record, std::span<const TaskScore> tasks) {
  if (tasks.empty()) return;
  MetricsRecord by_name;
  for (const TaskScore& task : tasks) {
    MetricsRecord figures;
    for (const auto& [name, value] : task.figures) figures.add(name, value);
    by_name.add(task.name, figures);
  }
  record.add("tasks", by_name);
}

}  // namespace

std::string format_task(std::int64_t step, const TaskScore& task) {
  std::string figures;
  for (const auto& [name, value] : task.figures)
    if (!name.ends_with("_stderr"))
      figures += fmt::format("{} {} {:.4f}", figures.empty() ? "" : ",", name, value);
  return fmt::format("step {}  {}:{}", step, task.name, figures);
}

MetricsRecord step_record(const StepOutcome& outcome, const model::Transformer& model,
                          const model::FlopCounter& flops) {
  const StepResult& result = outcome.result;
  const router::RoutingStep& routing = model.routing();
  // Of the forward pass, a token: what was computed, what it would be with every slot taken, the share saved.
  const auto tokens = static_cast<double>(result.tokens.tokens);
  const double real = flops.count(result.tokens, slots_of(result.load, routing)).total() / tokens;
  const double all = flops.count_static(result.tokens).total() / tokens;

  MetricsRecord record;
  record.add("step", outcome.state.step).add("tokens", outcome.state.tokens).add("loss", result.loss);
  if (model.n_mtp_depths() > 0) record.add("mtp_loss", result.mtp_loss);
  record.add("lr", outcome.lr)
      .add("grad_norm", result.grad_norm)
      .add("tokens_per_second", outcome.tokens_per_second);
  add_machine(record, outcome, real);
  record.add("epoch", outcome.epoch)
      .add("skipped", outcome.state.spikes.skipped)
      .add("rollbacks", outcome.state.spikes.rollbacks);
  add_figures(record, headline_figures(outcome.load, routing));
  record.add("balance_loss", result.balance_loss)
      .add("z_loss", result.z_loss)
      .add("router_loss", result.router_loss)
      .add("drop_rate", result.load.drop_rate())
      .add("flops_per_token", real)
      .add("flops_per_token_static", all)
      .add("flops_saved", 1 - real / all)
      .add("layers", trained_layers(outcome, routing));
  add_ranks(record, outcome);
  if (outcome.validation) add_validation(record, *outcome.validation, routing);
  add_tasks(record, outcome.tasks);
  return record;
}

StepReport step_report(const StepOutcome& outcome, const model::Transformer& model, std::int64_t steps,
                       double seconds_left) {
  const StepResult& result = outcome.result;
  StepReport report{.step = outcome.state.step,
                    .steps = steps,
                    .loss = result.loss,
                    .mtp_loss = std::nullopt,
                    .val_loss = std::nullopt,
                    .val_bits_per_byte = std::nullopt,
                    .lr = outcome.lr,
                    .grad_norm = result.grad_norm,
                    .tokens_per_second = outcome.tokens_per_second,
                    .gini = std::nullopt,
                    .seconds_left = seconds_left};
  if (model.n_mtp_depths() > 0) report.mtp_loss = result.mtp_loss;
  if (const EvalResult* validation = outcome.validation) {
    report.val_loss = validation->loss;
    report.val_bits_per_byte = bits_per_byte(validation->loss, validation->tokens, validation->text);
  }
  if (model.routing().n_layers() > 0) report.gini = headline_figures(outcome.load, model.routing()).gini;
  return report;
}

Outputs::Outputs(const std::filesystem::path& directory, const config::Run& run, ExistingRun existing,
                 std::int64_t step)
    : with_tensorboard_(run.log.tensorboard), directory_(directory, run, existing, step) {
  if (existing != ExistingRun::leave) open_logs(step);
}

void Outputs::go_back(std::int64_t step) {
  close();
  directory_.set_aside_after(step);
  open_logs(step);
}

void Outputs::open_logs(std::int64_t step) {
  metrics_.reset();
  MetricsLog::truncate_after(directory_.metrics_path(), step);
  metrics_.emplace(directory_.metrics_path());
  if (with_tensorboard_) tensorboard_.emplace(directory_.tensorboard_path(), step);
}

void Outputs::append(std::int64_t step, const MetricsRecord& record) {
  metrics_->append(record);
  if (tensorboard_) tensorboard_->append(step, record.json());
}

void Outputs::close() {
  if (metrics_) metrics_->close();
  if (tensorboard_) tensorboard_->close();
}

}  // namespace switchyard::train
