#include <algorithm>
#include <vector>

#include "router/hash_layer.h"
#include "router/router.h"

namespace switchyard::router {

// One line a router: its file has  RouterType NAME_router()  with schema and maker.
#define ROUTERS(X)    \
  X(softmax_topk)     \
  X(sigmoid_group)    \
  X(quantile)         \
  X(top_p)            \
  X(dynamic_k)        \
  X(expert_threshold) \
  X(kmeans)           \
  X(lpr)

#define DECLARE(name) RouterType name##_router();
ROUTERS(DECLARE)
#undef DECLARE

namespace {

struct Registry {
  std::vector<config::RouterSchema> schemas;
  std::vector<RouterType> types;

  Registry() {
#define ADD(name) add(name##_router());
    ROUTERS(ADD)
#undef ADD
  }
  void add(RouterType type) {
    for (const config::RouterSchema& schema : schemas)
      SY_CHECK(schema.type != type.schema.type, "two routers are called {}", schema.type);
    schemas.push_back(type.schema);
    types.push_back(std::move(type));
  }
};

Registry& registry() {
  static Registry all;
  return all;
}

}  // namespace

std::span<const config::RouterSchema> router_schemas() { return registry().schemas; }

std::unique_ptr<Router> make_router(const config::Router& options, const RouterShape& shape,
                                    const std::string& prefix, ParameterStore& store) {
  if (shape.hashed) return make_hash_layer(options, shape, prefix, store);
  const auto& types = registry().types;
  const auto type = std::find_if(types.begin(), types.end(), [&](const RouterType& candidate) {
    return candidate.schema.type == options.type;
  });
  SY_CHECK(type != types.end(), "no router {}", options.type);
  return type->make(options, shape, prefix, store);
}

void add_router(RouterType type) { registry().add(std::move(type)); }

}  // namespace switchyard::router
