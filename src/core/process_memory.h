// Memory of this process and of the machine that it runs on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace switchyard {

// Bytes of the process's largest resident set so far, or since reset_peak_resident().
std::int64_t peak_resident();
// False where the system does not let it: the peak is then that of the whole process.
bool reset_peak_resident();

// Bytes that are resident now.
std::int64_t resident_memory();

// As the kernel counts it, in bytes, whatever a container may use of it (core/control_group.h).
struct SystemMemory {
  std::optional<std::int64_t> total, available;  // no value where the system does not say
  std::int64_t swap = 0, swap_used = 0;
};
// `root`: where /proc is; a test has its own.
SystemMemory system_memory(const std::filesystem::path& root = "/");

// Bytes that a new program could take without the system having to swap, or that a limit leaves; no value where
// the system does not say.
std::optional<std::int64_t> available_memory(const std::filesystem::path& root = "/");

// The same with what sets it. A limit of the address space (ulimit -v) is each process's own; what the machine
// or a control group (a container) has is for all of its processes together.
struct MemoryRoom {
  std::int64_t shared = INT64_MAX, own = INT64_MAX;
  std::string of_shared = "this machine";  // or "this machine's control group"
};
MemoryRoom memory_room(const std::filesystem::path& root = "/");

}  // namespace switchyard
