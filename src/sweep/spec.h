// What a sweep is to run: a JSON file with comments (docs/sweeps.md) -> the list of runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace switchyard::sweep {

// How long each run trains, where the sweep says it instead of train.steps: the same for all of them, so that
// routers are compared at equal tokens, equal work or equal time.
struct Budget {
  enum class Of { steps, tokens, flops, minutes } of = Of::steps;  // steps: as the configurations say
  double amount = 0;                                               // of a run: tokens, FLOPs, minutes
};

// One evaluation of every run, after its training. The first of a sweep is what runs are compared by.
struct Evaluation {
  std::string name;  // "test"; its result is RUN/eval.json of the first one, else RUN/eval_NAME.json
  std::vector<std::string> data;  // as `eval --data` takes it; none: the run's data.validation
  std::int64_t max_tokens = 0;    // of a domain; 0: all
};

// One of the things compared: a configuration and what is changed in it.
struct Variant {
  std::string name;                    // a part of directory names
  std::string config;                  // path
  std::vector<std::string> overrides;  // "router.type=lpr", in the order in which they hold
  std::string against;  // the variant whose runs of the same seeds it is compared with; empty: none
};

struct Spec {
  std::vector<Variant> variants;  // every configuration with every variant at every point of the grid
  std::vector<std::int64_t> seeds;
  std::vector<Evaluation> evaluations;  // at least one
  Budget budget;
  double detect = 0;  // the difference in loss, in nats, that a sweep should be able to see; 0: none stated
  std::int64_t jobs = 1, threads = 1;
};

// Reads the file. Throws InputError, with file and JSON path: a key that is not known, a name that cannot be
// part of a directory's name or is there twice, a baseline that is none of the variants.
Spec read_spec(const std::string& path);
Spec parse_spec(const std::string& text, const std::string& origin);

}  // namespace switchyard::sweep
