// The router of Mixtral and Qwen3-MoE: softmax over all experts, the K largest are chosen (ROUTERS.md, section
// 1).
#pragma once

#include <memory>
#include <string>

#include "router/router.h"

namespace switchyard::router {

std::unique_ptr<Router> make_softmax_topk(const config::Router& options, const RouterShape& shape,
                                          const std::string& prefix, ParameterStore& store);

}  // namespace switchyard::router
