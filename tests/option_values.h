// What each key of a configuration takes, learnt from how a value of the wrong kind is refused. Keys come from
// the reader's own tables and values from its own messages: a new option, or a new word of an old one, is met
// by the tests that go through all of them without a line there.
#pragma once

#include <fmt/core.h>

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/keys.h"
#include "config/load.h"
#include "core/error.h"
#include "core/json.h"
#include "router/router.h"

namespace switchyard::test {

using Overrides = std::vector<std::string>;

inline config::Run run_of(const Json& base, const Overrides& overrides) {
  return config::parse_run(to_line(base), "run.json", overrides, router::router_schemas());
}
// The message of the refusal; empty where there is none.
inline std::string refusal_of(const Json& base, const Overrides& overrides) {
  try {
    run_of(base, overrides);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

// The keys of a section in a run like `base`; of `router` those of its type too.
inline std::vector<std::string_view> keys_in(const Json& base, std::string_view section) {
  const std::string layout = section == "model" ? base["model"]["model_type"].text() : "";
  const auto& common = config::section_keys(section, layout).keys;
  std::vector<std::string_view> keys(common.begin(), common.end());
  if (section == "router")
    for (const config::RouterOption& option :
         config::schema_of(base["router"]["type"].text(), router::router_schemas()).options)
      keys.push_back(option.key);
  return keys;
}

// An option that is refused alone, and what must stand beside it in its section.
struct Companion {
  std::string_view key, value;  // *: every value but the default
  std::vector<std::string_view> needs;
  std::string_view why;
};
inline const Companion kCompanions[] = {
    {"estimator", "threshold", {"threshold=2.8"}, "it compares with a length that has no default"},
    {"threshold", "*", {"estimator=threshold"}, "no other estimator compares with a length"},
    {"z_loss_coef", "*", {"score_function=softmax"}, "sigmoid scores have no normaliser"},
    {"logit_norm", "*", {"score_function=softmax"}, "it acts before a softmax alone"},
    {"sigma", "*", {"similarity=gaussian"}, "nothing else has a width"},
    {"num_heads", "*", {"similarity=cross_attention"}, "nothing else has heads"},
    {"diversity", "euclidean", {"reg_scope=micro_batch"}, "it compares pairs of tokens, not sums"},
    {"ema_decay", "*", {"key_update=ema"}, "a gradient averages nothing"},
    {"bias_ema", "*", {"bias=quantile"}, "nothing else is solved for"},
    {"bias_solves", "*", {"bias=quantile"}, "as bias_ema"},
    {"settle_tokens", "*", {"bias=quantile"}, "as bias_ema"},
    {"bias_update_speed", "*", {"bias=sign"}, "no other rule but smebu has a speed"},
    {"bias_mean_free", "*", {"bias=sign"}, "all other rules are"},
    {"bias_kappa", "*", {"bias=smebu"}, "nothing else is clamped"},
    {"bias_momentum", "*", {"bias=smebu"}, "nothing else has a momentum"},
    {"phi_strength", "*", {"bias=phi"}, "nothing else has a potential"},
    {"phi_decay", "*", {"bias=phi"}, "nothing else averages loads"},
    {"rope_type", "*", {"factor=2"}, "how much longer the context is made has no default"},
    {"type", "*", {"factor=2"}, "as rope_type"},
    {"truncate", "*", {"rope_type=yarn", "factor=2"}, "no other kind has borders"},
    {"eval_mix", "training", {"eval_tokens=16"}, "all tokens of a domain are not divided"},
    {"attention", "cudnn", {"dtype=bfloat16"}, "cuDNN has no float32"}};

struct Option {
  enum class Kind { words, boolean, number };
  std::string section, key;
  Kind kind = Kind::words;
  std::vector<std::string> values{};  // as an override writes them

  std::string path() const { return section + "." + key; }
  // An override that sets it, and those of the companions that this section has keys for, where it is refused
  // without them.
  Overrides set(const Json& base, const std::string& value) const {
    Overrides alone = {path() + "=" + value};
    if (refusal_of(base, alone).empty()) return alone;
    const auto keys = keys_in(base, section);
    for (const Companion& companion : kCompanions) {
      if (companion.key != key || (companion.value != "*" && companion.value != value)) continue;
      for (const std::string_view need : companion.needs)
        if (std::find(keys.begin(), keys.end(), need.substr(0, need.find('='))) != keys.end())
          alone.push_back(fmt::format("{}.{}", section, need));
    }
    return alone;
  }
};

// The values that the refusal of "?" names: words; true and false; of a range its ends, where they belong to it
// and are no limits of size, and one number between.
inline Option option_of(const std::string& section, const std::string& key, const std::string& refusal) {
  const auto behind = [&](std::string_view mark) {
    const auto at = refusal.find(mark);
    return at == std::string::npos ? std::string() : refusal.substr(at + mark.size());
  };
  Option option{section, key};
  if (const std::string list = behind("expected one of: "); !list.empty()) {
    for (std::size_t at = 0; at < list.size();) {
      const std::size_t end = std::min(list.find(", ", at), list.size());
      option.values.push_back(list.substr(at, end - at));
      at = end + 2;
    }
  } else if (const std::string quoted = behind("; only "); !quoted.empty()) {
    for (std::size_t at = quoted.find('"'); at != std::string::npos;) {
      const std::size_t end = quoted.find('"', at + 1);
      option.values.push_back(quoted.substr(at + 1, end - at - 1));
      at = quoted.find('"', end + 1);
    }
  } else if (refusal.find("expected true or false") != std::string::npos) {
    option.kind = Option::Kind::boolean;
    option.values = {"true", "false"};
  } else if (const bool whole = !behind("expected an integer in ").empty();
             whole || !behind("expected a number in ").empty()) {
    const std::string range = behind(whole ? "expected an integer in " : "expected a number in ");
    constexpr double kLargest = 1000;  // what lies beyond is room, not a value that anybody would choose
    const std::size_t comma = range.find(", ");
    const std::string low = range.substr(1, comma - 1);
    const std::string high = range.substr(comma + 2, range.size() - comma - 3);
    option.kind = Option::Kind::number;
    if (range.front() == '[') option.values.push_back(low);
    const bool has_half = std::stod(high) > 0.5;
    option.values.push_back(whole ? "2" : has_half ? "0.5" : fmt::format("{}", std::stod(high) / 2));
    if (range.back() == ']' && std::stod(high) <= kLargest) option.values.push_back(high);
  }
  return option;
}

// The sections that a run has, but for the elements of arrays.
inline std::set<std::string> sections() {
  std::set<std::string> names;
  for (const config::SectionKeys& section : config::all_sections())
    if (!section.name.empty() && !section.name.ends_with(".N")) names.emplace(section.name);
  return names;
}

// The options of one section of a run, of which `base` holds what has no default.
inline std::vector<Option> options_of(const Json& base, const std::string& section) {
  std::vector<Option> options;
  for (const std::string_view key : keys_in(base, section)) {
    if (key == "model_type" || (section == "router" && key == "type")) continue;  // base's own
    Overrides overrides = {fmt::format("{}.{}=?", section, key)};
    if (section.starts_with("model.rope")) {  // only YaRN has all of these keys
      if (key != "rope_type" && key != "type") overrides.push_back(section + ".rope_type=yarn");
      overrides.push_back(section + ".factor=2");
    }
    Option option = option_of(section, std::string(key), refusal_of(base, overrides));
    if (!option.values.empty()) options.push_back(std::move(option));
  }
  return options;
}

}  // namespace switchyard::test
