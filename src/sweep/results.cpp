#include "sweep/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/file.h"
#include "core/statistics.h"
#include "sweep/statistics.h"

namespace switchyard::sweep {

namespace {

namespace fs = std::filesystem;

Json read_object(const fs::path& path) {
  std::optional<Json> json = try_parse_json(read_text_file(path));
  if (!json || !json->is_object())
    throw_input("{}: is no JSON object; remove the file, and it is made again", path.string());
  return std::move(*json);
}

double number_at(const Json& json, std::string_view key, const fs::path& path) {
  const Json* const found = json.find(key);
  if (found == nullptr || !found->is_number())
    throw_input("{}: {}: no number is there; remove the file, and it is made again", path.string(), key);
  return found->number();
}

// What metrics.jsonl says of the run's steps.
void read_metrics(RunResult& result, const fs::path& path) {
  const std::string text = read_text_file(path);
  std::vector<double> speeds;
  std::map<std::int64_t, double> gini_at;  // by step
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const auto line = try_parse_json(std::string_view(text).substr(begin, end - begin));
    begin = end + 1;
    if (!line || !line->is_object()) continue;  // a torn last line
    if (const Json* step = line->find("step"); step != nullptr && step->is_integer()) {
      result.steps = std::max(result.steps, step->integer());
      const Json* const balance = line->find("val_balance");
      const Json* const layers = line->find("val_layers");  // none: a model without experts
      if (balance != nullptr && layers != nullptr && layers->size() > 0 && (*balance)["gini"].is_number())
        gini_at[step->integer()] = (*balance)["gini"].number();
    }
    if (const Json* speed = line->find("tokens_per_second"); speed != nullptr && speed->is_number())
      speeds.push_back(speed->number());
  }
  if (!speeds.empty()) result.tokens_per_second = quantile_of(speeds, 0.5);
  // A moment that no validation is near has no figure.
  for (const int percent : kMoments) {
    const double wanted = percent / 100.0 * static_cast<double>(result.steps);
    for (const auto& [step, gini] : gini_at)
      if (std::abs(static_cast<double>(step) - wanted) <= 0.01 * static_cast<double>(result.steps))
        result.validation_gini[percent] = gini;
  }
}

Json summary_of(const std::vector<double>& values) {
  Json json;
  if (values.empty()) return json;
  json["mean"] = mean_of(values);
  const auto error = standard_error(values);
  json["std_error"] = error ? Json(*error) : Json();
  json["each"] = Json::list(values);
  return json;
}

// "4.0103 ± 0.0021"
std::string with_error(const Json& summary, int digits) {
  if (summary.is_null()) return "";
  const std::string mean = fmt::format("{:.{}f}", summary["mean"].number(), digits);
  return summary["std_error"].is_number()
             ? fmt::format("{} ± {:.{}f}", mean, summary["std_error"].number(), digits)
             : mean;
}

}  // namespace

fs::path run_path(const fs::path& out, const Variant& variant, std::int64_t seed) {
  return out / fmt::format("{}_seed{}", variant.name, seed);
}

fs::path evaluation_path(const fs::path& run, const Spec& spec, std::size_t i) {
  return run / (i == 0 ? std::string("eval.json") : "eval_" + spec.evaluations[i].name + ".json");
}

RunResult read_result(const fs::path& run, const Spec& spec) {
  RunResult result;
  for (std::size_t i = 0; i < spec.evaluations.size(); ++i) {
    const fs::path path = evaluation_path(run, spec, i);
    const Json json = read_object(path);
    result.loss.push_back(number_at(json, "loss", path));
    result.tokens.push_back(static_cast<std::int64_t>(number_at(json, "tokens", path)));
    const Json& balance = json["balance"];
    if (i == 0 && balance["layers"].size() > 0) {
      result.gini = number_at(balance, "gini", path);
      result.min_max = number_at(balance, "min_max", path);
    }
  }
  read_metrics(result, run / "metrics.jsonl");
  return result;
}

Json to_json(const Spec& spec, const Results& results) {
  Json table;
  table["evaluations"] = Json(Json::Array{});
  for (const Evaluation& evaluation : spec.evaluations) table["evaluations"].push_back(evaluation.name);
  table["seeds"] = Json::list(spec.seeds);
  if (spec.detect > 0) table["detect"] = spec.detect;
  Json rows(Json::Array{});
  const auto index_of = [&](const std::string& name) {
    return static_cast<std::size_t>(std::find_if(spec.variants.begin(), spec.variants.end(),
                                                 [&](const Variant& variant) { return variant.name == name; }) -
                                    spec.variants.begin());
  };
  for (std::size_t v = 0; v < spec.variants.size(); ++v) {
    const Variant& variant = spec.variants[v];
    // Each figure of the seeds that have run.
    const auto gather = [&](const auto& figure) {
      std::vector<double> values;
      for (const auto& run : results[v])
        if (run)
          if (const std::optional<double> value = figure(*run)) values.push_back(*value);
      return values;
    };
    Json row;
    row["name"] = variant.name;
    row["config"] = variant.config;
    row["set"] = Json::list(variant.overrides);
    std::vector<std::int64_t> seeds, missing;
    for (std::size_t s = 0; s < spec.seeds.size(); ++s)
      (results[v][s] ? seeds : missing).push_back(spec.seeds[s]);
    row["seeds"] = Json::list(seeds);
    row["seeds_without_result"] = Json::list(missing);
    for (std::size_t i = 0; i < spec.evaluations.size(); ++i) {
      Json entry = summary_of(gather([&](const RunResult& run) { return std::optional(run.loss[i]); }));
      if (!entry.is_null())
        for (const auto& run : results[v])
          if (run) entry["tokens"] = run->tokens[i];
      row["loss"][spec.evaluations[i].name] = std::move(entry);
    }
    row["gini"] = summary_of(gather([](const RunResult& run) { return run.gini; }));
    row["min_max"] = summary_of(gather([](const RunResult& run) { return run.min_max; }));
    for (const int percent : kMoments) {
      const auto values = gather([&](const RunResult& run) -> std::optional<double> {
        const auto found = run.validation_gini.find(percent);
        return found == run.validation_gini.end() ? std::nullopt : std::optional(found->second);
      });
      if (!values.empty()) row["validation_gini"][std::to_string(percent)] = summary_of(values);
    }
    row["tokens_per_second"] =
        summary_of(gather([](const RunResult& run) { return std::optional(run.tokens_per_second); }));
    if (!seeds.empty())
      for (const auto& run : results[v])
        if (run) row["steps"] = run->steps;

    if (!variant.against.empty()) {
      const std::size_t b = index_of(variant.against);
      std::vector<double> differences, base_losses, speed_ratios;
      std::vector<std::int64_t> pairs;
      for (std::size_t s = 0; s < spec.seeds.size(); ++s) {
        const auto &one = results[v][s], &base = results[b][s];
        if (!one || !base) continue;
        if (one->tokens[0] != base->tokens[0])
          throw_input(
              "{}_seed{} is judged on {} tokens, {}_seed{} on {}; a paired difference needs the same ones: "
              "remove "
              "the eval.json of the one that is wrong, and it is made again",
              variant.name, spec.seeds[s], one->tokens[0], variant.against, spec.seeds[s], base->tokens[0]);
        differences.push_back(one->loss[0] - base->loss[0]);
        base_losses.push_back(base->loss[0]);
        if (base->tokens_per_second > 0)
          speed_ratios.push_back(one->tokens_per_second / base->tokens_per_second);
        pairs.push_back(spec.seeds[s]);
      }
      Json against;
      against["name"] = variant.against;
      against["seeds"] = Json::list(pairs);
      if (!differences.empty()) {
        against["loss_difference"] = summary_of(differences);
        against["percent"] = 100 * mean_of(differences) / mean_of(base_losses);
        if (const auto test = paired_test(differences)) {
          const double deviation = test->std_error * std::sqrt(static_cast<double>(differences.size()));
          if (std::isfinite(test->t)) against["t"] = test->t;
          against["p"] = test->p;
          if (const auto n = seeds_needed(test->mean, deviation)) against["seeds_to_see_it"] = *n;
          if (spec.detect > 0)
            if (const auto n = seeds_needed(spec.detect, deviation)) against["seeds_to_see_detect"] = *n;
        }
        if (!speed_ratios.empty()) against["speed_ratio"] = summary_of(speed_ratios);
      }
      row["against"] = std::move(against);
    }
    rows.push_back(std::move(row));
  }
  table["variants"] = std::move(rows);
  return table;
}

std::string to_markdown(const Spec& spec, const Json& table) {
  std::vector<std::vector<std::string>> cells;
  std::vector<std::string> header{"variant", "seeds"};
  for (const Evaluation& evaluation : spec.evaluations)
    header.push_back(fmt::format("loss, {}", evaluation.name));
  for (const char* title : {"against", "difference", "%", "p", "seeds to see it"}) header.emplace_back(title);
  if (spec.detect > 0) header.push_back(fmt::format("seeds to see {:g}", spec.detect));
  for (const char* title : {"Gini", "min-max"}) header.emplace_back(title);
  for (const int percent : kMoments) header.push_back(fmt::format("Gini at {} %", percent));
  header.emplace_back("tokens/s");
  cells.push_back(header);
  for (const Json& row : table["variants"].array()) {
    const std::size_t done = row["seeds"].size(), missing = row["seeds_without_result"].size();
    std::vector<std::string> line{row["name"].text(), missing == 0
                                                          ? std::to_string(done)
                                                          : fmt::format("{} of {}", done, done + missing)};
    for (const Evaluation& evaluation : spec.evaluations)
      line.push_back(with_error(row["loss"][evaluation.name], 4));
    const Json& against = row["against"];
    line.push_back(against.is_null() ? "" : against["name"].text());
    const Json& difference = against["loss_difference"];
    std::string change = with_error(difference, 4);
    if (!difference.is_null() && difference["mean"].number() >= 0) change.insert(0, 1, '+');
    // A seed that the other lacks makes no pair.
    if (const std::size_t pairs = against["seeds"].size(); !difference.is_null() && pairs < done)
      change += fmt::format(" ({} pair{})", pairs, pairs == 1 ? "" : "s");
    line.push_back(std::move(change));
    line.push_back(difference.is_null() ? "" : fmt::format("{:+.2f}", against["percent"].number()));
    line.push_back(against["p"].is_number() ? fmt::format("{:.2g}", against["p"].number()) : "");
    const auto whole = [&](const char* key) {
      return against[key].is_integer() ? std::to_string(against[key].integer()) : "";
    };
    line.push_back(whole("seeds_to_see_it"));
    if (spec.detect > 0) line.push_back(whole("seeds_to_see_detect"));
    line.push_back(with_error(row["gini"], 3));
    line.push_back(with_error(row["min_max"], 3));
    for (const int percent : kMoments)
      line.push_back(with_error(row["validation_gini"][std::to_string(percent)], 3));
    line.push_back(row["tokens_per_second"].is_null()
                       ? ""
                       : fmt::format("{:.0f}", row["tokens_per_second"]["mean"].number()));
    cells.push_back(std::move(line));
  }
  // A column without a word says nothing.
  std::string text;
  std::vector<std::size_t> columns;
  for (std::size_t c = 0; c < header.size(); ++c)
    if (std::any_of(cells.begin() + 1, cells.end(), [&](const auto& line) { return !line[c].empty(); }))
      columns.push_back(c);
  for (std::size_t r = 0; r < cells.size(); ++r) {
    text += "|";
    for (const std::size_t c : columns) text += fmt::format(" {} |", cells[r][c]);
    text += "\n";
    if (r != 0) continue;
    text += "|";
    for (std::size_t i = 0; i < columns.size(); ++i) text += "---|";
    text += "\n";
  }
  return text;
}

}  // namespace switchyard::sweep
