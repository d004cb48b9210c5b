// How many parameters a model has, and how many work on one token.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"

namespace switchyard::model {

struct ParameterCount {
  std::int64_t total = 0;          // of the main model: the figures that are published
  std::int64_t active = 0;         // all but the experts that a token is not sent to
  std::int64_t active_matmul = 0;  // of the active ones, those in matrix products: 6 FLOPs a token in training
  std::int64_t mtp =
      0;  // besides, in the layers for multi-token prediction; embedding and head are the main model's
  // What `total` is made of: ("embedding", values), ("attention", ...), ... ; a part without values is left
  // out.
  std::vector<std::pair<std::string, std::int64_t>> parts;
};

// From the configuration alone; nothing is allocated.
ParameterCount count_parameters(const config::Model& model, const config::Router& router);

}  // namespace switchyard::model
