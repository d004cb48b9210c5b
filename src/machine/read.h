// Facts that the kernel tells of: files of /proc and /sys, limits and variables of this process. `root` is
// where /proc, /sys and /dev are; a test has its own. What cannot be read is left out.
#pragma once

#include <filesystem>

#include "machine/facts.h"

namespace switchyard::machine {

ProcessorFacts read_processor(const std::filesystem::path& root = "/");
// What this very processor says of itself, and what the kernel lets this process use of it.
void ask_processor(ProcessorFacts& facts);

// All but `threads` and `ranks`.
CoreFacts read_cores(const std::filesystem::path& root = "/");
MemoryFacts read_memory(const std::filesystem::path& root = "/");
LimitFacts read_limits(const std::filesystem::path& root = "/");
// Cards, drivers and files of devices, without the CUDA backend.
void read_devices(CudaFacts& facts, const std::filesystem::path& root = "/");
std::string read_kernel();  // name and release

// Whether the system lets a process read another's memory, asked of the own: containers forbid the call.
bool may_read_memory();

// Processor time since the start of the machine, in ticks of all its cores, and pages that were swapped.
struct Ticks {
  std::int64_t all = 0, busy = 0, stolen = 0, own = 0;  // own: of this process
  std::int64_t swapped_pages = 0;
};
Ticks read_ticks(const std::filesystem::path& root = "/");
// Fills stolen, others and swapped_pages with what was between the two.
void set_shares(RateFacts& rates, const Ticks& before, const Ticks& after);

}  // namespace switchyard::machine
