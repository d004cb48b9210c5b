#include "plan/time.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "plan/memory.h"

namespace switchyard::plan {

namespace {

double real(std::int64_t value) { return static_cast<double>(value); }

// Other members of a group of so many that at least one of K slots goes to, on average, slots being spread
// evenly over the share of the members whose groups of experts were chosen.
double others_reached(double members, double slots, double chosen) {
  const double possible = std::max(1.0, members * chosen);
  return members <= 1 ? 0 : (members - 1) / members * possible * (1 - std::pow(1 - 1 / possible, slots));
}

// What one layer computes and sends for one micro-batch, in seconds, forward and backward.
struct LayerTime {
  double products = 0, experts = 0, attention = 0, elementwise = 0, recompute = 0;
  double exchange = 0, tensor = 0, context = 0;  // whole, hidden or not
  double computing() const { return products + experts + attention + elementwise + recompute; }
};

class Timer {
 public:
  Timer(const Shape& shape, const Layout& layout, const Device& device, const Calibration& calibration)
      : shape_(shape), layout_(layout), device_(device), calibration_(calibration) {
    const double share = layout.precision == Precision::fp8        ? calibration.product_fp8
                         : layout.precision == Precision::bfloat16 ? calibration.product_bf16
                                                                   : calibration.product_fp32;
    product_rate_ = peak_of(device, layout.precision) * share;
    const Precision inner = layout.precision == Precision::float32 ? Precision::float32 : Precision::bfloat16;
    attention_rate_ = peak_of(device, inner) * calibration.attention;
    head_rate_ = peak_of(device, inner) *
                 (inner == Precision::float32 ? calibration.product_fp32 : calibration.product_bf16);
    bandwidth_ = device.bandwidth * calibration.bandwidth;
    wide_ = layout.precision == Precision::float32 ? 4 : 2;
    tensor_ = real(layout.tensor);
    tokens_ = real(layout.micro_batch * layout.seq_len) / real(layout.context);
    load_ = layout.real_routing && layout.expert > 1 ? calibration.imbalance : 1;
    passes_ = layout.scheme == Scheme::torch ? calibration.elementwise_torch : calibration.elementwise;
  }

  LayerTime layer(const LayerShape& layer) {
    LayerTime time;
    const double t = tokens_, D = real(shape_.hidden), N = real(shape_.key_width), M = real(shape_.value_width),
                 H = real(shape_.heads), KV = real(shape_.kv_heads), K = real(shape_.top_k),
                 F = real(shape_.expert_width);
    // Forward, then twice as much backward.
    const double dense_flops = 2 * (layer.attention + layer.always + layer.router) * t / tensor_;
    // Rows of one expert on the rank that holds it, and how much longer its products take than large ones.
    const double rows =
        t / tensor_ * K * real(layout_.expert_tensor * layout_.expert) / std::max(1.0, real(shape_.experts));
    const double small = layer.moe ? (1 + calibration_.half_rows / rows) *
                                         (1 + calibration_.half_width * real(layout_.expert_tensor) / F)
                                   : 1;
    const double expert_flops = 2 * layer.active_experts * t / tensor_ * load_ * small;
    const double qkv = shape_.latent_kv > 0
                           ? real(shape_.latent_q + shape_.latent_kv + shape_.rotated) + H * (2 * N + M)
                           : H * N + KV * (N + M);
    const double width = layer.moe ? real(shape_.shared_width) : real(shape_.dense_width);
    const double dense_values = 2 * D + qkv + H * M + 2 * D + (width > 0 ? 3 * width : 0);
    const double expert_values = layer.moe ? K * load_ * (2 * D + 3 * F) : 0;
    const double dense_weights = (layer.attention + layer.always + layer.router) / tensor_;
    const double expert_weights = layer.experts / real(layout_.expert * layout_.expert_tensor);
    const auto products = [&](double flops, double values, double weights) {
      const double forward = flops / product_rate_ + wide_ * (values * t / tensor_ + weights) / bandwidth_;
      // Gradients of weights are read and written in float32.
      return std::pair(forward, 2 * forward + 8 * weights / bandwidth_);
    };
    const auto [dense_forward, dense_backward] = products(dense_flops, dense_values, dense_weights);
    const auto [expert_forward, expert_backward] = products(expert_flops, expert_values, expert_weights);
    time.products = dense_forward + dense_backward;
    time.experts = expert_forward + expert_backward;
    const double attention_forward =
        2 * shape_.mean_keys(layout_.seq_len) * H * (N + M) * t / tensor_ / attention_rate_;
    time.attention = 3.5 * attention_forward;  // backward makes the scores again: five products for two
    // Two norms and two sums with the residual; rotation; activations; rows to experts and back.
    double walked = 2 * 4 * D + 2 * H * (N + M) + 3 * width + (layer.moe ? K * load_ * (4 * D + 3 * F) : 0);
    double bytes = walked * wide_;
    // An operand is read, and written twice, along rows and along columns.
    if (layout_.precision == Precision::fp8) {
      bytes += 4 * (2 * D + H * M + width);
      if (layer.moe) bytes += (device_.block_scales ? 1 : calibration_.fp8_casts) * 4 * K * load_ * (D + F);
    }
    const double walk_forward = passes_ * bytes * t / tensor_ / bandwidth_;
    time.elementwise = 3 * walk_forward;

    const Recompute& again = layout_.recompute;
    if (again.block) {
      time.recompute = dense_forward + expert_forward + attention_forward + walk_forward;
    } else {
      if (again.moe && layer.moe) time.recompute += expert_forward;
      if (again.mlp && width > 0) time.recompute += 2 * layer.always * t / tensor_ / product_rate_;
      if (again.core_attention) time.recompute += attention_forward;
      if (again.norm || again.act || again.swiglu) time.recompute += 0.3 * walk_forward;
      if (again.up_proj && shape_.latent_kv > 0)
        time.recompute += 2 * (real(shape_.latent_q) * H * N + real(shape_.latent_kv) * H * (N + M)) * t /
                          tensor_ / product_rate_;
      if (again.selective) time.recompute += 0.4 * (dense_forward + expert_forward + walk_forward);
    }
    const double passes = again.block || again.moe ? 3 : 2;  // forward, backward; and once more
    if (layer.moe) exchange(time, passes);
    if (layout_.tensor > 1) {
      // Tokens are gathered before and divided after each pair of products; backward they are gathered once
      // more.
      const double times =
          (layer.moe && layout_.expert_tensor == 1 && width == 0 ? 1 : 2) * (again.block ? 7 : 5);
      const double part = (tensor_ - 1) / tensor_ * t * D * wide_;
      time.tensor = times * part / link_of(layout_.tensor);
      sent_.tensor += times * part;
    }
    if (layout_.context > 1) {
      const double C = real(layout_.context);
      const double part = (C - 1) * t * KV * (N + M) / tensor_ * wide_ * 3;
      time.context = part / link_of(layout_.tensor * layout_.context);
      sent_.context += part;
    }
    return time;
  }

  // Of a micro-batch, all of which is the last stage's.
  double head() const {
    const double weights = shape_.embedding() / tensor_;
    return 6 * weights * tokens_ / head_rate_ +
           3 * (wide_ * weights + tokens_ * real(shape_.vocab) / tensor_ * calibration_.logit_bytes) /
               bandwidth_;
  }

  // Bytes a second, one way, within groups of so many neighbours.
  double link_of(std::int64_t ranks) const {
    return ranks <= device_.domain ? device_.link * calibration_.link : device_.network * calibration_.network;
  }
  // Of sums over `members` ranks, every `stride`-th: those that are in one domain share its devices' networks.
  double sum_rate(std::int64_t members, std::int64_t stride) const {
    const double link = device_.link * calibration_.link, network = device_.network * calibration_.network;
    if (members * stride <= device_.domain) return link;
    const double neighbours = std::max(1.0, real(device_.domain) / real(stride));
    return neighbours > 1 ? std::min(link, neighbours * network) : network;
  }

  const SentBytes& sent() const { return sent_; }
  SentBytes& sent() { return sent_; }
  double bandwidth() const { return bandwidth_; }
  double wide() const { return wide_; }
  double tokens() const { return tokens_; }

 private:
  void exchange(LayerTime& time, double passes) {
    if (layout_.expert * layout_.expert_tensor == 1) return;
    const std::int64_t group = layout_.expert * layout_.expert_tensor;
    const double inner = real(std::min(group, device_.domain));
    const double domains = std::ceil(real(group) / inner);
    const double row = tokens_ / tensor_ * real(shape_.hidden) * wide_ * load_;
    // A token goes once to each domain that has one of its experts, and within it once to each rank.
    // switchyard's `all` is without choice.
    const bool all = layout_.scheme == Scheme::switchyard && layout_.tokens_to_all;
    const double slots = real(shape_.top_k);
    const double near =
        (all ? inner - 1 : others_reached(real(group), slots, shape_.chosen_groups) * (inner > 1 ? 1 : 0)) +
        real(layout_.expert_tensor - 1);
    const double far = all ? real(group) - inner : others_reached(domains, slots, shape_.chosen_groups);
    const double forward = 2 * row *
                           (near / (device_.link * calibration_.link) +
                            (far > 0 ? far / (device_.network * calibration_.network) : 0));
    time.exchange = passes * forward;
    sent_.experts += passes * 2 * row * (near + far);
  }

  const Shape& shape_;
  const Layout& layout_;
  const Device& device_;
  const Calibration& calibration_;
  double product_rate_ = 0, attention_rate_ = 0, head_rate_ = 0, bandwidth_ = 0, wide_ = 2, tensor_ = 1,
         tokens_ = 0, load_ = 1, passes_ = 1;
  SentBytes sent_;
};

// What the slowest stage computes, of all. Layers are dealt out evenly where they divide, the head besides to
// the last stage; else embedding and head each take the place of one layer, as Megatron has it. What the head
// costs more than that layer, the others wait for.
double slowest_share(double stages, double chunks, double layers, double layers_time, double head_time) {
  if (stages == 1) return 1;
  const double pieces = stages * chunks, each = layers_time / layers;
  const bool divides = std::fmod(layers, pieces) == 0;
  const double most = divides ? layers / stages : std::ceil((layers + 2) / pieces) * chunks;
  const double last = divides ? most : std::max(0.0, std::min(most - 1, layers - (stages - 1) * most + 1));
  return std::max(most * each, last * each + head_time) / (layers_time + head_time);
}

}  // namespace

double peak_of(const Device& device, Precision precision) {
  const double peak = precision == Precision::fp8        ? device.fp8
                      : precision == Precision::bfloat16 ? device.bfloat16
                                                         : device.float32;
  if (peak <= 0)
    throw_input("--precision: {} has no products in {}; choose another precision or device", device.name,
                name_of(precision));
  return peak;
}

std::vector<std::pair<const char*, double>> StepTime::parts() const {
  return {{"products", products},           {"experts", experts},
          {"attention", attention},         {"elementwise", elementwise},
          {"recompute", recompute},         {"launch", launch},
          {"exchange of tokens", exchange}, {"tensor exchange", tensor},
          {"context exchange", context},    {"pipeline exchange", pipeline},
          {"sums and gathers", sums},       {"bubble", bubble},
          {"optimizer", optimizer},         {"fixed", fixed}};
}

double StepTime::total() const {
  double sum = 0;
  for (const auto& part : parts()) sum += part.second;
  return sum;
}

std::string StepTime::bottleneck() const {
  const auto all = parts();
  return std::max_element(all.begin(), all.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

StepPlan step_of(const Shape& shape, const Layout& layout, const Device& device,
                 const Calibration& calibration) {
  Timer timer(shape, layout, device, calibration);
  LayerTime sum;
  const auto add = [&](const LayerShape& layer) {
    const LayerTime time = timer.layer(layer);
    sum.products += time.products;
    sum.experts += time.experts;
    sum.attention += time.attention;
    sum.elementwise += time.elementwise;
    sum.recompute += time.recompute;
    sum.exchange += time.exchange;
    sum.tensor += time.tensor;
    sum.context += time.context;
  };
  for (const LayerShape& layer : shape.layer) add(layer);
  for (std::int64_t d = 0; d < shape.mtp_depths; ++d) add(shape.mtp);
  const double heads = real(1 + shape.mtp_depths) * timer.head();

  const double P = real(layout.pipeline), C = real(layout.chunks), m = real(layout.micro_batches());
  const double n_layers = real(shape.layers + shape.mtp_depths);
  const double moe_layers = real(shape.moe_layers() + (shape.mtp.moe ? shape.mtp_depths : 0));
  const double share = slowest_share(P, C, n_layers, sum.computing(), heads);

  StepPlan plan;
  StepTime& time = plan.time;
  const double times = share * m;
  time.products = times * (sum.products + heads);
  time.experts = times * sum.experts;
  time.attention = times * sum.attention;
  time.elementwise = times * sum.elementwise;
  time.recompute = times * sum.recompute;
  time.launch = share * m * calibration.layer_fixed * (moe_layers + (n_layers - moe_layers) / 3) *
                (layout.recompute.block ? 4.0 / 3 : 1);
  const auto expose = [&](double whole, double exposed) {
    time.hidden += whole * (1 - exposed);
    return whole * exposed;
  };
  time.exchange = expose(times * sum.exchange,
                         layout.overlap ? calibration.exchange_overlapped : calibration.exchange_exposed);
  time.tensor = expose(times * sum.tensor, calibration.tensor_exposed);
  time.context = expose(times * sum.context, calibration.context_exposed);
  SentBytes& sent = timer.sent();
  for (double* bytes : {&sent.experts, &sent.tensor, &sent.context}) *bytes *= times;
  if (layout.pipeline > 1) {
    const double row = timer.tokens() / real(layout.tensor) * real(shape.hidden) * timer.wide();
    sent.pipeline = 2 * C * m * row;
    const double rate = timer.link_of(layout.ranks / layout.pipeline * 2);
    time.pipeline = expose(sent.pipeline / rate, calibration.pipeline_exposed);
  }
  const double busy =
      time.products + time.experts + time.attention + time.elementwise + time.recompute + time.launch;

  // Sums over ranks that hold the same, and gathers of what they divide.
  const std::vector<StageValues> stages = values_of_stages(shape, layout);
  const StageValues& values = *std::max_element(stages.begin(), stages.end(), [](const auto& a, const auto& b) {
    return a.dense + a.experts < b.dense + b.experts;
  });
  const std::int64_t of_data = layout.ranks / (layout.tensor * layout.pipeline),
                     of_experts = layout.expert_data();
  const auto travel = [&](double n, std::int64_t members, std::int64_t stride, double bytes) {
    if (members <= 1) return 0.0;
    const double each = n * bytes * real(members - 1) / real(members);
    sent.sums += each;
    return each / timer.sum_rate(members, stride);
  };
  // fsdp, of every micro-batch: bf16 weights before the forward pass and again before the backward one, and
  // gradients; otherwise once a step: gradients, then weights.
  const double bytes = is_fsdp(layout.scheme)              ? m * (2 + 2 + 2)
                       : layout.scheme == Scheme::megatron ? 4 + 2
                       : layout.zero == 2                  ? 4 * m + 4
                                                           : 8;
  const double whole = travel(values.dense, of_data, layout.tensor, bytes) +
                       travel(values.experts, of_experts, layout.expert * layout.expert_tensor, bytes);
  // Beside it computes, at most, all of the step, or the last micro-batch's backward pass and the next one's
  // forward.
  const double beside = is_fsdp(layout.scheme) || layout.zero == 2 ? busy : busy / m;
  time.sums = std::max(calibration.sums_exposed * whole, whole - beside);
  time.hidden += whole - time.sums;

  time.bubble = (busy + time.exchange + time.tensor + time.context) * (P - 1) / (C * m);
  const double owned = values.dense / real(of_data) + values.experts / real(of_experts);
  // Reads gradient, parameter and two moments and writes three of them; all gradients are zeroed and looked at
  // for their norm.
  time.optimizer =
      (28 * owned + 12 * (is_fsdp(layout.scheme) ? owned : values.dense + values.experts)) / timer.bandwidth();
  time.fixed = layout.scheme == Scheme::switchyard ? 0 : calibration.step_fixed;

  plan.sent = sent;
  plan.tokens = real(layout.global_batch) * real(layout.seq_len);
  plan.model_flops = flops_of(shape, layout.seq_len).total() * plan.tokens;
  plan.tokens_per_second_per_device = plan.tokens / time.total() / real(layout.ranks);
  plan.model_flops_per_second = plan.model_flops / time.total() / real(layout.ranks);
  plan.mfu = plan.model_flops_per_second / peak_of(device, layout.precision);
  return plan;
}

}  // namespace switchyard::plan
