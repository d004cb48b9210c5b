// Any text as a run's configuration or a model's config.json: refused with one line, or what is written of it
// is read as the same.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "config/load.h"
#include "one_line.h"

namespace {

using namespace switchyard;

// The router module is not linked; these stand for its schemas, with an option of each type.
const std::vector<config::RouterSchema>& routers() {
  static const std::vector<config::RouterSchema> all = [] {
    config::RouterSchema sigmoid{.type = "sigmoid_group", .balance_coef = 0};
    sigmoid.options = {{.key = "speed", .fallback = 0.001, .range = {0, 1}},
                       {.key = "clusters", .fallback = std::int64_t{4}, .range = {1, 64}},
                       {.key = "similarity", .fallback = std::string("cosine"), .choices = {"cosine", "dot"}},
                       {.key = "normalise", .fallback = true}};
    return std::vector<config::RouterSchema>{{.type = "softmax_topk"}, sigmoid};
  }();
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  attempt([&] {
    const config::Run run = config::parse_run(text, "input", {}, routers());
    const std::string written = config::to_resolved_json(run);
    if (config::to_resolved_json(config::parse_run(written, "written", {}, routers())) != written) std::abort();
  });
  attempt([&] {
    const config::Model model = config::parse_model(text, "input");
    if (config::parse_model(config::model_to_hf_json(model), "written") != model) std::abort();
  });
  return 0;
}
