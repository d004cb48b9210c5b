#include "config/router_section.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "config/fields.h"
#include "config/layouts.h"
#include "config/load.h"
#include "core/error.h"

namespace switchyard::config {
namespace {

constexpr char kPath[] = "router";

bool is_option(const RouterSchema& schema, std::string_view key) {
  return std::any_of(schema.options.begin(), schema.options.end(),
                     [&](const RouterOption& option) { return option.key == key; });
}

OptionValue fallback_of(const RouterOption& option, const Model& model) {
  return option.fallback_of != nullptr ? OptionValue(option.fallback_of(model)) : option.fallback;
}

// The type alone, before it is known which other keys there are.
const RouterSchema& read_type(const Json* json, const Source& source, const Model& model,
                              std::span<const RouterSchema> routers) {
  std::vector<std::string_view> types;
  for (const RouterSchema& schema : routers) types.push_back(schema.type);
  Json type = std::string(model.layout->router);
  if (json != nullptr && json->get<Json::Object>() != nullptr)
    if (const Json* found = find_member(*json->get<Json::Object>(), "type")) type = *found;
  const Json::Object alone{{"type", type}};
  const std::string_view key[] = {"type"};
  const SectionKeys keys{kPath, "", key};
  const Json object(alone);
  return schema_of(Section(&object, kPath, source, keys).word("type", types, ""), routers);
}

// A key that another type has is worth another message than one that none has.
void refuse_options_of_others(const Json* json, const Source& source, const RouterSchema& schema,
                              std::span<const RouterSchema> routers) {
  const auto* object = json != nullptr ? json->get<Json::Object>() : nullptr;
  if (object == nullptr) return;
  for (const JsonMember& member : *object) {
    if (is_option(schema, member.key)) continue;
    std::string others;
    for (const RouterSchema& other : routers) {
      if (is_option(other, member.key))
        others += fmt::format("{}\"{}\"", others.empty() ? "" : ", ", other.type);
    }
    if (others.empty()) continue;
    source.fail(
        fmt::format("{}.{}", kPath, member.key),
        fmt::format("router.type is \"{}\", which has no such option (of: {}); remove it", schema.type, others),
        "router.type");
  }
}

OptionValue read_option(Section& section, const RouterOption& option, const Model& model) {
  const OptionValue fallback = fallback_of(option, model);
  if (const auto* value = std::get_if<bool>(&fallback)) return section.boolean(option.key, *value);
  if (const auto* value = std::get_if<double>(&fallback))
    return section.number(option.key, option.range, *value);
  if (const auto* value = std::get_if<std::string>(&fallback))
    return section.word(option.key, option.choices, *value);
  return section.integer(option.key, std::llround(option.range.low), std::llround(option.range.high),
                         std::get<std::int64_t>(fallback));
}

}  // namespace

Router default_of(const RouterSchema& schema, const Model& model) {
  Router router;
  router.type = schema.type;
  router.balance_coef = schema.balance_coef;
  router.balance_scope = schema.balance_scope;
  for (const RouterOption& option : schema.options) router.own.set(option.key, fallback_of(option, model));
  return router;
}

const RouterSchema& schema_of(std::string_view type, std::span<const RouterSchema> routers) {
  const auto found = std::find_if(routers.begin(), routers.end(),
                                  [&](const RouterSchema& schema) { return schema.type == type; });
  SY_CHECK(found != routers.end(), "no router {}", type);
  return *found;
}

std::vector<std::string> beyond_layout(const Router& router, const Model& model,
                                       std::span<const RouterSchema> routers) {
  if (!has_moe_layer(model)) return {};
  const std::string_view own = model.layout->router;
  if (router.type != own)
    return {fmt::format("router.type is \"{}\", that of {} is \"{}\"", router.type, model.layout->name, own)};
  std::vector<std::string> clauses = weights_beyond_layout(model);
  // With room for every token on one expert nothing is ever dropped.
  const auto slots = static_cast<double>(slots_per_token(router, model));
  if (router.capacity_factor && *router.capacity_factor * slots < static_cast<double>(model.num_experts))
    clauses.push_back(fmt::format("router.capacity_factor is {}, {} has no capacity", *router.capacity_factor,
                                  model.layout->name));
  if (router.logit_norm != 0)
    clauses.push_back(
        fmt::format("router.logit_norm is {}, {} normalises no logits", router.logit_norm, model.layout->name));
  if (router.num_hash_layers != 0)
    clauses.push_back(fmt::format("router.num_hash_layers is {}, {} has no such layer", router.num_hash_layers,
                                  model.layout->name));
  for (const RouterOption& option : schema_of(own, routers).options)
    for (const auto& [key, value] : router.own.all())
      if (key == option.key && !option.in_training_alone && value != fallback_of(option, model))
        clauses.push_back(fmt::format("router.{} is not that of {}", key, model.layout->name));
  return clauses;
}

RouterOption max_experts_option() {
  return {
      .key = "max_experts",
      .fallback = std::int64_t{0},
      .range = {1, static_cast<double>(kMaxSize)},
      .fallback_of = [](const Model& model) { return std::max<std::int64_t>(1, model.num_experts_per_tok); }};
}

void check_max_experts(const Router& router, const Model& model, const RouterSchema::Refuse& refuse) {
  const std::int64_t found = router.own.integer("max_experts");
  if (has_moe_layer(model) && found > model.num_experts)
    refuse("max_experts", fmt::format("is {}, more than the model has experts ({})", found, model.num_experts),
           "");
}

Router read_router(const Json* json, const Source& source, const Model& model,
                   std::optional<double> aux_loss_coef, std::span<const RouterSchema> routers) {
  const RouterSchema& schema = read_type(json, source, model, routers);
  const bool says_balance = aux_loss_coef && schema.type == model.layout->router;  // it is of the layout's own
  refuse_options_of_others(json, source, schema, routers);
  const SectionKeys& common = section_keys(kPath);
  std::vector<std::string_view> all(common.keys.begin(), common.keys.end());
  for (const RouterOption& option : schema.options) all.push_back(option.key);
  const SectionKeys keys{kPath, "", all};
  Section section(json, kPath, source, keys);

  Router router = default_of(schema, model);
  section.find("type");
  router.balance_coef =
      section.number("balance_coef", kCoefficient, says_balance ? *aux_loss_coef : router.balance_coef);
  if (says_balance && *aux_loss_coef != router.balance_coef) {
    section.fail("balance_coef",
                 fmt::format("is {}, but model.router_aux_loss_coef, the same quantity, is {}; remove one",
                             router.balance_coef, *aux_loss_coef),
                 "model.router_aux_loss_coef");
  }
  FieldReader reader(section);
  describe(reader, router);
  for (const RouterOption& option : schema.options)
    router.own.set(option.key, read_option(section, option, model));
  if (router.z_loss_coef > 0 && !schema.no_z_loss.empty()) {
    section.fail("z_loss_coef",
                 fmt::format("is {}, but router.type is \"{}\", {}; set it to 0", router.z_loss_coef,
                             router.type, schema.no_z_loss),
                 section.path_of("type"));
  }
  if (router.logit_norm > 0 && !schema.no_logit_norm.empty()) {
    section.fail("logit_norm",
                 fmt::format("is {}, but router.type is \"{}\", {}; set it to 0", router.logit_norm,
                             router.type, schema.no_logit_norm),
                 section.path_of("type"));
  }
  if (router.num_hash_layers > count_moe_layers(model)) {
    section.fail("num_hash_layers", fmt::format("is {}, more than the model has layers with experts ({})",
                                                router.num_hash_layers, count_moe_layers(model)));
  }
  if (router.num_hash_layers > 0 && router.own.has("max_experts")) {
    section.fail(
        "num_hash_layers",
        fmt::format("is {}, but router.type is \"{}\", whose tokens have experts by the number that they "
                    "need, which no table knows; set it to 0",
                    router.num_hash_layers, router.type),
        section.path_of("type"));
  }
  const auto refuse = [&](std::string_view key, const std::string& problem, std::string_view other) {
    section.fail(key, problem, other.empty() ? "" : section.path_of(other));
  };
  if (schema.check) schema.check(router, model, refuse);
  section.finish();
  return router;
}

Json write_router(const Router& router) {
  Json::Object out{{"type", router.type},
                   {"balance_coef", router.balance_coef},
                   {"balance_scope", name_of(router.balance_scope)},
                   {"z_loss_coef", router.z_loss_coef},
                   {"variance_coef", router.variance_coef},
                   {"orthogonality_coef", router.orthogonality_coef},
                   {"capacity_factor", router.capacity_factor ? Json(*router.capacity_factor) : Json()},
                   {"jitter", router.jitter},
                   {"logit_norm", router.logit_norm},
                   {"num_hash_layers", router.num_hash_layers}};
  for (const auto& [key, value] : router.own.all())
    out.push_back({key, std::visit([](const auto& v) { return Json(v); }, value)});
  return Json(std::move(out));
}

Router default_router(const Layout& layout, std::span<const RouterSchema> routers) {
  Model model;  // no default of a layout's own router depends on the model
  model.layout = &layout;
  return default_of(schema_of(layout.router, routers), model);
}

}  // namespace switchyard::config
