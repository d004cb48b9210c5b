#include "data/shard_paths.h"

#include <glob.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace switchyard::data {

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> shards_in(const fs::path& directory) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == ".bin" && it->is_regular_file()) found.push_back(it->path());
  if (error) throw_input("{}: cannot be listed: {}; check the path", directory.string(), error.message());
  std::sort(found.begin(), found.end());
  return found;
}

// prepare_data.py (and llm.c's scripts) put all splits into one directory: to take all of it, or a pattern that
// fits all, would be to train on what is held out. A split's name is a word of the file's: train_000000.bin,
// fineweb_val_000000.bin, TinyStories_train.bin; the last one counts. `shards`: of one directory.
void refuse_mixed_splits(const std::string& given, const std::vector<fs::path>& shards) {
  std::map<std::string_view, std::string> there;  // a split, and a path up to its end
  for (const fs::path& shard : shards) {
    const std::string name = shard.filename().string();
    const auto ends_word = [&](std::size_t at) {
      return std::string_view("_-.").find(name[at]) != std::string::npos;
    };
    std::size_t last = std::string::npos;
    std::string_view found;
    for (const std::string_view split : {"train", "val", "test"}) {
      for (std::size_t at = name.find(split); at != std::string::npos; at = name.find(split, at + 1)) {
        const bool is_word =
            (at == 0 || ends_word(at - 1)) && ends_word(at + split.size());  // .bin is behind it
        if (is_word && (last == std::string::npos || at > last)) last = at, found = split;
      }
    }
    if (found.empty()) continue;
    std::string up_to = name.substr(0, last + found.size());
    if (name[up_to.size()] != '.') up_to += name[up_to.size()];
    there.try_emplace(found, (shard.parent_path() / up_to).string());
  }
  if (there.size() < 2) return;
  // Of training in the first place, or else of the first that there is.
  const auto wanted = there.contains("train") ? there.find("train") : there.begin();
  const auto other = wanted == there.begin() ? std::next(there.begin()) : there.begin();
  throw_input("{}: holds shards of two splits, {} and {}; say which, as in '{}*.bin'", given, wanted->first,
              other->first, wanted->second);
}

std::vector<fs::path> matches_of(const std::string& pattern) {
  glob_t matches{};
  const int status = ::glob(pattern.c_str(), 0, nullptr, &matches);
  std::vector<fs::path> found;
  for (std::size_t i = 0; status == 0 && i < matches.gl_pathc; ++i) {
    fs::path path = matches.gl_pathv[i];
    std::error_code ignored;
    if (fs::is_regular_file(path, ignored)) found.push_back(std::move(path));
  }
  ::globfree(&matches);
  std::sort(found.begin(), found.end());
  return found;
}

// The meta.json files beside the shards, one a directory that has one.
std::map<fs::path, Json> metas_beside(const std::vector<fs::path>& shards) {
  std::map<fs::path, Json> metas;
  for (const auto& shard : shards) {
    const fs::path path = shard.parent_path() / "meta.json";
    if (metas.contains(path) || !fs::exists(path)) continue;
    std::optional<Json> meta = try_parse_json(read_text_file(path));
    if (!meta || !meta->is_object()) throw_input("{}: not a JSON object; make the shards again", path.string());
    metas.emplace(path, std::move(*meta));
  }
  return metas;
}

// `section`: of the whole file, where `object` is a part of it, as "splits.val.".
std::optional<std::int64_t> stated(const fs::path& path, const Json& object, const char* key,
                                   const std::string& section = "") {
  const Json& entry = object[key];
  if (entry.is_null()) return std::nullopt;
  const auto* number = entry.get<std::int64_t>();
  if (number == nullptr || *number < 0)
    throw_input("{}: {}{} is {}, expected an integer of 0 or more; make the shards again", path.string(),
                section, key, to_line(entry));
  return *number;
}

const Json* stated_object(const fs::path& path, const Json& object, const std::string& key,
                          const std::string& section = "") {
  const Json& entry = object[key];
  if (entry.is_null()) return nullptr;
  if (!entry.is_object())
    throw_input("{}: {}{} is {}, expected an object; make the shards again", path.string(), section, key,
                to_line(entry));
  return &entry;
}

struct SplitCounts {
  std::int64_t tokens, bytes;
};
std::optional<SplitCounts> stated_split(const fs::path& path, const Json& meta, const std::string& name) {
  const Json* const splits = stated_object(path, meta, "splits");
  const Json* const split = splits ? stated_object(path, *splits, name, "splits.") : nullptr;
  if (!split) return std::nullopt;
  const std::string section = "splits." + name + ".";
  const auto tokens = stated(path, *split, "tokens", section), bytes = stated(path, *split, "bytes", section);
  if (!tokens || !bytes || *tokens == 0) return std::nullopt;
  return SplitCounts{*tokens, *bytes};
}

// NAME of NAME_NNNNNN.bin; empty for another name.
std::string split_of(const fs::path& shard) {
  const std::string stem = shard.stem().string();
  const std::size_t end = stem.find_last_not_of("0123456789");
  if (end == std::string::npos || end + 1 == stem.size() || stem[end] != '_') return "";
  return stem.substr(0, end);
}

}  // namespace

std::vector<fs::path> expand_shards(const std::string& path_or_glob) {
  std::error_code ignored;  // what cannot be looked at is reported below as not found
  if (fs::is_regular_file(path_or_glob, ignored)) return {path_or_glob};
  if (fs::is_directory(path_or_glob, ignored)) {
    auto found = shards_in(path_or_glob);
    if (found.empty())
      throw_input("{}: no token shards (*.bin) in this directory; make them with tools/prepare_data.py",
                  path_or_glob);
    refuse_mixed_splits(path_or_glob, found);
    return found;
  }
  auto found = matches_of(path_or_glob);
  if (found.empty())
    throw_input(
        "{}: no such file, and as a pattern it matches none; check the path or make the shards with "
        "tools/prepare_data.py",
        path_or_glob);
  std::map<fs::path, std::vector<fs::path>> found_in;
  for (const fs::path& shard : found) found_in[shard.parent_path()].push_back(shard);
  for (const auto& [directory, shards] : found_in) refuse_mixed_splits(path_or_glob, shards);
  return found;
}

SpecialTokens special_tokens_beside(const std::vector<fs::path>& shards) {
  SpecialTokens tokens;
  fs::path eot_stated_in, begin_stated_in;
  for (const auto& [path, meta] : metas_beside(shards)) {
    const auto merge = [&path = path](std::optional<std::int64_t>& all, fs::path& stated_in, const char* key,
                                      std::optional<std::int64_t> found) {
      if (!found) return;
      if (all && *all != *found)
        throw_input("{}: {} is {}, but {} in {}; give shards made with one tokenizer", path.string(), key,
                    *found, *all, stated_in.string());
      all = found;
      stated_in = path;
    };
    const auto eot = stated(path, meta, "eot_token"), begin = stated(path, meta, "begin_token");
    merge(tokens.eot, eot_stated_in, "eot_token", eot);
    merge(tokens.begin, begin_stated_in, "begin_token", begin ? begin : eot);
  }
  return tokens;
}

std::optional<std::int64_t> vocab_size_beside(const std::vector<fs::path>& shards) {
  std::optional<std::int64_t> largest;
  for (const auto& [path, meta] : metas_beside(shards))
    if (const auto found = stated(path, meta, "vocab_size")) largest = std::max(largest.value_or(0), *found);
  return largest;
}

std::optional<TextSize> text_size_beside(const std::vector<Shard>& shards) {
  std::vector<fs::path> paths;
  std::map<std::pair<fs::path, std::string>, std::int64_t> tokens_of_split;
  for (const Shard& shard : shards) {
    paths.push_back(shard.path());
    tokens_of_split[{shard.path().parent_path() / "meta.json", split_of(shard.path())}] += shard.size();
  }
  const auto metas = metas_beside(paths);
  TextSize text;
  for (const auto& [place, tokens] : tokens_of_split) {
    const auto meta = metas.find(place.first);
    if (meta == metas.end()) return std::nullopt;
    const auto split = stated_split(meta->first, meta->second, place.second);
    if (!split) return std::nullopt;
    const auto all = static_cast<double>(split->bytes);
    const bool whole = tokens == split->tokens;
    text.bytes += whole ? all : all / static_cast<double>(split->tokens) * static_cast<double>(tokens);
    text.is_estimate |= !whole;
  }
  return text;
}

}  // namespace switchyard::data
