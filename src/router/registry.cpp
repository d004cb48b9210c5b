#include "router/registry.h"

#include <algorithm>
#include <vector>

namespace switchyard::router {

// One line a router: its file has  RouterKind NAME_router()  with schema and maker.
#define ROUTERS(X)    \
  X(softmax_topk)     \
  X(sigmoid_group)    \
  X(quantile)         \
  X(top_p)            \
  X(dynamic_k)        \
  X(expert_threshold) \
  X(kmeans)           \
  X(lpr)

#define DECLARE(name) RouterKind name##_router();
ROUTERS(DECLARE)
#undef DECLARE

namespace {

struct Registry {
  std::vector<config::RouterSchema> schemas;
  std::vector<RouterKind> kinds;

  Registry() {
#define ADD(name) add(name##_router());
    ROUTERS(ADD)
#undef ADD
  }
  void add(RouterKind kind) {
    for (const config::RouterSchema& schema : schemas)
      SY_CHECK(schema.type != kind.schema.type, "two routers are called {}", schema.type);
    schemas.push_back(kind.schema);
    kinds.push_back(std::move(kind));
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
  const auto& kinds = registry().kinds;
  const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const RouterKind& candidate) {
    return candidate.schema.type == options.type;
  });
  SY_CHECK(kind != kinds.end(), "no router {}", options.type);
  return kind->make(options, shape, prefix, store);
}

void add_router(RouterKind kind) { registry().add(std::move(kind)); }

}  // namespace switchyard::router
