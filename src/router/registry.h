// The types of routers there are.
#pragma once

#include <span>

#include "router/router.h"

namespace switchyard::router {

// What the reader of a configuration needs to know of them.
std::span<const config::RouterSchema> router_schemas();

// Makes the router that the options name.
std::unique_ptr<Router> make_router(const config::Router& options, const RouterShape& shape,
                                    const std::string& prefix, ParameterStore& store);

// One more type, for this process: how a test adds its example. Throws std::logic_error where the type is
// there.
void add_router(RouterType type);

}  // namespace switchyard::router
