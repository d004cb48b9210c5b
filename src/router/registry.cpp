#include "router/router.h"
#include "router/sigmoid_group.h"
#include "router/softmax_topk.h"

namespace switchyard::router {

std::unique_ptr<Router> make_router(const config::Router& options, const RouterShape& shape,
                                    const std::string& prefix, ParameterStore& store) {
  switch (options.type) {
    case config::RouterType::softmax_topk:
      return make_softmax_topk(options, shape, prefix, store);
    case config::RouterType::sigmoid_group:
      return make_sigmoid_group(options, shape, prefix, store);
  }
  SY_CHECK(false, "a router type without a maker");
  return nullptr;
}

}  // namespace switchyard::router
