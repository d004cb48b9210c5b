// The host's memory, as kernels see it: a device reaches what is page-locked, and nothing else of it.
#pragma once

#include <cstddef>

namespace simt {

void* lock_pages(std::size_t bytes);  // allocates them
void release_pages(void* memory);     // of lock_pages(), or null
bool is_page_locked(const void* memory, std::size_t bytes = 1);

// Constants and variables of the program and its libraries: there, the emulator has what is `__constant__` and
// `__device__` on a device.
bool is_of_program(const void* memory);

}  // namespace simt
