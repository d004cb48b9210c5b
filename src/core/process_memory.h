// Memory of this process and of the machine that it runs on.
#pragma once

#include <cstdint>
#include <optional>

namespace switchyard {

// Bytes of the process's largest resident set so far, or since reset_peak_resident().
std::int64_t peak_resident();
// False where the system does not let it: the peak is then that of the whole process.
bool reset_peak_resident();

// Bytes that a new program could take without the system having to swap; no value where the system does not
// say.
std::optional<std::int64_t> available_memory();

}  // namespace switchyard
