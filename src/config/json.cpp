#include "config/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"

namespace switchyard::config {
namespace {

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxQuoted = 80;      // bytes of a string value in a message
constexpr std::size_t kMaxPrintable = 200;  // bytes of a key, an override or a parser's remark in a message

// Receives the parser's events and builds the value.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(std::string_view text, const std::string& origin) : text_(text), origin_(origin) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(Json()); }
  bool boolean(bool v) override { return add(Json(v)); }
  bool number_integer(number_integer_t v) override { return add(Json(v)); }
  bool number_unsigned(number_unsigned_t v) override { return add(Json(v)); }
  bool number_float(number_float_t v, const string_t&) override { return add(Json(v)); }
  bool string(string_t& v) override { return add(Json(std::move(v))); }
  bool binary(binary_t&) override { return false; }  // not in JSON text

  bool start_object(std::size_t) override { return open(Json(Json::Object{})); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json(Json::Array{})); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    auto& members = *open_.back()->get<Json::Object>();
    const bool twice = find_member(members, name) != nullptr;
    members.push_back({std::move(name), Json()});
    if (twice) throw_input("{}: {}: this key is given twice; remove one", origin_, path());
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& e) override {
    if (const std::string other = stand_in(std::as_bytes(std::span(text_))); !other.empty())
      throw_input("{}: {}", origin_, other);
    // `position` counts the bytes read, the offending one included.
    const std::size_t offset = std::min(position > 0 ? position - 1 : 0, text_.size());
    const std::string_view before = text_.substr(0, offset);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    std::string what = e.what();
    cut_through(what, "] ");
    if (what.starts_with("parse error")) cut_through(what, ": ");
    throw_input("{}: line {}, column {}: not JSON: {}{}", origin_, line, offset - line_start + 1,
                printable(what), text_.substr(offset).starts_with('/') ? " (JSON has no comments)" : "");
  }

 private:
  static void cut_through(std::string& text, std::string_view mark) {
    const std::size_t at = text.find(mark);
    if (at != std::string::npos) text.erase(0, at + mark.size());
  }

  // Puts a value where the next one belongs and returns its place.
  Json& place(Json&& json) {
    if (open_.empty()) {
      root_ = std::move(json);
      return root_;
    }
    if (auto* array = open_.back()->get<Json::Array>()) {
      array->push_back(std::move(json));
      return array->back();
    }
    Json& member = open_.back()->get<Json::Object>()->back().value;
    member = std::move(json);
    return member;
  }
  bool add(Json&& json) {
    place(std::move(json));
    return true;
  }
  bool open(Json&& container) {
    if (open_.size() == kMaxDepth) {
      throw_input("{}: nested deeper than {} levels; no configuration is", origin_, kMaxDepth);
    }
    open_.push_back(&place(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  std::string path() const {
    std::string path;
    for (const Json* container : open_) {
      if (!path.empty()) path += '.';
      if (const auto* array = container->get<Json::Array>()) {
        path += fmt::format("{}", array->size() - 1);
      } else {
        path += printable(container->get<Json::Object>()->back().key);
      }
    }
    return path;
  }

  std::string_view text_;
  const std::string& origin_;
  Json root_;
  // From the root to the innermost container that is not closed yet. A container does not grow while one inside
  // it is open, so the pointers stay valid.
  std::vector<Json*> open_;
};

nlohmann::ordered_json to_nlohmann(const Json& json) {
  using Out = nlohmann::ordered_json;
  struct Visitor {
    Out operator()(std::monostate) const { return nullptr; }
    Out operator()(bool v) const { return v; }
    Out operator()(std::int64_t v) const { return v; }
    Out operator()(std::uint64_t v) const { return v; }
    Out operator()(double v) const { return v; }
    Out operator()(const std::string& v) const { return v; }
    Out operator()(const Json::Array& v) const {
      Out out = Out::array();
      for (const Json& element : v) out.push_back(to_nlohmann(element));
      return out;
    }
    Out operator()(const Json::Object& v) const {
      Out out = Out::object();
      for (const JsonMember& member : v) out[member.key] = to_nlohmann(member.value);
      return out;
    }
  };
  return std::visit(Visitor{}, json.value);
}

}  // namespace

Json::Json(Array v) : value(std::move(v)) {}
Json::Json(Object v) : value(std::move(v)) {}

const Json* find_member(const Json::Object& object, std::string_view key) {
  const auto it =
      std::find_if(object.begin(), object.end(), [&](const JsonMember& member) { return member.key == key; });
  return it == object.end() ? nullptr : &it->value;
}

Json* find_member(Json::Object& object, std::string_view key) {
  return const_cast<Json*>(find_member(std::as_const(object), key));
}

Json parse_json(std::string_view text, const std::string& origin) {
  Builder builder(text, origin);
  const bool complete = nlohmann::json::sax_parse(text, &builder);
  SY_CHECK(complete, "the JSON parser stopped without an error");
  return builder.take();
}

std::string to_text(const Json& json) { return to_nlohmann(json).dump(2) + "\n"; }

std::string describe(const Json& json) {
  if (json.get<Json::Array>()) return "an array";
  if (json.get<Json::Object>()) return "an object";
  if (const auto* text = json.get<std::string>()) {
    const bool cut = text->size() > kMaxQuoted;
    const nlohmann::json shown = cut ? text->substr(0, kMaxQuoted) + "..." : *text;
    return shown.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  return to_nlohmann(json).dump();
}

std::string printable(std::string_view text) {
  std::string out(text.substr(0, kMaxPrintable));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (text.size() > kMaxPrintable) out += "...";
  return out;
}

bool is_utf8(std::string_view text) {
  try {
    static_cast<void>(nlohmann::json(text).dump());
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

}  // namespace switchyard::config
