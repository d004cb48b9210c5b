#include "config/names.h"

#include "core/error.h"

namespace switchyard::config {

// Switches without a default: the compiler finds the forgotten case.

std::string_view name_of(RopeType type) {
  switch (type) {
    case RopeType::unscaled:
      return "default";
    case RopeType::linear:
      return "linear";
    case RopeType::yarn:
      return "yarn";
  }
  SY_CHECK(false, "no such rotary embedding");
  return "";
}

std::string_view name_of(BalanceScope scope) {
  switch (scope) {
    case BalanceScope::layer:
      return "layer";
    case BalanceScope::sequence:
      return "sequence";
    case BalanceScope::global_batch:
      return "global_batch";
    case BalanceScope::model:
      return "model";
  }
  SY_CHECK(false, "no such scope");
  return "";
}

std::string_view name_of(EvalMix mix) { return mix == EvalMix::equal ? "equal" : "training"; }

std::string_view name_of(Schedule schedule) {
  switch (schedule) {
    case Schedule::constant:
      return "constant";
    case Schedule::linear:
      return "linear";
    case Schedule::cosine:
      return "cosine";
    case Schedule::wsd:
      return "wsd";
  }
  SY_CHECK(false, "no such schedule");
  return "";
}

std::string_view name_of(Recompute recompute) {
  switch (recompute) {
    case Recompute::none:
      return "none";
    case Recompute::swiglu:
      return "swiglu";
    case Recompute::block:
      return "block";
  }
  return {};
}

std::string_view name_of(ComputeType type) {
  switch (type) {
    case ComputeType::float32:
      return "float32";
    case ComputeType::bfloat16:
      return "bfloat16";
    case ComputeType::fp8:
      return "fp8";
  }
  SY_CHECK(false, "no such type");
  return "";
}

std::string_view name_of(TokenExchange exchange) {
  switch (exchange) {
    case TokenExchange::automatic:
      return "auto";
    case TokenExchange::all:
      return "all";
    case TokenExchange::rows:
      return "rows";
  }
  SY_CHECK(false, "no such exchange");
  return "";
}

std::string_view name_of(Sums sums) {
  switch (sums) {
    case Sums::ordered:
      return "ordered";
    case Sums::library:
      return "library";
  }
  SY_CHECK(false, "no such sums");
  return "";
}

std::string_view name_of(Writers writers) {
  switch (writers) {
    case Writers::all:
      return "all";
    case Writers::first:
      return "first";
  }
  SY_CHECK(false, "no such writers");
  return "";
}

std::string_view name_of(AttentionBackend backend) {
  switch (backend) {
    case AttentionBackend::flash:
      return "flash";
    case AttentionBackend::cudnn:
      return "cudnn";
  }
  SY_CHECK(false, "no such attention");
  return "";
}

std::string_view full_type_name(std::string_view name) {
  if (name == "bf16") return "bfloat16";
  if (name == "fp32" || name == "f32" || name == "float") return "float32";
  if (name == "fp16" || name == "f16" || name == "half") return "float16";
  return name;
}

}  // namespace switchyard::config
