#include "train/metrics_log.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <fstream>
#include <system_error>

#include "core/error.h"
#include "core/json.h"

namespace switchyard::train {

namespace {

template <class T>
void append_number(std::string& out, T value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  std::array<char, 32> digits;  // the shortest form of a double has at most 24 characters
  const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), value);
  SY_CHECK(error == std::errc(), "a number did not fit");
  const std::string_view text(digits.data(), static_cast<std::size_t>(end - digits.data()));
  out += text;
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";  // stays a float where it is read
}

template <class T, class Append>
std::string list_of(const std::vector<T>& values, Append append) {
  std::string text = "[";
  for (const T& value : values) {
    if (text.size() > 1) text += ',';
    append(text, value);
  }
  return text + "]";
}

}  // namespace

MetricsRecord& MetricsRecord::add_json(std::string_view name, std::string_view value) {
  SY_CHECK(std::find(names_.begin(), names_.end(), name) == names_.end(), "metric {} is added twice", name);
  names_.emplace_back(name);
  if (!members_.empty()) members_ += ',';
  members_ += json_string(name);
  members_ += ':';
  members_ += value;
  return *this;
}

MetricsRecord& MetricsRecord::add_signed(std::string_view name, std::int64_t value) {
  return add_json(name, std::to_string(value));
}

MetricsRecord& MetricsRecord::add_unsigned(std::string_view name, std::uint64_t value) {
  return add_json(name, std::to_string(value));
}

MetricsRecord& MetricsRecord::add(std::string_view name, bool value) {
  return add_json(name, value ? "true" : "false");
}

MetricsRecord& MetricsRecord::add(std::string_view name, double value) {
  std::string text;
  append_number(text, value);
  return add_json(name, text);
}

MetricsRecord& MetricsRecord::add(std::string_view name, float value) {
  std::string text;
  append_number(text, value);
  return add_json(name, text);
}

MetricsRecord& MetricsRecord::add(std::string_view name, std::string_view text) {
  return add_json(name, json_string(text));
}

MetricsRecord& MetricsRecord::add(std::string_view name, const std::vector<double>& values) {
  return add_json(name, list_of(values, append_number<double>));
}

MetricsRecord& MetricsRecord::add(std::string_view name, const std::vector<float>& values) {
  return add_json(name, list_of(values, append_number<float>));
}

MetricsRecord& MetricsRecord::add(std::string_view name, const std::vector<std::int64_t>& values) {
  return add_json(name, list_of(values, [](std::string& out, std::int64_t v) { out += std::to_string(v); }));
}

MetricsRecord& MetricsRecord::add(std::string_view name, const MetricsRecord& object) {
  return add_json(name, object.json());
}

MetricsRecord& MetricsRecord::add(std::string_view name, const std::vector<MetricsRecord>& objects) {
  return add_json(name, list_of(objects, [](std::string& out, const MetricsRecord& r) { out += r.json(); }));
}

MetricsLog::MetricsLog(const std::filesystem::path& path) : file_(path, OutputFile::Mode::append) {}

void MetricsLog::append(const MetricsRecord& record) { file_.write(record.json() + "\n"); }

void MetricsLog::truncate_after(const std::filesystem::path& path, std::int64_t step) {
  if (!std::filesystem::exists(path)) return;
  const std::string text = read_text_file(path);
  std::string kept;
  std::int64_t line_number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // the last line was cut
    ++line_number;
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    const std::optional<Json> record = try_parse_json(line);
    const Json* const member = record ? record->find("step") : nullptr;
    if (member == nullptr || !member->is_integer())
      throw_input("{}: line {} is not a JSON object with an integer \"step\"; repair or move the file away",
                  path.string(), line_number);
    if (member->number() > static_cast<double>(step)) continue;
    kept += line;
    kept += '\n';
  }
  if (kept.size() == text.size()) return;
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  try {
    write_text_file(temporary, kept);
    std::filesystem::rename(temporary, path);
  } catch (const std::exception& error) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw_input("{}: cannot be rewritten for the resumed run: {}", path.string(), error.what());
  }
  sync_directory(std::filesystem::absolute(path).parent_path());
}

std::optional<std::int64_t> MetricsLog::first_step(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || file.eof()) return std::nullopt;
  const std::optional<Json> record = try_parse_json(line);
  const Json* const member = record ? record->find("step") : nullptr;
  if (member == nullptr || !member->is_integer()) return std::nullopt;
  return member->integer();
}

}  // namespace switchyard::train
