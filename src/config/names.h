// The words of the configuration for the enums of config.h.
#pragma once

#include <string_view>

#include "config/config.h"

namespace switchyard::config {

inline constexpr RopeType kRopeTypes[] = {RopeType::unscaled, RopeType::linear, RopeType::yarn};
inline constexpr BalanceScope kBalanceScopes[] = {BalanceScope::layer, BalanceScope::sequence,
                                                  BalanceScope::global_batch, BalanceScope::model};
inline constexpr Schedule kSchedules[] = {Schedule::constant, Schedule::linear, Schedule::cosine,
                                          Schedule::wsd};
inline constexpr EvalMix kEvalMixes[] = {EvalMix::equal, EvalMix::training};
inline constexpr Recompute kRecomputes[] = {Recompute::none, Recompute::swiglu, Recompute::block};
inline constexpr ComputeType kComputeTypes[] = {ComputeType::float32, ComputeType::bfloat16, ComputeType::fp8};
inline constexpr TokenExchange kTokenExchanges[] = {TokenExchange::automatic, TokenExchange::all,
                                                    TokenExchange::rows};
inline constexpr Sums kSums[] = {Sums::ordered, Sums::library};
inline constexpr Writers kWriters[] = {Writers::all, Writers::first};
inline constexpr AttentionBackend kAttentionBackends[] = {AttentionBackend::flash, AttentionBackend::cudnn};

std::string_view name_of(RopeType type);             // "default", "linear", "yarn"
std::string_view name_of(BalanceScope scope);        // "layer", "sequence", "global_batch", "model"
std::string_view name_of(Schedule schedule);         // "constant", "linear", "cosine", "wsd"
std::string_view name_of(EvalMix mix);               // "equal", "training"
std::string_view name_of(Recompute recompute);       // "none", "swiglu", "block"
std::string_view name_of(ComputeType type);          // "float32", "bfloat16", "fp8"
std::string_view name_of(AttentionBackend backend);  // "flash", "cudnn"
std::string_view name_of(TokenExchange exchange);    // "auto", "all", "rows"
std::string_view name_of(Sums sums);                 // "ordered", "library"
std::string_view name_of(Writers writers);           // "all", "first"

// The full name of a type of numbers that is often written short: bf16, fp32, f32, float, fp16, f16, half.
// Another word is given back as it is.
std::string_view full_type_name(std::string_view name);

}  // namespace switchyard::config
