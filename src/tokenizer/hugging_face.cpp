// A tokenizer.json: added tokens cut the text, the rest is normalised, cut into words and merged.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "tokenizer/bpe.h"
#include "tokenizer/stages.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace switchyard::tokenizer {

namespace {

using nlohmann::json;

constexpr std::int64_t kMostTokens = 1 << 24;  // a larger number is damage, and would cost as much memory

struct AddedToken {
  std::string content;
  std::int32_t token;
  bool special, normalized;
};

// Either a text that is still to be cut, or an added token.
struct Segment {
  std::string text;
  std::int32_t token = -1;
};

// Cuts the texts of `segments` at the tokens: the leftmost first, the longest of those that begin there.
std::vector<Segment> cut_at(const std::vector<AddedToken>& tokens, std::vector<Segment> segments) {
  if (tokens.empty()) return segments;
  std::string first_bytes;
  for (const AddedToken& token : tokens) first_bytes += token.content[0];
  std::vector<Segment> cut;
  for (Segment& segment : segments) {
    if (segment.token >= 0) {
      cut.push_back(std::move(segment));
      continue;
    }
    const std::string& text = segment.text;
    std::size_t done = 0;
    for (std::size_t at = 0; (at = text.find_first_of(first_bytes, at)) != std::string::npos;) {
      const AddedToken* longest = nullptr;
      for (const AddedToken& token : tokens)
        if (text.compare(at, token.content.size(), token.content) == 0 &&
            (!longest || token.content.size() > longest->content.size()))
          longest = &token;
      if (!longest) {
        ++at;
        continue;
      }
      if (at > done) cut.push_back({text.substr(done, at - done)});
      cut.push_back({"", longest->token});
      at = done = at + longest->content.size();
    }
    if (done < text.size()) cut.push_back({text.substr(done)});
  }
  return cut;
}

class Reader {
 public:
  Reader(const std::string& text, const std::string& origin) : origin_(origin) {
    root_ = json::parse(text, nullptr, false);
    if (!root_.is_object()) throw_input("{}: is not a JSON object; give a tokenizer.json", origin);
  }

  const json& root() const { return root_; }
  json part(const char* key) const { return root_.value(key, json()); }
  std::string where(const std::string& path) const { return fmt::format("{}: {}", origin_, path); }
  [[noreturn]] void refuse(const std::string& path, const std::string& why) const {
    throw_input("{}: {}: {}", origin_, path, why);
  }

  Bpe bpe() const {
    const json model = part("model");
    if (!model.is_object()) refuse("model", "is missing");
    // Old files have no type; only BPE has merges.
    const std::string type = model.value("type", model.contains("merges") ? "BPE" : "");
    if (type != "BPE") refuse("model.type", fmt::format("\"{}\" is not supported; BPE is", type));
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (model.contains(key) && !model[key].is_null() && model[key] != "")
        refuse(std::string("model.") + key, "is not supported");
    if (model.contains("dropout") && !model["dropout"].is_null() && model["dropout"] != 0.0)
      refuse("model.dropout", "is not supported");
    std::unordered_map<std::string, std::int32_t> vocab;
    if (!model.contains("vocab") || !model["vocab"].is_object()) refuse("model.vocab", "is not an object");
    for (const auto& [text, id] : model["vocab"].items()) {
      if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > kMostTokens)
        refuse("model.vocab", fmt::format("\"{}\" has {} for a token", text, id.dump()));
      vocab.emplace(text, id.get<std::int32_t>());
    }
    Bpe::Options options;
    try {
      options.byte_fallback = model.value("byte_fallback", false);
      options.fuse_unknown = model.value("fuse_unk", false);
      options.ignore_merges = model.value("ignore_merges", false);
      if (model.contains("unk_token") && !model["unk_token"].is_null())
        options.unknown = model["unk_token"].get<std::string>();
    } catch (const json::exception& error) {
      refuse("model", error.what());
    }
    if (options.unknown && !vocab.contains(*options.unknown))
      refuse("model.unk_token", "is not in the vocabulary");
    Bpe bpe(std::move(vocab), options);
    const json merges = model.value("merges", json::array());
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const std::string path = fmt::format("model.merges[{}]", i);
      const json& merge = merges[i];
      std::string left, right;
      if (merge.is_string()) {
        const std::string both = merge;
        const std::size_t space = both.find(' ');
        if (space == std::string::npos) refuse(path, "is not two tokens with a space between");
        left = both.substr(0, space), right = both.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0], right = merge[1];
      } else {
        refuse(path, "is neither \"a b\" nor [\"a\", \"b\"]");
      }
      if (!bpe.add_merge(left, right)) refuse(path, "names a token that is not in model.vocab");
    }
    return bpe;
  }

  std::vector<AddedToken> added_tokens() const {
    std::vector<AddedToken> tokens;
    const json list = part("added_tokens");
    for (std::size_t i = 0; i < list.size(); ++i) {
      const std::string path = fmt::format("added_tokens[{}]", i);
      try {
        for (const char* key : {"lstrip", "rstrip", "single_word"})
          if (list[i].value(key, false)) refuse(path + "." + key, "true is not supported");
        tokens.push_back({list[i].at("content"), list[i].at("id"), list[i].value("special", false),
                          list[i].value("normalized", !list[i].value("special", false))});
      } catch (const json::exception& error) {
        refuse(path, error.what());
      }
      if (tokens.back().content.empty() || tokens.back().token < 0 || tokens.back().token > kMostTokens)
        refuse(path, "has no content, or an id that is out of range");
    }
    return tokens;
  }

  // What stands before and behind a text.
  void read_template(const json& value, const std::string& path, std::vector<std::int32_t>& before,
                     std::vector<std::int32_t>& behind) const {
    if (value.is_null()) return;
    const std::string type = value.value("type", "");
    if (type == "ByteLevel") return;  // of offsets alone
    if (type == "Sequence") {
      const json parts = value.value("processors", json::array());
      for (std::size_t i = 0; i < parts.size(); ++i)
        read_template(parts[i], fmt::format("{}.processors[{}]", path, i), before, behind);
      return;
    }
    if (type != "TemplateProcessing")
      refuse(path + ".type",
             fmt::format("\"{}\" is not supported; TemplateProcessing, ByteLevel and Sequence are", type));
    try {
      bool text_seen = false;
      for (const json& piece : value.at("single")) {
        if (piece.contains("Sequence")) {
          text_seen = true;
          continue;
        }
        const std::string name = piece.at("SpecialToken").at("id");
        for (const json& id : value.at("special_tokens").at(name).at("ids"))
          (text_seen ? behind : before).push_back(id.get<std::int32_t>());
      }
    } catch (const json::exception& error) {
      refuse(path, error.what());
    }
  }

  struct Decoding {
    bool byte_level = false, byte_fallback = false;
    std::vector<Normalizer> replacements;
  };
  void read_decoder(const json& value, const std::string& path, Decoding& decoding) const {
    if (value.is_null()) return;
    const std::string type = value.value("type", "");
    if (type == "Sequence") {
      const json parts = value.value("decoders", json::array());
      for (std::size_t i = 0; i < parts.size(); ++i)
        read_decoder(parts[i], fmt::format("{}.decoders[{}]", path, i), decoding);
    } else if (type == "ByteLevel") {
      decoding.byte_level = true;
    } else if (type == "ByteFallback") {
      decoding.byte_fallback = true;
    } else if (type == "Replace") {
      decoding.replacements.push_back(make_normalizer(value, where(path)));
    } else if (type == "Metaspace") {
      const json replace = {{"type", "Replace"},
                            {"pattern", {{"String", value.value("replacement", "\xE2\x96\x81")}}},
                            {"content", " "}};
      decoding.replacements.push_back(make_normalizer(replace, where(path)));
    } else if (type != "Fuse" &&
               type != "Strip") {  // of a whole text's beginning, and this decodes what follows
      refuse(path + ".type",
             fmt::format("decoder \"{}\" is not supported; ByteLevel, ByteFallback, Fuse, Strip, "
                         "Replace, Metaspace and Sequence are",
                         type));
    }
  }

 private:
  std::string origin_;
  json root_;
};

class HuggingFace final : public Tokenizer {
 public:
  explicit HuggingFace(const Reader& file)
      : bpe_(file.bpe()),
        normalize_(make_normalizer(file.part("normalizer"), file.where("normalizer"))),
        pre_tokenize_(make_pre_tokenizer(file.part("pre_tokenizer"), file.where("pre_tokenizer"))) {
    file.read_template(file.part("post_processor"), "post_processor", before_, behind_);
    Reader::Decoding decoding;
    file.read_decoder(file.part("decoder"), "decoder", decoding);
    for (const auto& [text, token] : bpe_.vocab()) set_bytes(token, decoded(text, decoding));
    for (const AddedToken& token : file.added_tokens()) {
      set_bytes(token.token, token.special ? "" : token.content);
      added_[token.content] = token.token;
      (token.normalized ? normalized_ : raw_).push_back(token);
    }
  }

  std::vector<std::int32_t> encode(std::string_view text, bool with_special) const override {
    if (const auto at = first_invalid_byte(text))
      throw_input("the text is not UTF-8 at byte {} (0x{:02X}), and this tokenizer takes nothing else", *at,
                  static_cast<unsigned char>(text[*at]));
    std::vector<std::int32_t> tokens;
    if (with_special) tokens = before_;
    bool begins_text = true;
    for (Segment& raw : cut_at(raw_, {{std::string(text)}})) {
      if (raw.token < 0) normalize_(raw.text);
      for (Segment& segment : cut_at(normalized_, {std::move(raw)})) {
        if (segment.token >= 0) {
          tokens.push_back(segment.token);
        } else {
          std::vector<std::string> pieces;
          if (!segment.text.empty()) pieces.push_back(std::move(segment.text));
          pre_tokenize_(pieces, begins_text);
          for (const std::string& piece : pieces) bpe_.encode(piece, tokens);
        }
        begins_text = false;
      }
    }
    if (with_special) tokens.insert(tokens.end(), behind_.begin(), behind_.end());
    return tokens;
  }

  std::string bytes_of(std::int32_t token) const override {
    return token >= 0 && static_cast<std::size_t>(token) < bytes_V_.size()
               ? bytes_V_[static_cast<std::size_t>(token)]
               : "";
  }
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(bytes_V_.size()); }

  std::optional<std::int32_t> end_of_text() const override {
    // The names that tools/prepare_data.py looks for, in its order.
    for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>",
                             "<|eos|>", "[EOS]", "[SEP]"}) {
      if (const auto found = added_.find(name); found != added_.end()) return found->second;
      if (const auto found = bpe_.vocab().find(name); found != bpe_.vocab().end()) return found->second;
    }
    return std::nullopt;
  }

 private:
  static std::string decoded(const std::string& text, const Reader::Decoding& decoding) {
    unsigned byte = 0;
    if (decoding.byte_fallback && text.size() == 6 && text.starts_with("<0x") && text[5] == '>' &&
        std::sscanf(text.c_str(), "<0x%2X>", &byte) == 1)
      return std::string(1, static_cast<char>(byte));
    std::string out = text;
    for (const Normalizer& replace : decoding.replacements) replace(out);
    if (!decoding.byte_level) return out;
    std::string bytes;
    for (std::size_t at = 0; at < out.size();) {
      const std::size_t size = std::max<std::size_t>(1, character_size(out, at));
      const int value = byte_of_character(code_of(std::string_view(out).substr(at, size)));
      if (value < 0) return out;  // no token of the alphabet: it stands for itself
      bytes += static_cast<char>(value);
      at += size;
    }
    return bytes;
  }
  void set_bytes(std::int32_t token, std::string bytes) {
    const auto at = static_cast<std::size_t>(token);
    if (bytes_V_.size() <= at) bytes_V_.resize(at + 1);
    bytes_V_[at] = std::move(bytes);
  }

  Bpe bpe_;
  Normalizer normalize_;
  PreTokenizer pre_tokenize_;
  std::vector<AddedToken> raw_, normalized_;  // found in the text as it is, or as it is normalised
  std::unordered_map<std::string, std::int32_t> added_;
  std::vector<std::int32_t> before_, behind_;
  std::vector<std::string> bytes_V_;
};

}  // namespace

std::unique_ptr<Tokenizer> parse_hugging_face(const std::string& text, const std::string& origin) {
  return std::make_unique<HuggingFace>(Reader(text, origin));
}

std::unique_ptr<Tokenizer> load_hugging_face(const std::filesystem::path& path) {
  return parse_hugging_face(read_text_file(path), path.string());
}

}  // namespace switchyard::tokenizer
