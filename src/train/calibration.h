// What routers keep beside their trained weights (running means, thresholds, biases), fitted to a model that
// they were not trained in: forward passes over data, and what routers do after each optimizer step. No trained
// weight changes.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "config/config.h"
#include "core/context.h"
#include "model/transformer.h"
#include "train/token_data.h"

namespace switchyard::train {

struct CalibrationSettings {
  std::int64_t seq_len;
  std::int64_t batch;                       // windows of one step
  std::int64_t tokens;                      // to be read, rounded up to whole steps; at most what there is
  std::optional<std::int64_t> begin_token;  // set: attention stops at document borders
};

// Of so many windows as the settings ask for, or as there are of seq_len tokens. Throws InputError where there
// is not one.
std::int64_t calibration_steps(const std::vector<Domain>& domains, const CalibrationSettings& settings);

// The router to make a model of that is going to be calibrated in so many steps: without noise, and where a
// running mean would keep so much that its initial value were still seen at the end, a step keeps less: 1 - 4 /
// n, of which n steps leave some 2 percent.
config::Router calibrating(const config::Router& router, std::int64_t steps);

// Calls `work` with each batch, of whole windows: evenly spread over each domain, the domains in turn. Returns
// the tokens in them.
std::int64_t for_each_batch(const std::vector<Domain>& domains, const CalibrationSettings& settings,
                            std::int64_t sliding_window, Context& ctx,
                            const std::function<void(model::Batch batch)>& work);

// `model` is made for evaluation, and is planned anew: plan() it again afterwards. Windows are taken from the
// domains in turn, evenly spread over each. Every rank that calls it does all of it, so that the result does
// not depend on their number. Returns the tokens that were read.
std::int64_t calibrate(model::Transformer& model, const std::vector<Domain>& domains,
                       const CalibrationSettings& settings, Context& ctx);

}  // namespace switchyard::train
