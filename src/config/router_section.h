// `router` of a run <-> config::Router, by the schemas of the known types.
#pragma once

#include <optional>
#include <span>

#include "config/router_schema.h"
#include "config/section.h"

namespace switchyard::config {

// `json`: the object, or null where the text has none. `aux_loss_coef`: what `model` says of the same quantity
// as balance_coef, of its layout's own router. Throws InputError: an unknown type; a key that this type does
// not have; a value of the wrong type or range; what the type refuses.
Router read_router(const Json* json, const Source& source, const Model& model,
                   std::optional<double> aux_loss_coef, std::span<const RouterSchema> routers);

// Every key of it; read_router gives an equal Router.
Json write_router(const Router& router);

}  // namespace switchyard::config
