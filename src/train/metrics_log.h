// metrics.jsonl: one JSON object a line, one line a step, appended while the run goes on.
#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"

namespace switchyard::train {

// One JSON object, its members in the order of add(). A number has the fewest digits that read back as the same
// float or double; one that is not finite becomes null. Adding a name twice is a std::logic_error.
class MetricsRecord {
 public:
  MetricsRecord& add(std::string_view name, double value);
  MetricsRecord& add(std::string_view name, float value);
  MetricsRecord& add(std::string_view name, bool value);
  template <std::integral T>
  MetricsRecord& add(std::string_view name, T value) {
    if constexpr (std::signed_integral<T>) {
      return add_signed(name, value);
    } else {
      return add_unsigned(name, value);
    }
  }
  MetricsRecord& add(std::string_view name, std::string_view text);
  MetricsRecord& add(std::string_view name, const char* text) { return add(name, std::string_view(text)); }
  MetricsRecord& add(std::string_view name, const std::string& text) {
    return add(name, std::string_view(text));
  }
  MetricsRecord& add(std::string_view name, const std::vector<double>& values);
  MetricsRecord& add(std::string_view name, const std::vector<float>& values);
  MetricsRecord& add(std::string_view name, const std::vector<std::int64_t>& values);
  MetricsRecord& add(std::string_view name, const MetricsRecord& object);
  MetricsRecord& add(std::string_view name, const std::vector<MetricsRecord>& objects);

  std::string json() const { return "{" + members_ + "}"; }  // one line, without its end

 private:
  MetricsRecord& add_signed(std::string_view name, std::int64_t value);
  MetricsRecord& add_unsigned(std::string_view name, std::uint64_t value);
  MetricsRecord& add_json(std::string_view name, std::string_view json);
  std::string members_;
  std::vector<std::string> names_;
};

class MetricsLog {
 public:
  // Opens the file for appending and creates it if need be. Throws InputError where it cannot be written.
  explicit MetricsLog(const std::filesystem::path& path);
  // Writes one line with one system call, so that a killed process leaves whole lines. Throws InputError.
  void append(const MetricsRecord& record);
  void sync() { file_.sync(); }
  void close() { file_.close(); }  // syncs

  // Before a resumed run goes on from `step`: keeps the whole lines whose "step" is at most `step`, drops the
  // later ones and a last line that was cut. The file changes at once (temporary and rename) or not at all; one
  // that is not there stays so. Throws InputError, with file and line, where a whole line is not an object with
  // a "step".
  static void truncate_after(const std::filesystem::path& path, std::int64_t step);

  // The "step" of the first line; none: no file, no whole line, or a line without one.
  static std::optional<std::int64_t> first_step(const std::filesystem::path& path);

 private:
  OutputFile file_;
};

}  // namespace switchyard::train
