// What lies beside a model whose router is not its layout's own, so that transformers computes it.
#pragma once

#include "checkpoint/tokenizer_record.h"
#include "config/config.h"

namespace switchyard::checkpoint {

// (name, content): tools/modeling_switchyard.py, which the program carries, where config::beyond_layout finds
// something; else none.
NamedTexts modeling_files(const config::Model& model, const config::Router& router);

}  // namespace switchyard::checkpoint
