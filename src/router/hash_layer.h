// The router of the first num_hash_layers layers with experts, whatever router.type is.
#pragma once

#include "router/router.h"

namespace switchyard::router {

// As RouterType::make. Adds the gate's "weight" [E, D] and "tid2eid" [vocab_size * K]: the experts of each
// token, dealt by the run's seed (Init::dealt) and kept in checkpoints.
std::unique_ptr<Router> make_hash_layer(const config::Router& options, const RouterShape& shape,
                                        const std::string& prefix, ParameterStore& store);

}  // namespace switchyard::router
