#include "sweep/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "config/section.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::sweep {

namespace {

using config::Interval;
using config::Section;
using config::SectionKeys;
using config::Source;

constexpr std::array<std::string_view, 12> kTop{"config", "configs", "variants", "grid",
                                                "set",    "seeds",   "baseline", "evaluate",
                                                "budget", "detect",  "jobs",     "threads"};
constexpr std::array<std::string_view, 5> kVariant{"name", "config", "set", "grid", "against"};
constexpr std::array<std::string_view, 3> kEvaluation{"name", "data", "max_tokens"};
constexpr std::array<std::string_view, 3> kBudget{"tokens", "flops", "minutes"};

constexpr std::int64_t kMostRuns = 100'000;

// One value of a grid, and how a name says it.
struct Setting {
  std::string override_text;  // "router.bias_ema=0.9"
  std::string name;           // "bias_ema=0.9"
};
using Point = std::vector<Setting>;

bool can_be_named(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._+-=").find(c) != std::string_view::npos;
  };
  return !name.empty() && name.front() != '.' && name.size() <= 200 &&
         std::all_of(name.begin(), name.end(), allowed);
}

void check_name(const Section& section, std::string_view key, const std::string& name) {
  if (!can_be_named(name))
    section.fail(
        key,
        fmt::format("is \"{}\"; a name becomes that of directories: letters, digits and . _ + - =, no dot in "
                    "front, at most 200",
                    name));
}

// A value as an override has it: strings as they stand, so that a file reads like a command line.
std::string value_text(const Json& value) { return value.is_string() ? value.text() : to_line(value); }

// `set`: an object of paths and values.
std::vector<std::string> read_set(Section& section) {
  std::vector<std::string> overrides;
  const Json* const json = section.find("set");
  if (json == nullptr) return overrides;
  if (!json->is_object()) section.fail("set", "must be an object like {\"router.bias_ema\": 0.9}");
  for (const JsonMember& member : json->object())
    overrides.push_back(member.key + "=" + value_text(member.value));
  return overrides;
}

// `grid`: an object of paths and lists of values -> all combinations, the last path changing fastest; one empty
// point where there is no grid.
std::vector<Point> read_grid(Section& section) {
  std::vector<Point> points{{}};
  const Json* const json = section.find("grid");
  if (json == nullptr) return points;
  if (!json->is_object()) section.fail("grid", "must be an object like {\"router.bias_ema\": [0.9, 0.99]}");
  for (const JsonMember& member : json->object()) {
    if (!member.value.is_array() || member.value.size() == 0)
      section.fail("grid", fmt::format("has {} with no list of values", json_string(member.key)));
    const std::string last = member.key.substr(member.key.rfind('.') + 1);
    std::vector<Point> longer;
    for (const Point& point : points) {
      for (const Json& value : member.value.array()) {
        Setting setting{member.key + "=" + value_text(value), last + "=" + value_text(value)};
        if (!can_be_named(setting.name))
          section.fail("grid",
                       fmt::format("has {}, which cannot be part of a directory's name; make it a variant",
                                   json_string(setting.override_text)));
        longer.push_back(point);
        longer.back().push_back(std::move(setting));
      }
    }
    if (static_cast<std::int64_t>(longer.size()) > kMostRuns)
      section.fail("grid", fmt::format("has more than {} points", kMostRuns));
    points = std::move(longer);
  }
  return points;
}

std::string name_at(const std::string& name, const Point& point) {
  std::string whole = name;
  for (const Setting& setting : point) whole += "_" + setting.name;
  return whole;
}

// The variants of the file as they stand, before configurations and grid are multiplied out.
struct Row {
  std::string name;
  std::optional<std::string> config, against;
  std::vector<std::string> overrides;
  std::vector<Point> points;
  bool own_grid = false;
};

std::vector<Row> read_rows(Section& top, const std::vector<Point>& grid) {
  const Json* const json = top.find("variants");
  if (json == nullptr)
    return {Row{.name = "run", .config = {}, .against = {}, .overrides = {}, .points = grid}};
  if (!json->is_array() || json->size() == 0) top.fail("variants", "must be a list with at least one variant");
  const SectionKeys keys{"", "", kVariant};
  std::vector<Row> rows;
  for (std::size_t i = 0; i < json->size(); ++i) {
    Section section(&(*json)[i], fmt::format("variants.{}", i), top.source(), keys);
    Row row{.name = section.text("name"), .config = {}, .against = {}, .overrides = {}, .points = grid};
    check_name(section, "name", row.name);
    if (std::any_of(rows.begin(), rows.end(), [&](const Row& other) { return other.name == row.name; }))
      section.fail("name", fmt::format("is \"{}\", which another variant has", row.name));
    if (section.has("config")) {
      row.config = section.text("config");
    } else {
      section.find("config");
    }
    if (section.has("against")) {
      row.against = section.text("against");
    } else {
      section.find("against");
    }
    row.overrides = read_set(section);
    row.own_grid = section.has("grid");
    std::vector<Point> own = read_grid(section);
    if (row.own_grid) row.points = std::move(own);
    section.finish();
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<std::int64_t> read_seeds(Section& top) {
  const Json* const json = top.find("seeds");
  if (json == nullptr) return {1};
  if (!json->is_array() || json->size() == 0)
    top.fail("seeds", "must be a list of whole numbers, like [1, 2, 3]");
  std::vector<std::int64_t> seeds;
  for (const Json& seed : json->array()) {
    const auto whole = seed.whole();
    if (!whole || *whole > static_cast<std::uint64_t>(INT64_MAX))
      top.fail("seeds", fmt::format("has {}, which is no whole number from 0 to {}", to_line(seed), INT64_MAX));
    const auto value = static_cast<std::int64_t>(*whole);
    if (std::find(seeds.begin(), seeds.end(), value) != seeds.end())
      top.fail("seeds", fmt::format("has {} twice", value));
    seeds.push_back(value);
  }
  return seeds;
}

std::vector<Evaluation> read_evaluations(Section& top) {
  const Json* const json = top.find("evaluate");
  if (json == nullptr) return {{.name = "validation", .data = {}}};
  if (!json->is_array() || json->size() == 0)
    top.fail("evaluate", "must be a list with at least one evaluation");
  const SectionKeys keys{"", "", kEvaluation};
  std::vector<Evaluation> evaluations;
  for (std::size_t i = 0; i < json->size(); ++i) {
    Section section(&(*json)[i], fmt::format("evaluate.{}", i), top.source(), keys);
    Evaluation evaluation{.name = section.text("name"), .data = {}};
    check_name(section, "name", evaluation.name);
    for (const Evaluation& other : evaluations)
      if (other.name == evaluation.name)
        section.fail("name", fmt::format("is \"{}\", which another evaluation has", evaluation.name));
    evaluation.max_tokens = section.integer("max_tokens", 1, INT64_MAX, std::int64_t{0});
    if (const Json* const data = section.find("data")) {
      if (data->is_string()) evaluation.data.push_back(data->text());
      if (data->is_array())
        for (const Json& path : data->array()) {
          if (!path.is_string()) section.fail("data", fmt::format("has {}, which is no path", to_line(path)));
          evaluation.data.push_back(path.text());
        }
      if (evaluation.data.empty())
        section.fail("data", "must be a path or a list of paths, as eval --data takes them");
    }
    section.finish();
    evaluations.push_back(std::move(evaluation));
  }
  return evaluations;
}

Budget read_budget(Section& top) {
  const Json* const json = top.find("budget");
  if (json == nullptr) return {};
  const SectionKeys keys{"", "", kBudget};
  Section section(json, "budget", top.source(), keys);
  Budget budget;
  for (const auto& [key, of] : {std::pair{"tokens", Budget::Of::tokens}, std::pair{"flops", Budget::Of::flops},
                                std::pair{"minutes", Budget::Of::minutes}}) {
    if (!section.has(key)) {
      section.find(key);
      continue;
    }
    if (budget.of != Budget::Of::steps)
      section.fail(key, "is a second budget; give one of tokens, flops and minutes");
    budget = {of, section.number(key, Interval{0, 1e30, true, true})};
  }
  section.finish();
  if (budget.of == Budget::Of::steps) top.fail("budget", "is empty; give one of tokens, flops and minutes");
  return budget;
}

// name -> path; one without a name where the file has `config`, none where every variant brings its own.
std::vector<std::pair<std::string, std::string>> read_configs(Section& top) {
  std::vector<std::pair<std::string, std::string>> configs;
  if (top.has("config")) configs.emplace_back("", top.text("config"));
  if (!top.has("config")) top.find("config");
  const Json* const json = top.find("configs");
  if (json == nullptr) return configs;
  if (!configs.empty()) top.fail("configs", "is there beside config; give one of them", "config");
  if (!json->is_object() || json->object().empty())
    top.fail("configs",
             "must be an object of names and paths, like {\"mixtral\": \"configs/lpr_small/mixtral.json\"}");
  for (const JsonMember& member : json->object()) {
    if (!member.value.is_string() || !can_be_named(member.key))
      top.fail("configs", fmt::format("has {}: a name of letters, digits and . _ + - = and a path are needed",
                                      json_string(member.key)));
    configs.emplace_back(member.key, member.value.text());
  }
  return configs;
}

}  // namespace

Spec parse_spec(const std::string& text, const std::string& origin) {
  const Json json = parse_commented_json(text, origin);
  const Source source(origin);
  const SectionKeys keys{"", "", kTop};
  Section top(&json, "", source, keys);
  Spec spec;
  auto configs = read_configs(top);
  const bool without = configs.empty();
  if (without) configs.emplace_back("", "");
  const std::vector<Point> grid = read_grid(top);
  const std::vector<std::string> for_all = read_set(top);
  const std::vector<Row> rows = read_rows(top, grid);
  spec.seeds = read_seeds(top);
  spec.evaluations = read_evaluations(top);
  spec.budget = read_budget(top);
  spec.detect = top.number("detect", Interval{0, 1e3, true, true}, 0.0);
  spec.jobs = top.integer("jobs", 1, 4096, std::int64_t{1});
  spec.threads = top.integer("threads", 1, 4096, std::int64_t{1});
  std::string baseline = rows.front().name;
  const bool has_baseline = top.has("baseline");
  if (has_baseline) {
    baseline = top.text("baseline");
  } else {
    top.find("baseline");
  }
  top.finish();

  const auto row_of = [&](const std::string& name) -> const Row* {
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.name == name; });
    return found == rows.end() ? nullptr : &*found;
  };
  if (row_of(baseline) == nullptr)
    top.fail("baseline", fmt::format("is \"{}\", which is the name of no variant", baseline));
  for (const auto& [config_name, config_path] : configs) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      const std::string path = fmt::format("variants.{}", i);
      if (without && !row.config)
        source.fail(path + ".config", "is not there, and the file names no config either");
      const Row* const against = row_of(row.against.value_or(baseline));
      if (against == nullptr)
        source.fail(path + ".against", fmt::format("is \"{}\", which is the name of no variant", *row.against));
      const std::string prefix = config_name.empty() ? "" : config_name + "_";
      for (const Point& point : row.points) {
        Variant variant{prefix + name_at(row.name, point), row.config.value_or(config_path), for_all, ""};
        variant.overrides.insert(variant.overrides.end(), row.overrides.begin(), row.overrides.end());
        for (const Setting& setting : point) variant.overrides.push_back(setting.override_text);
        // Compared at the same point of the grid where the baseline has that, else with its only one.
        if (against->points.size() == 1) {
          variant.against = prefix + name_at(against->name, against->points.front());
        } else if (!row.own_grid && !against->own_grid) {
          variant.against = prefix + name_at(against->name, point);
        } else if (against != &row) {
          source.fail(path + ".against",
                      fmt::format("is \"{}\", which has several points of a grid; compare with one variant",
                                  against->name));
        }
        if (variant.against == variant.name) variant.against.clear();
        spec.variants.push_back(std::move(variant));
      }
    }
  }
  std::set<std::string> names;
  for (const Variant& variant : spec.variants)
    if (!names.insert(variant.name).second)
      throw_input("{}: two variants are called \"{}\"; rename one", origin, variant.name);
  for (const Variant& variant : spec.variants)
    for (const std::string& text_of : variant.overrides)
      if (text_of.starts_with("train.seed=") || text_of.starts_with("parallel.threads="))
        throw_input("{}: variant \"{}\" sets {}; seeds and threads are keys of the sweep", origin, variant.name,
                    text_of);
      else if (text_of.starts_with("train.steps=") && spec.budget.of != Budget::Of::steps)
        throw_input(
            "{}: variant \"{}\" sets {}, and the file has a budget, which says how long runs train; remove one",
            origin, variant.name, text_of);
  if (static_cast<std::int64_t>(spec.variants.size() * spec.seeds.size()) > kMostRuns)
    throw_input("{}: more than {} runs", origin, kMostRuns);
  return spec;
}

Spec read_spec(const std::string& path) { return parse_spec(read_text_file(path), path); }

}  // namespace switchyard::sweep
