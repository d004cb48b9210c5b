// The text of a configuration: from the file, from those that it extends, and from the command line.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace switchyard::config {

// Where each value came from: a file, or an override on top of it.
class Source {
 public:
  explicit Source(std::string origin) : origin_(std::move(origin)) {}
  const std::string& origin() const { return origin_; }
  // The override `text` gave the value at `path`, and made the objects on the way from `made` (a part of
  // `path`, or all of it) on.
  void add_override(std::string path, std::string made, std::string text);
  // The files that origin() extends, by the paths of what they give: of a value, or of an object and a dot.
  void set_base(std::map<std::string, std::string> file_of) { file_of_ = std::move(file_of); }

  // Throws InputError "<origin>: <path>: <problem>", with the file that the value at `path` came from; where an
  // override gave the value at `path`, or at `other` (a second key that the problem names), the override takes
  // the file's place.
  [[noreturn]] void fail(const std::string& path, const std::string& problem,
                         const std::string& other = "") const;
  bool overridden(const std::string& path) const;

  // The model's, for messages about keys of other sections; empty until it is known.
  void set_layout(std::string_view layout) { layout_ = layout; }
  std::string_view layout() const { return layout_; }

 private:
  struct Override {
    std::string path;
    std::string made;
    std::string text;
  };
  const Override* find_override(const std::string& path) const;
  const std::string& file_of(std::string path) const;

  std::string origin_;
  std::string_view layout_;
  std::vector<Override> overrides_;
  std::map<std::string, std::string> file_of_;
};

// The configuration in `text`: JSON with comments, each from // to the end of its line. With `extends`, the
// path of another such file (relative to the directory of source.origin()), it is that one with this one's
// values on top, and so on. Objects are merged key by key, but for one that names another type (`type`,
// `model_type`, `rope_type`), which takes the other's place, as every other value does. There is no `extends`
// in what comes back; the source is told of each value's file. Throws InputError: not JSON, not an object, a
// file that is missing or extends itself.
Json read_configuration(const std::string& text, Source& source);

// Puts the value of "a.b=value" at its path into `root`, making objects on the way where the text has none, and
// tells `source`, so that messages about the value name the override. The value is JSON, or else a string as it
// stands. A part of the path that is an array's element is its index. Throws InputError: no '=', an empty part,
// no such element, a part below something that holds no keys, a value that is neither JSON nor UTF-8;
// `extends`.
void apply_override(Json& root, const std::string& text, Source& source);

}  // namespace switchyard::config
