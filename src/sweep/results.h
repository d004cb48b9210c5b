// The runs of a sweep, and the table of them.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "sweep/spec.h"

namespace switchyard::sweep {

// Where a run of a sweep lies: OUT/NAME_seedN.
std::filesystem::path run_path(const std::filesystem::path& out, const Variant& variant, std::int64_t seed);
// Of the i-th evaluation: RUN/eval.json, RUN/eval_NAME.json.
std::filesystem::path evaluation_path(const std::filesystem::path& run, const Spec& spec, std::size_t i);

// What one run ended with.
struct RunResult {
  std::vector<double> loss;               // of each evaluation, nats a token
  std::vector<std::int64_t> tokens;       // that each was judged on
  std::optional<double> gini, min_max;    // of the first evaluation; none of a model without experts
  std::map<int, double> validation_gini;  // while it trained: by percent of its steps, of kMoments
  double tokens_per_second = 0;           // the median of its steps
  std::int64_t steps = 0;
};
inline constexpr int kMoments[] = {10, 25, 50, 75, 100};

// Reads a run that is trained and evaluated. Throws InputError where a file is not what this program wrote.
RunResult read_result(const std::filesystem::path& run, const Spec& spec);

// By variant, then by seed; none: the run failed or has not run.
using Results = std::vector<std::vector<std::optional<RunResult>>>;

// The whole table as JSON: per variant the means with their standard errors, each seed's figures, and the
// paired difference to what it is compared with, over the seeds that both have.
Json to_json(const Spec& spec, const Results& results);
// The same for people, as Markdown.
std::string to_markdown(const Spec& spec, const Json& table);

}  // namespace switchyard::sweep
