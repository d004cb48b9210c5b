#include "checkpoint/json_text.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/file.h"

namespace switchyard::checkpoint {

namespace {

constexpr int kMaxDepth = 70;  // a run's configuration, which may be 64 deep, and what is around it

// The parser alone would let a key pass that stands twice in one object: the last one would win.
template <class Json>
Json parse(std::string_view text, const std::string& origin) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int depth, typename Json::parse_event_t event, Json& value) {
    if (depth > kMaxDepth)
      throw_input("{}: nested deeper than {} levels; the file is damaged", origin, kMaxDepth);
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key) {
      auto key = value.template get<std::string>();
      if (open_objects.back().contains(key))
        throw_input("{}: has {} twice, and which one holds cannot be told; write the file again", origin,
                    in_quotes(key));
      open_objects.back().insert(std::move(key));
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const nlohmann::json::exception& error) {
    if (const std::string other = stand_in(std::as_bytes(std::span(text))); !other.empty())
      throw_input("{}: {}", origin, other);
    throw_input("{}: is not JSON: {}; the file is damaged", origin, printable(error.what()));
  }
}

}  // namespace

nlohmann::json parse_json_text(std::string_view text, const std::string& origin) {
  return parse<nlohmann::json>(text, origin);
}

nlohmann::ordered_json parse_ordered_json_text(std::string_view text, const std::string& origin) {
  return parse<nlohmann::ordered_json>(text, origin);
}

std::string printable(std::string_view name) {
  constexpr std::size_t kMax = 200;
  std::string text(name.substr(0, kMax));
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  if (name.size() > kMax) text += "...";
  return text;
}

std::string in_quotes(std::string_view name) { return '"' + printable(name) + '"'; }

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

}  // namespace switchyard::checkpoint
