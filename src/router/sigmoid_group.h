// The router of DeepSeek-V3: sigmoid scores, a bias that only chooses, experts in groups (ROUTERS.md, section
// 1).
#pragma once

#include <memory>
#include <string>

#include "router/router.h"

namespace switchyard::router {

std::unique_ptr<Router> make_sigmoid_group(const config::Router& options, const RouterShape& shape,
                                           const std::string& prefix, ParameterStore& store);

}  // namespace switchyard::router
