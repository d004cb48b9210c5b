// Tokens that are drawn evenly from a vocabulary: speed is measured without data.
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "train/token_data.h"

namespace switchyard::bench {

// A function of the seed and the place alone.
std::vector<std::int32_t> random_tokens(std::int64_t n, std::int64_t vocab_size, std::uint64_t seed);

// What `run` trains on in place of its own data: so many windows of random tokens, one domain, nothing to
// validate on. They have no documents: run.data.document_mask becomes false.
train::TrainingData random_data(config::Run& run, std::int64_t windows);

}  // namespace switchyard::bench
