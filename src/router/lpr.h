// Latent Prototype Routing (arXiv 2506.21328; ROUTERS.md, section 2), with its noise as an argument.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "router/router.h"

namespace switchyard::router {

// Sets epsilon_Td, the standard normal noise of the latents of a micro-batch.
using LatentNoise = std::function<void(Tensor epsilon_Td, const RouterBatch& batch, Context& ctx)>;

// As RouterKind::make, but the noise may be given (a test's); without one it is counter-based.
std::unique_ptr<Router> make_latent_prototype(const config::Router& options, const RouterShape& shape,
                                              const std::string& prefix, ParameterStore& store,
                                              LatentNoise noise = {});

}  // namespace switchyard::router
