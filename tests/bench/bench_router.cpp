// What routers cost: its forward and backward pass over one micro-batch, times the layers that have
// one, beside a whole training step of the same model.
//   bench_router CONFIG [a.b=value ...]
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "config/load.h"
#include "core/rng.h"
#include "model/transformer.h"
#include "ops/elementwise.h"
#include "router/router.h"
#include "router/routing_step.h"
#include "train/optimizer.h"
#include "train/token_data.h"

namespace {

using namespace switchyard;
using Clock = std::chrono::steady_clock;

constexpr int kRounds = 7;

// The median of several rounds after one that warms up, in milliseconds.
double milliseconds(const std::function<void()>& work) {
  work();
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = Clock::now();
    work();
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
  return times[kRounds / 2];
}

void fill_normal(const Tensor& tensor, std::uint64_t seed, double scale) {
  const Rng rng(seed, RngPurpose::init, 0);
  for (std::int64_t i = 0; i < tensor.numel(); ++i)
    tensor.as<float>()[i] = static_cast<float>(scale * rng.normal(static_cast<std::uint64_t>(i)));
}

double time_routers(const config::Run& run, Context& ctx) {
  const config::Model& model = run.model;
  const std::int64_t B = run.train.micro_batch_size, S = run.train.seq_len, E = model.num_experts,
                     D = model.hidden_size;
  ParameterStore store;
  router::RoutedLayer layer(run.router,
                            {.hidden_size = D,
                             .n_experts = E,
                             .n_slots = model.num_experts_per_tok,
                             .n_group = model.n_group,
                             .topk_group = model.topk_group,
                             .normalise_weights = model.norm_topk_prob,
                             .weight_scale = model.routed_scaling_factor,
                             .init_std = model.initializer_range},
                            "gate.", store);
  store.allocate(DType::f32, true);
  store.initialise(run.train.seed);
  router::RoutingStep step({&layer}, run.router, model);
  const std::int64_t K = layer.router().n_slots();
  Tensor x_TD, dx_TD, dweight_TK, daddend_TD, token_T, tokens_B, losses_3, entropy_T, rng_offset_2;
  const auto lay_out = [&](Arena& arena) {
    step.plan(arena, B, true);
    layer.plan(arena, B, S, DType::f32);
    for (Tensor* rows : {&x_TD, &dx_TD, &daddend_TD}) *rows = arena.take({B * S, D}, DType::f32);
    rng_offset_2 = arena.take({2}, DType::i32);
    dweight_TK = arena.take({B * S, K}, DType::f32);
    token_T = arena.take({B * S}, DType::i32);
    tokens_B = arena.take({B}, DType::i32);
    losses_3 = arena.take({3}, DType::f64);
    entropy_T = arena.take({B * S}, DType::f32);
  };
  Arena measure = Arena::measuring();
  lay_out(measure);
  Arena arena(measure.peak(), "the router");
  lay_out(arena);
  fill_normal(x_TD, 1, 1.0);
  fill_normal(daddend_TD, 2, 1e-3);
  fill_normal(dweight_TK, 3, 1e-3);
  std::fill_n(token_T.as<std::int32_t>(), B * S, 1);
  std::fill_n(tokens_B.as<std::int32_t>(), B, static_cast<std::int32_t>(S));
  std::fill_n(entropy_T.as<float>(), B * S, 0.5f);
  std::fill_n(rng_offset_2.as<std::int32_t>(), 2, 0);
  const router::RouterBatch batch{.token_T = token_T,
                                  .n_seq = B,
                                  .seq_len = S,
                                  .training = true,
                                  .rng_offset_2 = rng_offset_2,
                                  .attention_entropy_T = entropy_T};
  return milliseconds([&] {
    const bool has_addend = layer.forward(x_TD, batch, ctx).expert_input_addend_TD.defined();
    step.begin(ctx);
    step.add_micro_batch(ctx);
    step.add_losses(losses_3, tokens_B, {.n_tokens = B * S, .n_sequences = B}, ctx);
    layer.backward(dx_TD, {.dweight_TK = dweight_TK, .daddend_TD = has_addend ? daddend_TD : Tensor()}, x_TD,
                   batch, ctx);
  });
}

double time_step(const config::Run& run, Context& ctx, std::int64_t& n_routers) {
  const std::int64_t B = run.train.micro_batch_size, S = run.train.seq_len;
  model::Transformer model(run.model, run.router, DType::f32, true);
  model.allocate();
  model.parameters().initialise(run.train.seed);
  model.plan(B, S, ctx);
  train::AdamW optimizer(run.train, model.parameters(), parallel::lone_mesh(), 0, Device::cpu);
  router::RoutingStep& routing = model.routing();
  n_routers = routing.n_layers();
  train::BatchBuffers buffers(B, S, std::nullopt, 0);
  const Rng rng(run.train.seed, RngPurpose::init, 1);
  std::vector<std::int32_t> window(static_cast<std::size_t>(S) + 1);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::size_t i = 0; i < window.size(); ++i)
      window[i] = static_cast<std::int32_t>(rng.uniform(static_cast<std::uint64_t>(b) * window.size() + i) *
                                            static_cast<double>(run.model.vocab_size));
    buffers.set_sequence(b, window);
  }
  model::Batch batch = buffers.load(ctx);
  batch.training = true;
  std::vector<float> loss(static_cast<std::size_t>(B * S));
  const Tensor loss_T(loss.data(), Shape{B * S}, DType::f32);
  std::int64_t step = 0;
  double values[3] = {};
  return milliseconds([&] {
    ops::fill_zero(model.parameters().grads(), ctx);
    model.forward(batch, ctx);
    routing.begin(ctx);
    routing.add_micro_batch(ctx);
    routing.add_losses(Tensor(values, Shape{3}, DType::f64), batch.tokens_B,
                       {.n_tokens = B * S, .n_sequences = B}, ctx);
    model.loss_and_backward(loss_T, batch, 1.0 / static_cast<double>(B * S), ctx, nullptr);
    optimizer.measure(model.parameters(), Tensor(values, Shape{1}, DType::f64), ctx);
    optimizer.update(model.parameters(), Tensor(values, Shape{1}, DType::f64), run.train.lr, ++step, ctx);
    routing.after_step(ctx);
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: bench_router CONFIG [a.b=value ...]\n");
    return 2;
  }
  try {
    const config::Run run =
        config::load_run(argv[1], std::vector<std::string>(argv + 2, argv + argc), router::router_schemas());
    Context ctx;
    std::int64_t n_routers = 0;
    const double step = time_step(run, ctx, n_routers);
    const double routers = time_routers(run, ctx) * static_cast<double>(n_routers);
    fmt::print("{:<18} step {:7.1f} ms, routers of {} layers {:6.2f} ms, {:.2f} %\n", run.router.type, step,
               n_routers, routers, 100 * routers / step);
  } catch (const InputError& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 2;
  }
  return 0;
}
