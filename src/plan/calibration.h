// The constants that turn the closed forms of this folder into bytes and seconds: all of them, each with what
// it was taken from. They are few and of the hardware and of kinds of software, never of one run. Fitted to the
// runs of tools/published_runs.json by tools/check_plan.py --fit, which also says how far each study is off
// when the others alone are fitted to; docs/planner.md has the errors.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace switchyard::plan {

struct Calibration {
  // Shares of a device's published peak that large matrix products reach.
  double product_bf16 = 0.75;
  double product_fp8 = 0.77;
  double product_fp32 = 0.5;  // not fitted: no published run is in float32
  double attention = 0.62;    // of the bf16 peak: tiled attention with the causal half left out
  double bandwidth = 0.74;    // share of the published bandwidth of memory
  double link = 0.66;         // of links within a domain
  double network = 0.94;      // of the network between domains
  // Shares of the time of exchanges that computing does not hide.
  double exchange_exposed = 0.58;     // of tokens to experts and back
  double exchange_overlapped = 0.27;  // the same with overlap
  double tensor_exposed = 0.73;
  double context_exposed = 0.4;
  double pipeline_exposed = 0.7;
  double sums_exposed = 0.12;  // of gradients and gathered weights
  // Seconds that a layer of one micro-batch takes besides, forward and backward: gaps between its kernels,
  // their first and last waves. Of one without experts, which has a third of the kernels, a third.
  double layer_fixed = 0.39e-3;
  // Seconds of a step besides, in Python: the optimizer's many small tensors, norms, data, logs.
  double step_fixed = 0.28;
  // Rows of the rank of experts that has most, over the mean, where a router decides.
  double imbalance = 1.40;
  double elementwise = 0.74;        // passes over memory of what is no product, as a multiple of the least
  double elementwise_torch = 2.46;  // the same in PyTorch's own modules
  // Products of experts take (1 + half_rows / rows of an expert) (1 + half_width / its width) times as long as
  // large ones of as many FLOPs: tiles are not full, and each weight serves few rows.
  double half_rows = 300;
  double half_width = 100;
  // Bytes that conversions of experts' operands to FP8 move, as a multiple of reading once and writing twice,
  // on devices whose products take no scales of blocks.
  double fp8_casts = 7.1;
  // Memory.
  double buffers = 0.8e9;  // bytes of libraries' workspaces: the mean of golden values less the closed form
  double logit_bytes_torch = 10;  // PyTorch's own loss: bf16, and float32 twice
  double logit_bytes = 6;         // bytes a logit: bf16, and float32 for its loss and gradient
};

// All of them by name.
struct Constant {
  const char* name;
  double Calibration::*member;
};
std::span<const Constant> constants();

// The built-in ones with those of a JSON file in place: {"product_bf16": 0.7}; of an array of such objects one
// set each. Throws InputError.
std::vector<Calibration> read_calibrations(const std::string& path);

}  // namespace switchyard::plan
