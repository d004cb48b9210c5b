#include "core/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <unordered_set>

#include "core/error.h"
#include "core/file.h"
#include "core/utf8.h"

namespace switchyard {
namespace {

constexpr std::size_t kMaxQuoted = 80;      // bytes of a string value in a message
constexpr std::size_t kMaxPrintable = 200;  // bytes of a key, an override or a parser's remark in a message

// Who wrote a text: it decides what a message says to do.
enum class Writer { person, person_with_comments, program, unknown };

std::size_t max_depth(Writer writer) {
  switch (writer) {
    case Writer::person:
    case Writer::person_with_comments:
      return 64;
    case Writer::program:
      return 70;
    case Writer::unknown:
      return 512;
  }
  return 0;
}

// The text with a space for each byte of a comment, so that every position stays what it was.
std::string without_comments(std::string_view text) {
  std::string out(text);
  bool in_string = false;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (in_string && out[i] == '\\') {
      ++i;
    } else if (out[i] == '"') {
      in_string = !in_string;
    } else if (out[i] == '\n') {
      in_string = false;  // no string goes on in the next line
    } else if (!in_string && out.compare(i, 2, "//") == 0) {
      for (; i < out.size() && out[i] != '\n'; ++i) out[i] = ' ';
    }
  }
  return out;
}

struct NotJson {};  // of a text by whom nobody knows

// Receives the parser's events and builds the value.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(std::string_view text, const std::string& origin, Writer writer)
      : text_(text), origin_(origin), writer_(writer) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(Json()); }
  bool boolean(bool v) override { return add(Json(v)); }
  bool number_integer(number_integer_t v) override { return add(Json(v)); }
  bool number_unsigned(number_unsigned_t v) override { return add(Json(v)); }
  bool number_float(number_float_t v, const string_t&) override { return add(Json(v)); }
  bool string(string_t& v) override { return add(Json(std::move(v))); }
  bool binary(binary_t&) override { return false; }  // not in JSON text

  bool start_object(std::size_t) override { return open(Json(Json::Object{})); }
  bool end_object() override {
    check_keys(*open_.back()->get<Json::Object>());
    open_.pop_back();
    return true;
  }
  bool start_array(std::size_t) override { return open(Json(Json::Array{})); }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool key(string_t& name) override {
    open_.back()->get<Json::Object>()->push_back({std::move(name), Json()});
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& e) override {
    if (writer_ == Writer::unknown) throw NotJson();
    if (const std::string other = stand_in(std::as_bytes(std::span(text_))); !other.empty())
      throw_input("{}: {}", origin_, other);
    if (writer_ == Writer::program)
      throw_input("{}: is not JSON: {}; the file is damaged", origin_, printable(e.what()));
    // `position` counts the bytes read, the offending one included.
    const std::size_t offset = std::min(position > 0 ? position - 1 : 0, text_.size());
    const std::string_view before = text_.substr(0, offset);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    std::string what = e.what();
    cut_through(what, "] ");
    if (what.starts_with("parse error")) cut_through(what, ": ");
    throw_input("{}: line {}, column {}: not JSON: {}{}", origin_, line, offset - line_start + 1,
                printable(what),
                !text_.substr(offset).starts_with('/')    ? ""
                : writer_ == Writer::person_with_comments ? " (a comment begins with //)"
                                                          : " (JSON has no comments)");
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
    const std::size_t most = max_depth(writer_);
    if (open_.size() == most) {
      if (writer_ == Writer::unknown) throw NotJson();
      throw_input("{}: nested deeper than {} levels; {}", origin_, most,
                  writer_ == Writer::program ? "the file is damaged" : "no configuration is");
    }
    open_.push_back(&place(std::move(container)));
    return true;
  }

  // When an object is complete, all keys at once: a vocabulary has very many.
  void check_keys(Json::Object& members) const {
    constexpr std::size_t kFew = 16;
    const auto same = [](std::string_view key) { return [=](const JsonMember& m) { return m.key == key; }; };
    std::unordered_set<std::string_view> seen;
    if (members.size() > kFew) seen.reserve(members.size());
    std::vector<std::size_t> again;
    for (std::size_t i = 0; i < members.size(); ++i) {
      const auto here = members.begin() + static_cast<std::ptrdiff_t>(i);
      const bool twice = members.size() > kFew ? !seen.insert(here->key).second
                                               : std::find_if(members.begin(), here, same(here->key)) != here;
      if (twice) again.push_back(i);
    }
    if (again.empty()) return;
    if (writer_ != Writer::unknown) refuse_twice(members[again.front()].key);
    for (const std::size_t i : again)
      std::find_if(members.begin(), members.end(), same(members[i].key))->value = members[i].value;
    for (auto i = again.rbegin(); i != again.rend(); ++i)
      members.erase(members.begin() + static_cast<std::ptrdiff_t>(*i));
  }
  [[noreturn]] void refuse_twice(const std::string& key) const {
    if (writer_ == Writer::program)
      throw_input("{}: has {} twice, and which one holds cannot be told; write the file again", origin_,
                  in_quotes(key));
    throw_input("{}: {}{}: this key is given twice; remove one", origin_, path(), printable(key));
  }
  // Of the innermost container, with a dot behind it.
  std::string path() const {
    std::string path;
    for (std::size_t i = 0; i + 1 < open_.size(); ++i) {
      if (const auto* array = open_[i]->get<Json::Array>()) {
        path += fmt::format("{}.", array->size() - 1);
      } else {
        path += printable(open_[i]->get<Json::Object>()->back().key) + ".";
      }
    }
    return path;
  }

  std::string_view text_;
  const std::string& origin_;
  Writer writer_;
  Json root_;
  // From the root to the innermost container that is not closed yet. A container does not grow while one inside
  // it is open, so the pointers stay valid.
  std::vector<Json*> open_;
};

Json parse(std::string_view text, const std::string& origin, Writer writer) {
  Builder builder(text, origin, writer);
  const bool complete = nlohmann::json::sax_parse(text, &builder);
  SY_CHECK(complete, "the JSON parser stopped without an error");
  return builder.take();
}

template <class T>
const T& known(const Json& json) {
  const T* value = json.get<T>();
  SY_CHECK(value != nullptr, "the JSON value {} is of another type", describe(json));
  return *value;
}

// indent < 0: on one line.
class Printer {
 public:
  explicit Printer(int indent) : indent_(indent) {}
  std::string take() { return std::move(out_); }

  void print(const Json& json) {
    std::visit([this](const auto& value) { put(value); }, json.value);
  }

 private:
  void put(std::monostate) { out_ += "null"; }
  void put(bool value) { out_ += value ? "true" : "false"; }
  void put(std::int64_t value) { out_ += std::to_string(value); }
  void put(std::uint64_t value) { out_ += std::to_string(value); }
  void put(double value) { out_ += nlohmann::json(value).dump(); }
  void put(const std::string& value) { out_ += json_string(value); }
  void put(const Json::Array& array) {
    list('[', ']', array, [this](const Json& element) { print(element); });
  }
  void put(const Json::Object& object) {
    list('{', '}', object, [this](const JsonMember& member) {
      put(member.key);
      out_ += indent_ < 0 ? ":" : ": ";
      print(member.value);
    });
  }

  template <class List, class Each>
  void list(char first, char last, const List& all, const Each& each) {
    out_ += first;
    ++depth_;
    for (const auto& one : all) {
      if (&one != &all.front()) out_ += ',';
      new_line();
      each(one);
    }
    --depth_;
    if (!all.empty()) new_line();
    out_ += last;
  }
  void new_line() {
    if (indent_ < 0) return;
    out_ += '\n';
    out_.append(static_cast<std::size_t>(indent_ * depth_), ' ');
  }

  int indent_;
  int depth_ = 0;
  std::string out_;
};

std::string print(const Json& json, int indent) {
  Printer printer(indent);
  printer.print(json);
  return printer.take();
}

}  // namespace

// Not std::variant's own copy: where that of an alternative throws, libstdc++ (12) destroys a value that is not
// there, because it takes a variant of strings and vectors for one that always holds something. Here `value` is
// null until a whole copy is moved into it, which cannot throw.
Json::Json(const Json& other) {
  std::visit([this](auto copy) { value = std::move(copy); }, other.value);
}
Json& Json::operator=(const Json& other) {
  value = Json(other).value;  // and not std::variant's own either, which may copy as its constructor does
  return *this;
}

Json::Json(Array v) : value(std::move(v)) {}
Json::Json(Object v) : value(std::move(v)) {}

bool Json::boolean() const { return known<bool>(*this); }
std::int64_t Json::integer() const { return known<std::int64_t>(*this); }
double Json::number() const {
  if (const auto* v = get<std::int64_t>()) return static_cast<double>(*v);
  if (const auto* v = get<std::uint64_t>()) return static_cast<double>(*v);
  return known<double>(*this);
}
const std::string& Json::text() const { return known<std::string>(*this); }
const Json::Array& Json::array() const { return known<Array>(*this); }
Json::Array& Json::array() { return const_cast<Array&>(known<Array>(*this)); }
const Json::Object& Json::object() const { return known<Object>(*this); }
Json::Object& Json::object() { return const_cast<Object&>(known<Object>(*this)); }

std::optional<std::uint64_t> Json::whole() const {
  if (const auto* v = get<std::uint64_t>()) return *v;
  if (const auto* v = get<std::int64_t>(); v != nullptr && *v >= 0) return static_cast<std::uint64_t>(*v);
  return std::nullopt;
}

std::size_t Json::size() const {
  if (const auto* v = get<Array>()) return v->size();
  if (const auto* v = get<Object>()) return v->size();
  return 0;
}

const Json* Json::find(std::string_view key) const {
  const auto* members = get<Object>();
  return members == nullptr ? nullptr : find_member(*members, key);
}
Json* Json::find(std::string_view key) { return const_cast<Json*>(std::as_const(*this).find(key)); }

const Json& Json::operator[](std::string_view key) const {
  static const Json null;
  const Json* found = find(key);
  return found == nullptr ? null : *found;
}

Json& Json::operator[](std::string_view key) {
  if (is_null()) value = Object{};
  if (Json* found = find(key); found != nullptr) return *found;
  object().push_back({std::string(key), Json()});
  return object().back().value;
}

void Json::push_back(Json element) {
  if (is_null()) value = Array{};
  array().push_back(std::move(element));
}

bool Json::operator==(const Json& other) const {
  if (is_number() && other.is_number() && value.index() != other.value.index())
    return number() == other.number();
  return value == other.value;
}

const Json* find_member(const Json::Object& object, std::string_view key) {
  const auto it =
      std::find_if(object.begin(), object.end(), [&](const JsonMember& member) { return member.key == key; });
  return it == object.end() ? nullptr : &it->value;
}

Json* find_member(Json::Object& object, std::string_view key) {
  return const_cast<Json*>(find_member(std::as_const(object), key));
}

Json sorted(Json json) {
  if (auto* array = json.get<Json::Array>())
    for (Json& element : *array) element = sorted(std::move(element));
  if (auto* object = json.get<Json::Object>()) {
    for (JsonMember& member : *object) member.value = sorted(std::move(member.value));
    std::sort(object->begin(), object->end(),
              [](const JsonMember& a, const JsonMember& b) { return a.key < b.key; });
  }
  return json;
}

Json parse_json(std::string_view text, const std::string& origin) {
  return parse(text, origin, Writer::person);
}

Json parse_commented_json(std::string_view text, const std::string& origin) {
  const std::string plain = without_comments(text);
  return parse(plain, origin, Writer::person_with_comments);
}

Json parse_stored_json(std::string_view text, const std::string& origin) {
  return parse(text, origin, Writer::program);
}

std::optional<Json> try_parse_json(std::string_view text) {
  try {
    return parse(text, "", Writer::unknown);
  } catch (const NotJson&) {
    return std::nullopt;
  }
}

std::string to_line(const Json& json) { return print(json, -1); }
std::string to_text(const Json& json) { return print(json, 2) + "\n"; }

std::string json_string(std::string_view text) {
  const auto plain = [](char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; };
  if (std::all_of(text.begin(), text.end(), plain)) return '"' + std::string(text) + '"';
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string describe(const Json& json) {
  if (json.is_array()) return "an array";
  if (json.is_object()) return "an object";
  const auto* text = json.get<std::string>();
  if (text != nullptr && text->size() > kMaxQuoted) return json_string(text->substr(0, kMaxQuoted) + "...");
  return to_line(json);
}

std::string printable(std::string_view text) {
  std::string out(text.substr(0, kMaxPrintable));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (text.size() > kMaxPrintable) out += "...";
  return out;
}

std::string in_quotes(std::string_view text) { return '"' + printable(text) + '"'; }

}  // namespace switchyard
