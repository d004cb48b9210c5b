#pragma once
#include "model/parameters.h"
namespace switchyard {
using model::Init;
using model::Parameter;
using model::ParameterStore;
using model::Sharding;
}  // namespace switchyard
