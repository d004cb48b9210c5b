// Every key that a configuration may hold, section by section: those of fields.h, and those of a Hugging Face
// config.json. A Section (section.h) checks that it reads exactly the keys listed for it, so this table cannot
// drift from the reading code; a test holds docs/configuration.md to it.
#pragma once

#include <span>
#include <string_view>

namespace switchyard::config {

struct SectionKeys {
  std::string_view name;    // "train"; of an array's elements "data.train.N"; "" is the top level
  std::string_view layout;  // of `model`: the layout whose keys these are; else empty
  std::span<const std::string_view> keys;
};

std::span<const SectionKeys> all_sections();
// The keys of one section. The name, and for `model` the layout, must exist.
const SectionKeys& section_keys(std::string_view name, std::string_view layout = "");

// Keys of a Hugging Face config.json that say nothing about the computation of a training step: accepted in
// `model`, not kept.
std::span<const std::string_view> ignored_model_keys();

}  // namespace switchyard::config
