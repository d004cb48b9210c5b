#include "train/calibration.h"

#include <algorithm>
#include <span>

#include "core/error.h"
#include "core/progress.h"
#include "ops/device.h"
#include "router/router.h"

namespace switchyard::train {

namespace {

// Whole windows of a domain: seq_len inputs, and the token behind them.
std::int64_t windows_of(const Domain& domain, std::int64_t seq_len) {
  return std::max<std::int64_t>(0, domain.stream.size() - 1) / seq_len;
}

std::int64_t all_windows(const std::vector<Domain>& domains, std::int64_t seq_len) {
  std::int64_t windows = 0;
  for (const Domain& domain : domains) windows += windows_of(domain, seq_len);
  return windows;
}

struct Window {
  std::size_t domain;
  std::int64_t number;  // of the domain's
};

// `count` windows, from the domains in turn, as long as each has any; of a domain evenly spread.
std::vector<Window> choose_windows(const std::vector<Domain>& domains, std::int64_t seq_len,
                                   std::int64_t count) {
  std::vector<Window> chosen;
  std::vector<std::int64_t> taken(domains.size(), 0);
  while (static_cast<std::int64_t>(chosen.size()) < count)
    for (std::size_t d = 0; d < domains.size() && static_cast<std::int64_t>(chosen.size()) < count; ++d)
      if (taken[d] < windows_of(domains[d], seq_len)) chosen.push_back({d, taken[d]++});
  for (Window& window : chosen)
    window.number = window.number * windows_of(domains[window.domain], seq_len) / taken[window.domain];
  return chosen;
}

std::int64_t windows_to_read(const std::vector<Domain>& domains, const CalibrationSettings& settings) {
  const std::int64_t all = all_windows(domains, settings.seq_len);
  if (all == 0)
    throw_input(
        "--calibrate: the data have no whole window of {} tokens; give more data or a smaller --seq-len",
        settings.seq_len);
  const std::int64_t step = settings.batch * settings.seq_len;
  const std::int64_t steps = settings.tokens / step + (settings.tokens % step != 0 ? 1 : 0);
  return steps >= (all + settings.batch - 1) / settings.batch ? all : steps * settings.batch;
}

}  // namespace

std::int64_t calibration_steps(const std::vector<Domain>& domains, const CalibrationSettings& settings) {
  return (windows_to_read(domains, settings) + settings.batch - 1) / settings.batch;
}

config::Router calibrating(const config::Router& router, std::int64_t steps) {
  config::Router result = router;
  result.jitter = 0;
  const double most = std::max(0.0, 1 - 4 / static_cast<double>(steps));
  for (const config::RouterOption& option : config::schema_of(router.type, router::router_schemas()).options)
    if (option.kept_each_step) result.own.set(option.key, std::min(most, router.own.number(option.key)));
  return result;
}

std::int64_t for_each_batch(const std::vector<Domain>& domains, const CalibrationSettings& settings,
                            std::int64_t sliding_window, Context& ctx,
                            const std::function<void(model::Batch batch)>& work) {
  const std::vector<Window> windows =
      choose_windows(domains, settings.seq_len, windows_to_read(domains, settings));
  const auto batch_size = static_cast<std::size_t>(settings.batch);
  BatchBuffers buffers(settings.batch, settings.seq_len, settings.begin_token, sliding_window, ctx.device);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(settings.seq_len) + 1);
  std::int64_t step = 0;
  for (std::size_t first = 0; first < windows.size(); first += batch_size, ++step) {
    mark("calibration step", step);
    for (std::size_t b = 0; b < batch_size; ++b) {
      std::span<std::int32_t> window;  // empty: padding, which counts in nothing
      if (first + b < windows.size()) {
        window = tokens;
        const auto& [domain, number] = windows[first + b];
        domains[domain].stream.read(number * settings.seq_len, window);
      }
      buffers.set_sequence(static_cast<std::int64_t>(b), window);
    }
    buffers.set_rng_offset(step, 0);
    work(buffers.load(ctx));
    ops::synchronise(ctx);  // the staging memory is free again
  }
  return static_cast<std::int64_t>(windows.size()) * settings.seq_len;
}

std::int64_t calibrate(model::Transformer& model, const std::vector<Domain>& domains,
                       const CalibrationSettings& settings, Context& ctx) {
  model.observe_routing(true);
  model.plan(settings.batch, settings.seq_len, ctx);
  const std::int64_t tokens =
      for_each_batch(domains, settings, model.config().sliding_window, ctx, [&](model::Batch batch) {
        batch.training = true;
        batch.seed = 1;
        model.routing().begin(ctx);
        model.forward(batch, ctx);
        model.routing().add_micro_batch(ctx);
        model.routing().after_step(ctx);
      });
  model.observe_routing(false);
  return tokens;
}

}  // namespace switchyard::train
