#include "checkpoint/modeling_file.h"

#include "config/load.h"
#include "router/router.h"

namespace switchyard::checkpoint {

namespace {

constexpr char kModeling[] =
#include "modeling_switchyard.inc"
    ;

}  // namespace

NamedTexts modeling_files(const config::Model& model, const config::Router& router) {
  if (config::beyond_layout(router, model, router::router_schemas()).empty()) return {};
  return {{std::string(config::kModelingFile), kModeling}};
}

}  // namespace switchyard::checkpoint
