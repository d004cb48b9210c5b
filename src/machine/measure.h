// Facts that have to be tried: the disk that runs are written to, and what other programs say of themselves.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "machine/facts.h"

namespace switchyard::machine {

// Of the directory, or of the nearest one above that exists; nothing of it stays. `measured`: writes up to 64
// MiB, waits until they are on the disk, and reads them from there; a second or two at most on a disk that
// answers. Else a page is written.
DiskFacts look_at_disk(const std::filesystem::path& directory, bool measured);

// What a program that is found by PATH writes to standard output; no value where there is none, or it has not
// ended after so many seconds, or with another exit code than 0.
std::optional<std::string> output_of(const std::vector<std::string>& command, double seconds);

// mpirun: launcher and is_root.
void ask_mpirun(MpiFacts& facts);
// python3 and the modules that tools/ needs.
PythonFacts ask_python();

}  // namespace switchyard::machine
