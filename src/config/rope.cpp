#include "config/rope.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace switchyard::config {
namespace {

constexpr Interval kTheta{0, 1e12, true};
constexpr Interval kFactor{1, 1e10};  // above any ratio of two sizes
constexpr Interval kPositive{0, 1e6, true};

// The kind stands in rope_type or, in older files, type. It is read before the other keys are, so that a kind
// that is not known is named rather than one of its keys.
RopeType read_type(Section& section, std::string_view key, const Json& json) {
  const auto* object = json.get<Json::Object>();
  if (object == nullptr) return RopeType::unscaled;  // Section says what is wrong
  const std::string prefix = std::string(key) + ".";
  std::optional<RopeType> type;
  for (const char* type_key : {"rope_type", "type"}) {
    const Json* given = find_member(*object, type_key);
    if (given == nullptr) continue;
    const auto* name = given->get<std::string>();
    const auto* known = name == nullptr ? std::end(kRopeTypes)
                                        : std::find_if(std::begin(kRopeTypes), std::end(kRopeTypes),
                                                       [&](RopeType t) { return name_of(t) == *name; });
    if (known == std::end(kRopeTypes)) {
      section.fail(
          prefix + type_key,
          fmt::format("is {}; only \"default\", \"linear\" and \"yarn\" are supported", describe(*given)));
    }
    if (type && *type != *known) {
      section.fail(
          prefix + type_key,
          fmt::format("is {}, but {}rope_type is \"{}\"; remove one", describe(*given), prefix, name_of(*type)),
          section.path_of(prefix + "rope_type"));
    }
    type = *known;
  }
  return type.value_or(RopeType::unscaled);
}

bool has_key(RopeType type, const Layout& layout, std::string_view key) {
  if (key == "rope_type" || key == "type" || key == "rope_theta") return true;
  switch (type) {
    case RopeType::unscaled:
      return false;
    case RopeType::linear:
      // DeepSeek's softmax scale depends on mscale_all_dim whatever the kind.
      return key == "factor" || (layout.scores_follow_mscale && key.starts_with("mscale"));
    case RopeType::yarn:
      return true;
  }
  SY_CHECK(false, "no such rotary embedding");
  return false;
}

double attention_factor_of(const Rope& rope) {
  if (rope.type != RopeType::yarn) return 1;
  return rope.mscale ? yarn_mscale(rope.factor, *rope.mscale) / yarn_mscale(rope.factor, *rope.mscale_all_dim)
                     : yarn_mscale(rope.factor, 1);
}

void read_mscale(Section& section, Rope& rope) {
  rope.mscale = section.nullable_number("mscale", kPositive);
  rope.mscale_all_dim = section.nullable_number("mscale_all_dim", kPositive);
  if (rope.mscale.has_value() != rope.mscale_all_dim.has_value()) {
    const bool first = rope.mscale.has_value();
    section.fail(
        first ? "mscale_all_dim" : "mscale",
        fmt::format("missing, but {} is given; transformers and DeepSeek's own code differ on what one alone "
                    "means: give both or none",
                    first ? "mscale" : "mscale_all_dim"),
        section.path_of(first ? "mscale" : "mscale_all_dim"));
  }
}

void read_yarn(Section& section, Rope& rope, std::int64_t max_positions) {
  rope.original_max_position_embeddings =
      section.nullable_integer("original_max_position_embeddings", 1, kMaxSize).value_or(max_positions);
  if (section.has("factor") && section.find("factor")->is_null()) {
    rope.factor =
        static_cast<double>(max_positions) / static_cast<double>(rope.original_max_position_embeddings);
    if (rope.factor < 1) {
      section.fail(
          "factor",
          fmt::format("is null, which makes it max_position_embeddings ({}) / original_max_position_embeddings "
                      "({}), and it must be at least 1",
                      max_positions, rope.original_max_position_embeddings));
    }
  } else {
    rope.factor = section.number("factor", kFactor);
  }
  rope.beta_fast = section.nullable_number("beta_fast", kPositive).value_or(32);
  rope.beta_slow = section.nullable_number("beta_slow", kPositive).value_or(1);
  if (rope.beta_fast < rope.beta_slow) {
    section.fail("beta_fast", fmt::format("is {}, less than beta_slow ({})", rope.beta_fast, rope.beta_slow),
                 section.path_of("beta_slow"));
  }
  rope.truncate = section.boolean("truncate", true);
}

void read_kind(Section& section, Rope& rope, const Layout& layout, std::int64_t max_position_embeddings) {
  for (const std::string_view key : section_keys("model.rope_scaling").keys) {
    const Json* given = section.find(key);
    if (given != nullptr && !given->is_null() && !has_key(rope.type, layout, key)) {
      section.fail(
          key,
          fmt::format("is {}, but rope_type is \"{}\", which has no such key{}; remove it", describe(*given),
                      name_of(rope.type),
                      rope.type == RopeType::linear && key.starts_with("mscale") ? " in this layout" : ""));
    }
  }
  if (rope.type == RopeType::unscaled) return;
  if (rope.type == RopeType::linear) {
    rope.factor = section.number("factor", kFactor);
  } else {
    read_yarn(section, rope, max_position_embeddings);
  }
  read_mscale(section, rope);
  rope.attention_factor =
      section.nullable_number("attention_factor", kPositive).value_or(attention_factor_of(rope));
}

}  // namespace

double yarn_mscale(double factor, double k) { return factor <= 1 ? 1.0 : 0.1 * k * std::log(factor) + 1.0; }

Rope read_rope(Section& section, const Layout& layout, std::int64_t max_position_embeddings) {
  Rope rope;
  std::optional<double> theta;
  std::string theta_path;
  // It stands at the top level (transformers 4) or among the others (transformers 5).
  const auto meet_theta = [&](Section& from) {
    if (!from.has("rope_theta")) return;
    const double found = from.number("rope_theta", kTheta);
    if (theta && *theta != found) {
      from.fail("rope_theta", fmt::format("is {}, but {} is {}; remove one", found, theta_path, *theta),
                theta_path);
    }
    theta = found;
    theta_path = from.path_of("rope_theta");
  };
  section.find("rope_theta");
  meet_theta(section);
  std::string_view given;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* json = section.find(key);
    if (json == nullptr || json->is_null()) continue;
    if (!given.empty()) {
      section.fail(key, fmt::format("is given, but {}, the same in another form, is too; remove one", given),
                   section.path_of(given));
    }
    given = key;
    rope.type = read_type(section, key, *json);
    Section inner(json, section.path_of(key), section.source(), section_keys(std::string("model.") + key));
    meet_theta(inner);
    read_kind(inner, rope, layout, max_position_embeddings);
    inner.finish();
  }
  rope.theta = theta.value_or(layout.rope_theta);
  if (rope.type == RopeType::yarn && rope.theta <= 1) {  // given, as no default is that small
    section.source().fail(theta_path,
                          fmt::format("is {}; with rope_type \"yarn\" it must be above 1", rope.theta));
  }
  return rope;
}

void write_rope(const Rope& rope, Json::Object& out) {
  out.push_back({"rope_theta", rope.theta});
  if (rope.type == RopeType::unscaled) return;
  Json::Object inner;
  const auto put = [&](const char* key, Json value) { inner.push_back({key, std::move(value)}); };
  // DeepSeek's own code reads type, transformers either.
  put("rope_type", name_of(rope.type));
  put("type", name_of(rope.type));
  put("factor", rope.factor);
  if (rope.type == RopeType::yarn) {
    put("original_max_position_embeddings", rope.original_max_position_embeddings);
    put("beta_fast", rope.beta_fast);
    put("beta_slow", rope.beta_slow);
    if (!rope.truncate) put("truncate", false);
  }
  if (rope.mscale) put("mscale", *rope.mscale);
  if (rope.mscale_all_dim) put("mscale_all_dim", *rope.mscale_all_dim);
  if (rope.attention_factor != attention_factor_of(rope)) put("attention_factor", rope.attention_factor);
  out.push_back({"rope_scaling", Json(std::move(inner))});
}

}  // namespace switchyard::config
