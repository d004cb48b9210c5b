#include "commands/plan_page.h"

#include <fmt/format.h>

#include <iterator>
#include <string>

#include "core/log.h"

namespace switchyard::commands {

namespace {

Json json_of(const plan::StageMemory& memory) {
  return Json::Object{
      {"parameters", memory.parameters},   {"weights", memory.weights}, {"gradients", memory.gradients},
      {"moments", memory.moments},         {"buffers", memory.buffers}, {"gathered", memory.gathered},
      {"activations", memory.activations}, {"working", memory.working}, {"head", memory.head},
      {"exchange", memory.exchange},       {"steady", memory.steady()}, {"peak", memory.peak()}};
}

Json json_of(const plan::Layout& layout) {
  return Json::Object{{"scheme", plan::name_of(layout.scheme)},
                      {"ranks", layout.ranks},
                      {"data", layout.data()},
                      {"expert", layout.expert},
                      {"zero", layout.zero},
                      {"tensor", layout.tensor},
                      {"pipeline", layout.pipeline},
                      {"chunks", layout.chunks},
                      {"context", layout.context},
                      {"expert_tensor", layout.expert_tensor},
                      {"micro_batch", layout.micro_batch},
                      {"global_batch", layout.global_batch},
                      {"seq_len", layout.seq_len},
                      {"precision", plan::name_of(layout.precision)},
                      {"recompute", layout.recompute_name},
                      {"routing", layout.real_routing ? "real" : "balanced"},
                      {"overlap", layout.overlap},
                      {"runs_in_switchyard", layout.runs_here()}};
}

Json json_of(const plan::StepPlan& step) {
  Json json(Json::Object{{"seconds", step.time.total()},
                         {"hidden_seconds", step.time.hidden},
                         {"bottleneck", step.time.bottleneck()},
                         {"tokens", step.tokens},
                         {"tokens_per_second_per_device", step.tokens_per_second_per_device},
                         {"model_tflops_per_device", step.model_flops_per_second * 1e-12},
                         {"mfu", step.mfu}});
  for (const auto& [name, seconds] : step.time.parts()) json["parts"][name] = seconds;
  const plan::SentBytes& sent = step.sent;
  json["sent_bytes_per_rank"] =
      Json::Object{{"experts", sent.experts},   {"tensor", sent.tensor}, {"context", sent.context},
                   {"pipeline", sent.pipeline}, {"sums", sent.sums},     {"total", sent.total()}};
  return json;
}

// "23.08 GFLOP", "612 TFLOP".
std::string flops_text(double flops) {
  const char* const units[] = {"", "k", "M", "G", "T", "P"};
  std::size_t i = 0;
  for (; flops >= 1000 && i + 1 < std::size(units); ++i) flops /= 1000;
  return fmt::format("{:.{}f} {}FLOP", flops, flops < 100 ? 2 : 0, units[i]);
}

std::string gb(double bytes) {
  return bytes < 1e9 ? fmt::format("{:.2f} MB", bytes * 1e-6) : fmt::format("{:.2f} GB", bytes * 1e-9);
}

std::string words_of(const plan::Layout& layout) {
  std::string text = fmt::format("expert {}", layout.expert);
  const auto add = [&](const char* name, std::int64_t value) {
    if (value > 1) text += fmt::format(", {} {}", name, value);
  };
  add("tensor", layout.tensor);
  add("pipeline", layout.pipeline);
  add("chunks", layout.chunks);
  add("context", layout.context);
  add("expert-tensor", layout.expert_tensor);
  if (layout.scheme == plan::Scheme::switchyard) text += fmt::format(", zero {}", layout.zero);
  return text + fmt::format(", micro-batch {}, recompute {}", layout.micro_batch, layout.recompute_name);
}

void print_memory(const Plan& plan) {
  const plan::StageMemory& memory = plan.memory();
  fmt::print("memory of a rank{}\n", plan.stages.size() > 1 ? ", of the stage that needs most" : "");
  const auto line = [&](const char* name, double bytes) {
    if (bytes > 0) fmt::print("  {:<24}{:>12}\n", name, gb(bytes));
  };
  line("parameters, float32", memory.parameters);
  line("weights, bfloat16", memory.weights);
  line("gradients", memory.gradients);
  line("moments", memory.moments);
  line("library buffers", memory.buffers);
  line("steady", memory.steady());
  line("gathered layers", memory.gathered);
  line(plan.counted_activations ? "activations, counted" : "activations", memory.activations);
  line("workspace of a layer", memory.working);
  line("logits", memory.head);
  line("exchange buffers", memory.exchange);
  line("peak", memory.peak());
  if (plan.fits()) {
    fmt::print("fits         {} of {} are left\n", gb(plan.device.memory - memory.peak()),
               gb(plan.device.memory));
    return;
  }
  std::string would;
  for (const std::string& each : remedies(plan)) would += (would.empty() ? "" : "; or ") + each;
  fmt::print("does not fit {} more than the {} of {}; {}\n", gb(memory.peak() - plan.device.memory),
             gb(plan.device.memory), plan.device.name,
             would.empty() ? "no layout that was tried fits" : "would fit: " + would);
}

}  // namespace

Json json_of(const Plan& plan) {
  const plan::Shape& shape = plan.asked.shape;
  const plan::TokenFlops flops = plan::flops_of(shape, plan.asked.layout.seq_len);
  Json json(Json::Object{
      {"device", Json::Object{{"name", plan.device.name},
                              {"memory", plan.device.memory},
                              {"peak_flops", plan::peak_of(plan.device, plan.asked.layout.precision)},
                              {"bandwidth", plan.device.bandwidth},
                              {"source", plan.device.source}}},
      {"layout", json_of(plan.asked.layout)},
      {"parameters", Json::Object{{"total", shape.total()},
                                  {"active", shape.active()},
                                  {"active_matmul", shape.active_matmul()},
                                  {"mtp", shape.mtp_values()}}},
      {"flops_per_token", flops.total()},
      {"flops_formula", plan::flops_formula(shape, plan.asked.layout.seq_len)},
      {"fits", plan.fits()},
      {"memory", json_of(plan.memory())},
      {"activations_counted", plan.counted_activations},
      {"step", json_of(plan.step)},
      {"checkpoint_bytes", plan.checkpoint_bytes}});
  for (const plan::StageMemory& stage : plan.stages) json["stages"].push_back(json_of(stage));
  if (!plan.fits()) {
    json["lacks_bytes"] = plan.memory().peak() - plan.device.memory;
    json["would_fit"] = Json::list(remedies(plan));
  }
  if (plan.hours > 0) {
    json["tokens"] = plan.asked.tokens;
    json["hours"] = plan.hours;
    json["device_hours"] = plan.hours * static_cast<double>(plan.asked.layout.ranks);
    if (plan.energy_kwh > 0) json["energy_kwh"] = plan.energy_kwh;
    if (plan.cost > 0) json["cost"] = plan.cost;
  }
  for (const plan::Candidate& each : plan.layouts)
    json["layouts"].push_back(Json::Object{{"layout", json_of(each.layout)},
                                           {"fits", each.fits},
                                           {"peak", each.peak},
                                           {"step", json_of(each.step)}});
  return json;
}

void print(const Plan& plan) {
  const plan::Shape& shape = plan.asked.shape;
  const plan::Layout& layout = plan.asked.layout;
  const plan::StepPlan& step = plan.step;
  const auto line = [&](const char* name, const std::string& value) { fmt::print("{:<13}{}\n", name, value); };
  line("model",
       fmt::format("{} parameters, {} active{}", format_count(shape.total()), format_count(shape.active()),
                   shape.mtp_depths > 0
                       ? fmt::format(", {} more in multi-token prediction", format_count(shape.mtp_values()))
                       : ""));
  line("FLOPs", fmt::format("{} a token: {}", flops_text(plan::flops_of(shape, layout.seq_len).total()),
                            plan::flops_formula(shape, layout.seq_len)));
  line("device", fmt::format("{}, {} of memory, {}/s in {} ({})", plan.device.name, gb(plan.device.memory),
                             flops_text(plan::peak_of(plan.device, layout.precision)),
                             plan::name_of(layout.precision), plan.device.source));
  line("layout", fmt::format("{} rank{}: {} of data, {}; scheme {}", layout.ranks, layout.ranks == 1 ? "" : "s",
                             layout.data(), words_of(layout), plan::name_of(layout.scheme)));
  if (!layout.runs_here()) line("", "for comparison: switchyard does not run this layout");
  line("batch", fmt::format("{} sequences of {} tokens a step, {} micro-batch{} a rank", layout.global_batch,
                            layout.seq_len, layout.micro_batches(), layout.micro_batches() == 1 ? "" : "es"));
  print_memory(plan);
  fmt::print("time of a step\n");
  for (const auto& [name, seconds] : step.time.parts())
    if (seconds > 0)
      fmt::print("  {:<24}{:>10.4f} s {:>5.1f} %\n", name, seconds, 100 * seconds / step.time.total());
  fmt::print("  {:<24}{:>10.4f} s\n", "total", step.time.total());
  if (step.time.hidden > 0) fmt::print("  {:<24}{:>10.4f} s\n", "hidden beside it", step.time.hidden);
  line("bottleneck", step.time.bottleneck());
  line("sent", fmt::format("{} a rank and step: experts {}, sums and gathers {}, others {}",
                           gb(step.sent.total()), gb(step.sent.experts), gb(step.sent.sums),
                           gb(step.sent.tensor + step.sent.context + step.sent.pipeline)));
  line("speed", fmt::format("{} tokens/s a device, {} in all; {}/s a device, MFU {:.1f} %",
                            format_count(step.tokens_per_second_per_device),
                            format_count(step.tokens_per_second_per_device * static_cast<double>(layout.ranks)),
                            flops_text(step.model_flops_per_second), 100 * step.mfu));
  if (plan.hours > 0) {
    std::string text =
        fmt::format("{} for {:.4g} tokens, {} device hours", format_duration(plan.hours * 3600),
                    plan.asked.tokens, format_count(plan.hours * static_cast<double>(layout.ranks)));
    if (plan.energy_kwh > 0) text += fmt::format(", {} kWh", format_count(plan.energy_kwh));
    if (plan.cost > 0) text += fmt::format(", cost {}", format_count(plan.cost));
    line("training", text);
  }
  std::string disk = fmt::format("{} a checkpoint", gb(kStateBytes * (shape.total() + shape.mtp_values())));
  if (plan.asked.checkpoint) disk += fmt::format(", {} for all that are kept", gb(plan.checkpoint_bytes));
  line("disk", disk);
  if (plan.asked.router.type != "softmax_topk" && plan.asked.router.type != "sigmoid_group" &&
      shape.experts > 0)
    line("note", fmt::format("router {} is counted as a linear gate", plan.asked.router.type));
  if (plan.layouts.empty()) return;
  fmt::print("\n{:>9}  {:>10}  {:>6}  {:<20}  layout\n", "tokens/s", "peak", "MFU", "bottleneck");
  for (const plan::Candidate& each : plan.layouts)
    fmt::print("{:>9}  {:>10}  {:>4.1f} %  {:<20}  {}{}\n",
               format_count(each.step.tokens_per_second_per_device), gb(each.peak), 100 * each.step.mfu,
               each.step.time.bottleneck(), words_of(each.layout), each.fits ? "" : " (does not fit)");
}

}  // namespace switchyard::commands
