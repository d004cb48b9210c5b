// "5GB": a number of bytes as Hugging Face's tools take it, and as people read it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace switchyard::config {

// Digits and one of B, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024) or nothing (bytes). No
// value where the text is something else, 0, or more than 2^62.
std::optional<std::int64_t> parse_byte_size(std::string_view text);
// For people: "812 bytes", "5.3 MB" (powers of 1000).
std::string format_byte_size(std::uint64_t bytes);

}  // namespace switchyard::config
