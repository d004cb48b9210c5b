#include "plan/memory.h"

#include <algorithm>

#include "core/error.h"

namespace switchyard::plan {

namespace {

double real(std::int64_t value) { return static_cast<double>(value); }

double value_bytes(const Layout& layout) { return layout.precision == Precision::float32 ? 4 : 2; }

// Layers whose activations wait in a stage when most do: one forward, one backward, in turn (Narayanan et al.,
// arXiv 2104.04473, section 2.2); with pieces that take turns a few more than without.
double layers_in_flight(const Layout& layout, std::int64_t stage, double layers) {
  const double P = real(layout.pipeline), s = real(stage),
               m = real(std::max<std::int64_t>(layout.micro_batches(), 1));
  if (layout.pipeline == 1) return layers;
  if (layout.chunks == 1) return layers * std::min(P - s, m);
  const double C = real(layout.chunks);
  const double pieces = std::min(2 * (P - s - 1) + (C - 1) * P + 1, m * C);
  return layers / C * pieces;
}

void add_state(StageMemory& memory, const StageValues& values, const Layout& layout) {
  const double P = values.dense, X = values.experts;
  const double of_data = real(layout.ranks / (layout.tensor * layout.pipeline)),
               of_experts = real(layout.expert_data());
  switch (layout.scheme) {
    case Scheme::megatron:
      memory.weights = 2 * (P + X);
      memory.gradients = 4 * (P + X);
      memory.parameters = 4 * (P / of_data + X / of_experts);
      memory.moments = 8 * (P / of_data + X / of_experts);
      return;
    case Scheme::fsdp:
    case Scheme::torch:
      memory.parameters = 4 * (P / of_data + X / of_experts);
      memory.gradients = memory.parameters;
      memory.moments = 2 * memory.parameters;
      // The layer that runs and the one that is fetched meanwhile, and a layer's gradients before they are
      // added.
      memory.gathered = (2 * 2 + 2) * values.largest_layer;
      return;
    case Scheme::switchyard:
      memory.parameters = 4 * (P + X);
      if (layout.precision != Precision::float32) memory.weights = 2 * (P + X);
      const double divided = 4 * (P / of_data + X / of_experts);
      memory.gradients =
          layout.zero == 2 ? divided + 4 * values.largest_layer * (layout.overlap ? 2 : 1) : 4 * (P + X);
      memory.moments = layout.zero == 0 ? 8 * (P + X) : 2 * divided;
      return;
  }
}

}  // namespace

std::vector<StageValues> values_of_stages(const Shape& shape, const Layout& layout) {
  const double T = real(layout.tensor), X = real(layout.expert * layout.expert_tensor);
  std::vector<StageValues> stages;
  std::size_t at = 0;
  for (const std::int64_t layers : layers_of_stages(shape, layout)) {
    StageValues values;
    const auto add = [&](const LayerShape& layer) {
      const double dense = (layer.attention + layer.always) / T + layer.vectors + layer.router;
      const double experts = layer.experts / X;
      values.dense += dense;
      values.experts += experts;
      values.largest_layer = std::max(values.largest_layer, dense + experts);
    };
    for (std::int64_t i = 0; i < layers; ++i) add(shape.layer[at++]);
    const bool first = stages.empty(), last = at == shape.layer.size();
    if (first) values.dense += shape.embedding() / T;
    if (last) {
      values.dense += real(shape.hidden) + (shape.tied && !first ? shape.embedding() : shape.head()) / T;
      for (std::int64_t d = 0; d < shape.mtp_depths; ++d) add(shape.mtp);
      // A depth reads the embedding, which is otherwise the first stage's.
      if (shape.mtp_depths > 0 && !first) values.dense += shape.embedding() / T;
    }
    stages.push_back(values);
  }
  return stages;
}

double kept_bytes(const Shape& shape, const LayerShape& layer, const Layout& layout) {
  const Recompute& again = layout.recompute;
  const double D = real(shape.hidden), N = real(shape.key_width), M = real(shape.value_width),
               H = real(shape.heads);
  const double wide = value_bytes(layout);
  // What enters a product is kept in the precision of products.
  const double operand = layout.precision == Precision::fp8 ? 1 : wide;
  if (again.block) return wide * D;
  double bytes = 2 * wide * D;  // what enters attention and the network
  if (!again.norm) bytes += 2 * operand * D;
  if (shape.latent_kv > 0) {
    bytes += wide * 2 * real(shape.latent_q + shape.latent_kv) + wide * real(shape.rotated);
    if (!again.up_proj) bytes += wide * H * (2 * N + M);
  } else {
    bytes += wide * (H * N + real(shape.kv_heads) * (N + M));
  }
  bytes += operand * H * M;  // attention's output
  const auto network = [&](double width, bool whole) {
    if (whole) return 0.0;
    return wide * 2 * width + (again.act || again.swiglu ? 0 : operand * width);
  };
  if (!layer.moe) {
    bytes += network(real(shape.dense_width), again.mlp);
  } else {
    const double K = real(shape.top_k);
    bytes += network(real(shape.shared_width), again.mlp || again.moe);
    bytes += K * network(real(shape.expert_width), again.moe);
    if (!again.moe && !again.swiglu) bytes += operand * K * D * real(layout.expert_tensor);
    bytes += 8 * real(shape.experts) * (again.moe ? 0 : 1);  // logits and probabilities, float32
  }
  return again.selective ? 0.45 * bytes : bytes;
}

std::vector<StageMemory> memory_of(const Shape& shape, const Layout& layout, const Calibration& calibration,
                                   std::optional<double> measured_activations) {
  std::vector<StageMemory> stages;
  const std::vector<StageValues> values = values_of_stages(shape, layout);
  const std::vector<std::int64_t> layers = layers_of_stages(shape, layout);
  // Of a micro-batch, those whose layers a rank has.
  const double tokens = real(layout.micro_batch * layout.seq_len) / real(layout.context * layout.tensor);
  // Experts of a rank take more than their share in some layers and less in others: over all of them the mean.
  Layout nothing_again = layout;
  nothing_again.recompute = {};
  std::size_t at = 0;
  for (std::size_t s = 0; s < values.size(); ++s) {
    StageMemory memory;
    add_state(memory, values[s], layout);
    if (layout.scheme != Scheme::switchyard) memory.buffers = calibration.buffers;
    const bool last = s + 1 == values.size();
    double kept = 0, whole = 0;
    const auto add = [&](const LayerShape& layer) {
      kept += kept_bytes(shape, layer, layout) * tokens;
      whole = std::max(whole, kept_bytes(shape, layer, nothing_again) * tokens);
    };
    for (std::int64_t i = 0; i < layers[s]; ++i) add(shape.layer[at++]);
    if (last)
      for (std::int64_t d = 0; d < shape.mtp_depths; ++d) add(shape.mtp);
    const double n = real(layers[s]) + (last ? real(shape.mtp_depths) : 0);
    memory.activations = n == 0 ? 0 : kept / n * layers_in_flight(layout, static_cast<std::int64_t>(s), n);
    // Gradients of a layer's activations, as wide as its widest two; where it is made again, the layer besides.
    memory.working = (layout.recompute.block || layout.recompute.moe ? whole : 0) + whole / 2;
    // switchyard has the logits of a few hundred tokens at a time (ops/classifier.h).
    constexpr double kRows = 512;
    const double rows = layout.scheme == Scheme::switchyard ? std::min(tokens, kRows) : tokens;
    if (last)
      memory.head = real(1 + shape.mtp_depths) * rows * real(shape.vocab) *
                    (layout.scheme == Scheme::torch ? calibration.logit_bytes_torch : calibration.logit_bytes);
    if (layout.expert > 1 && layout.scheme == Scheme::switchyard)
      memory.exchange = 4 * real(layout.expert) * tokens * real(shape.hidden) * value_bytes(layout) / 2;
    if (measured_activations && values.size() == 1) {
      memory.activations = *measured_activations;
      memory.working =
          whole / 2;  // a layer that is made again is part of the count, operators' workspace is not
    }
    stages.push_back(memory);
  }
  return stages;
}

const StageMemory& largest(const std::vector<StageMemory>& stages) {
  SY_CHECK(!stages.empty());
  return *std::max_element(stages.begin(), stages.end(),
                           [](const StageMemory& a, const StageMemory& b) { return a.peak() < b.peak(); });
}

}  // namespace switchyard::plan
