#include "plan/layout.h"

#include <fmt/format.h>

#include "core/error.h"

namespace switchyard::plan {

std::string_view name_of(Scheme scheme) {
  switch (scheme) {
    case Scheme::switchyard:
      return "switchyard";
    case Scheme::megatron:
      return "megatron";
    case Scheme::fsdp:
      return "fsdp";
    case Scheme::torch:
      return "torch";
  }
  return "";
}

std::string_view name_of(Precision precision) {
  switch (precision) {
    case Precision::float32:
      return "float32";
    case Precision::bfloat16:
      return "bfloat16";
    case Precision::fp8:
      return "fp8";
  }
  return "";
}

Recompute parse_recompute(const std::string& text) {
  struct Name {
    std::string_view name;
    bool Recompute::*member;
  };
  constexpr Name kNames[] = {{"block", &Recompute::block},
                             {"full", &Recompute::block},
                             {"swiglu", &Recompute::swiglu},
                             {"norm", &Recompute::norm},
                             {"act", &Recompute::act},
                             {"mlp", &Recompute::mlp},
                             {"moe", &Recompute::moe},
                             {"up_proj", &Recompute::up_proj},
                             {"core_attention", &Recompute::core_attention},
                             {"selective", &Recompute::selective}};
  Recompute recompute;
  if (text == "none") return recompute;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view word = std::string_view(text).substr(at, comma - at);
    bool found = false;
    for (const auto& [name, member] : kNames) {
      if (name != word) continue;
      recompute.*member = true;
      found = true;
    }
    if (!found) {
      std::string list = "none";
      for (const auto& each : kNames) list += fmt::format(", {}", each.name);
      throw_input("--recompute: there is no '{}'; expected {}, or several with commas", word, list);
    }
    at = comma + 1;
  }
  return recompute;
}

void check_layout(const Layout& layout, const Shape& shape) {
  const std::int64_t model_ranks = layout.tensor * layout.pipeline * layout.context;
  const auto divides = [](std::int64_t part, std::int64_t whole) { return whole % part == 0; };
  if (!divides(model_ranks, layout.ranks))
    throw_input(
        "--ranks: is {}, not a multiple of --tensor x --pipeline x --context ({} x {} x {} = {}); give a "
        "multiple",
        layout.ranks, layout.tensor, layout.pipeline, layout.context, model_ranks);
  if (layout.expert > 1 && shape.experts == 0)
    throw_input("--expert: is {}, but the model has no experts; leave it out", layout.expert);
  const std::int64_t expert_ranks = layout.expert * layout.expert_tensor * layout.pipeline;
  if (!divides(expert_ranks, layout.ranks))
    throw_input(
        "--ranks: is {}, not a multiple of --expert x --expert-tensor x --pipeline ({} x {} x {} = {}); give a "
        "multiple",
        layout.ranks, layout.expert, layout.expert_tensor, layout.pipeline, expert_ranks);
  if (shape.experts > 0 && !divides(layout.expert, shape.experts))
    throw_input("--expert: is {}, which does not divide the model's {} experts", layout.expert, shape.experts);
  if (!divides(layout.tensor, shape.heads))
    throw_input("--tensor: is {}, which does not divide the model's {} heads", layout.tensor, shape.heads);
  const std::int64_t layers = shape.layers + shape.mtp_depths;
  // Embedding and head may have pieces of their own.
  if (layout.pipeline * layout.chunks > layers + 2 || layout.pipeline > layers)
    throw_input("--pipeline: {} stages of {} pieces are more than the model's {} layers, embedding and head",
                layout.pipeline, layout.chunks, layers);
  if (layout.chunks > 1 && layout.pipeline == 1)
    throw_input("--chunks: is {}, but there is one stage; give --pipeline too", layout.chunks);
  if (!divides(layout.context, layout.seq_len))
    throw_input("--context: is {}, which does not divide a sequence of {} tokens", layout.context,
                layout.seq_len);
  if (!divides(layout.data() * layout.micro_batch, layout.global_batch))
    throw_input(
        "--global-batch: is {} sequences, not a multiple of {} data ranks x {} of a micro-batch; give a "
        "multiple of "
        "{}",
        layout.global_batch, layout.data(), layout.micro_batch, layout.data() * layout.micro_batch);
}

std::vector<std::int64_t> layers_of_stages(const Shape& shape, const Layout& layout) {
  std::vector<std::int64_t> layers(static_cast<std::size_t>(layout.pipeline), shape.layers / layout.pipeline);
  for (std::int64_t s = 0; s < shape.layers % layout.pipeline; ++s) ++layers[static_cast<std::size_t>(s)];
  return layers;
}

}  // namespace switchyard::plan
