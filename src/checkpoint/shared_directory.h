// Whether all ranks see one and the same run directory.
#pragma once

#include <chrono>
#include <filesystem>

#include "parallel/group.h"

namespace switchyard::checkpoint {

// The first rank leaves a token in the directory, which is there, and all look for it, each by the path that it
// has; the token is gone afterwards. Throws InputError on every rank, naming the lowest rank that does not see
// it, its machine and its path. Asked before the first step: a save would fail after hours, or each machine
// would hold a part of every checkpoint.
// `patience`: file systems of a network may show a file of another machine some seconds late.
void check_shared_directory(const std::filesystem::path& run_directory, const parallel::Group& all,
                            std::chrono::milliseconds patience = std::chrono::seconds(10));

}  // namespace switchyard::checkpoint
