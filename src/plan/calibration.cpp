#include "plan/calibration.h"

#include <cmath>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::plan {

std::span<const Constant> constants() {
  using C = Calibration;
  static constexpr Constant kConstants[] = {{"product_bf16", &C::product_bf16},
                                            {"product_fp8", &C::product_fp8},
                                            {"product_fp32", &C::product_fp32},
                                            {"attention", &C::attention},
                                            {"bandwidth", &C::bandwidth},
                                            {"link", &C::link},
                                            {"network", &C::network},
                                            {"exchange_exposed", &C::exchange_exposed},
                                            {"exchange_overlapped", &C::exchange_overlapped},
                                            {"tensor_exposed", &C::tensor_exposed},
                                            {"context_exposed", &C::context_exposed},
                                            {"pipeline_exposed", &C::pipeline_exposed},
                                            {"sums_exposed", &C::sums_exposed},
                                            {"layer_fixed", &C::layer_fixed},
                                            {"step_fixed", &C::step_fixed},
                                            {"imbalance", &C::imbalance},
                                            {"elementwise", &C::elementwise},
                                            {"elementwise_torch", &C::elementwise_torch},
                                            {"half_rows", &C::half_rows},
                                            {"half_width", &C::half_width},
                                            {"fp8_casts", &C::fp8_casts},
                                            {"buffers", &C::buffers},
                                            {"logit_bytes", &C::logit_bytes},
                                            {"logit_bytes_torch", &C::logit_bytes_torch}};
  return kConstants;
}

namespace {

Calibration calibration_of(const Json& json, const std::string& path) {
  if (!json.is_object()) throw_input("{}: is {}, expected an object of constants", path, describe(json));
  Calibration calibration;
  for (const auto& [key, value] : json.object()) {
    const Constant* found = nullptr;
    for (const Constant& each : constants())
      if (key == each.name) found = &each;
    if (found == nullptr)
      throw_input("{}: {}: there is no such constant; src/plan/calibration.h has them", path, key);
    if (!value.is_number() || !std::isfinite(value.number()) || value.number() < 0)
      throw_input("{}: {}: is {}, expected a number of 0 or more", path, key, describe(value));
    calibration.*(found->member) = value.number();
  }
  return calibration;
}

}  // namespace

std::vector<Calibration> read_calibrations(const std::string& path) {
  const Json json = parse_json(read_text_file(path), path);
  if (!json.is_array()) return {calibration_of(json, path)};
  std::vector<Calibration> sets;
  for (const Json& each : json.array()) sets.push_back(calibration_of(each, path));
  if (sets.empty()) throw_input("{}: is an empty list, expected an object of constants", path);
  return sets;
}

}  // namespace switchyard::plan
