// Rotary embedding: rope_theta, rope_scaling and rope_parameters of a Hugging Face config.json <->
// config::Rope.
#pragma once

#include "config/layouts.h"

namespace switchyard::config {

// Reads the keys from `section`, the model's. Throws InputError: a kind that is not known, a key that the kind
// does not have, two places that disagree, values from which no angles follow.
Rope read_rope(Section& section, const Layout& layout, std::int64_t max_position_embeddings);
// Puts rope_theta and, where it is scaled, rope_scaling.
void write_rope(const Rope& rope, Json::Object& out);

// YaRN's m(s, k): 1 where the factor s is at most 1, else 0.1 k ln(s) + 1.
double yarn_mscale(double factor, double k);

}  // namespace switchyard::config
