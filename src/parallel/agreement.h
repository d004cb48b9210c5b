// What fails on one rank has failed on all: the ranks agree before they go on, so that none waits for another
// that has given up, and all end with the same line.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/group.h"

namespace switchyard::parallel {

// Calls f on every rank; f speaks with no other rank. Where it throws on one, all throw, InputError or else
// RunError, the text of the first rank that failed, "rank 2: ..."; without the number where all say the same.
// A rank alone throws what f threw.
void together(const Group& group, const std::function<void()>& f);

// The same; returns what f has returned on each rank, on every rank. Small texts.
std::vector<std::string> gather(const Group& group, const std::function<std::string()>& f);

// Calls f on the first rank alone, for all of them. Where it throws, all throw its text. Returns what f has
// returned, on every rank.
std::string by_first(const Group& group, const std::function<std::string()>& f);

}  // namespace switchyard::parallel
