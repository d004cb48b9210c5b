#include "train/tensorboard_log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <string>

#include "core/error.h"
#include "core/json.h"

namespace switchyard::train {

namespace {

// ---- protocol buffers: a field is a tag (number << 3 | kind) and a value, integers little-endian ----

template <class T>
std::string little_endian(T value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof value; ++i)
    bytes += static_cast<char>(static_cast<unsigned char>(static_cast<std::uint64_t>(value) >> (8 * i)));
  return bytes;
}

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(static_cast<unsigned char>(value | 0x80));
  return bytes + static_cast<char>(static_cast<unsigned char>(value));
}

enum class Kind : unsigned { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

std::string tag(unsigned number, Kind kind) { return varint(number << 3 | static_cast<unsigned>(kind)); }

std::string integer_field(unsigned number, std::int64_t value) {
  return tag(number, Kind::varint) + varint(static_cast<std::uint64_t>(value));
}
std::string double_field(unsigned number, double value) {
  return tag(number, Kind::fixed64) + little_endian(std::bit_cast<std::uint64_t>(value));
}
std::string float_field(unsigned number, float value) {
  return tag(number, Kind::fixed32) + little_endian(std::bit_cast<std::uint32_t>(value));
}
std::string bytes_field(unsigned number, std::string_view value) {
  return tag(number, Kind::bytes) + varint(value.size()) + std::string(value);
}

// Event{wall_time = 1, step = 2} and one field more.
std::string event(std::int64_t step, const std::string& content) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return double_field(1, std::chrono::duration<double>(now).count()) + integer_field(2, step) + content;
}

// ---- TFRecord: length, its checksum, the bytes, their checksum ----

// CRC-32C (Castagnoli), reflected, one byte at a time; masked as TFRecord wants it.
std::uint32_t masked_crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = (t[i] >> 1) ^ ((t[i] & 1) != 0 ? 0x82f63b78u : 0u);
    }
    return t;
  }();
  std::uint32_t crc = ~0u;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  crc = ~crc;
  return std::rotr(crc, 15) + 0xa282ead8u;
}

std::string record(std::string_view bytes) {
  const std::string length = little_endian(static_cast<std::uint64_t>(bytes.size()));
  return length + little_endian(masked_crc32c(length)) + std::string(bytes) +
         little_endian(masked_crc32c(bytes));
}

// ---- metrics ----

// Summary{value = 1: Value{tag = 1, simple_value = 2}}, a value for each number below `name`.
void add_values(std::string& summary, const std::string& name, const Json& value) {
  const auto below = [&](const std::string& key) { return name.empty() ? key : name + "/" + key; };
  if (value.is_number()) {
    summary += bytes_field(1, bytes_field(1, name) + float_field(2, static_cast<float>(value.number())));
  } else if (value.is_object()) {
    for (const auto& [key, member] : value.object())
      if (!(name.empty() && key == "step")) add_values(summary, below(key), member);
  } else if (value.is_array()) {
    for (const Json& element : value.array()) {
      if (!element.contains("layer")) continue;
      Json::Object figures = element.object();
      std::erase_if(figures, [](const JsonMember& figure) { return figure.key == "layer"; });
      add_values(summary, below(to_line(element["layer"])), Json(std::move(figures)));
    }
  }
}

std::filesystem::path file_in(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw_input("{}: cannot be created: {}", directory.string(), error.message());
  std::array<char, 256> host{};
  if (gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return directory / fmt::format("events.out.tfevents.{}.{}.{}",
                                 std::chrono::duration_cast<std::chrono::seconds>(now).count(),
                                 host[0] != '\0' ? host.data() : "host", getpid());
}

}  // namespace

TensorBoardLog::TensorBoardLog(const std::filesystem::path& directory, std::int64_t last_step)
    : file_(file_in(directory), OutputFile::Mode::append) {
  file_.write(record(event(0, bytes_field(3, "brain.Event:2"))));  // file_version
  // session_log = 7: SessionLog{status = 1: START}. Readers drop what came before with this step or a later
  // one.
  if (last_step > 0) file_.write(record(event(last_step + 1, bytes_field(7, integer_field(1, 1)))));
}

void TensorBoardLog::append(std::int64_t step, std::string_view metrics_json) {
  std::string summary;
  add_values(summary, "", parse_stored_json(metrics_json, "the metrics"));
  file_.write(record(event(step, bytes_field(5, summary))));
}

}  // namespace switchyard::train
