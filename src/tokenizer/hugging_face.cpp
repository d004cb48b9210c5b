// A tokenizer.json: added tokens cut the text, the rest is normalised, cut into words and merged.
#include <algorithm>
#include <span>

#include "core/error.h"
#include "core/file.h"
#include "core/utf8.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decoding.h"
#include "tokenizer/json_parts.h"
#include "tokenizer/stages.h"
#include "tokenizer/tokenizer.h"

namespace switchyard::tokenizer {

namespace {

constexpr std::int64_t kMostTokens = 1 << 24;  // a larger number is damage, and would cost as much memory

class Reader {
 public:
  Reader(const std::string& text, const std::string& origin) : origin_(origin) {
    if (auto root = try_parse_json(text); root && root->is_object()) {
      root_ = std::move(*root);
      return;
    }
    const std::string other = stand_in(std::as_bytes(std::span(text)));
    throw_input("{}: {}", origin, other.empty() ? "is not a JSON object; give a tokenizer.json" : other);
  }

  const Json& part(std::string_view key) const { return root_[key]; }
  std::string where(const std::string& path) const { return fmt::format("{}: {}", origin_, path); }
  [[noreturn]] void refuse(const std::string& path, const std::string& why) const {
    throw_input("{}: {}: {}", origin_, path, why);
  }

  Bpe bpe() const {
    const Json& model = part("model");
    if (!model.is_object()) refuse("model", "is missing");
    // Old files have no type; only BPE has merges.
    const Json bpe_type = "BPE";
    const Json& type = model.contains("type") || !model.contains("merges") ? model["type"] : bpe_type;
    if (type != bpe_type) refuse("model.type", fmt::format("{} is not supported; BPE is", to_line(type)));
    if (const Json& dropout = model["dropout"]; !dropout.is_null() && dropout != 0.0)
      refuse("model.dropout",
             fmt::format("is {}, which makes the tokens of a text random; set it to null", to_line(dropout)));
    Bpe bpe(vocab(model),
            {.byte_fallback = entry(model, "byte_fallback", where("model"), false),
             .fuse_unknown = entry(model, "fuse_unk", where("model"), false),
             .ignore_merges = entry(model, "ignore_merges", where("model"), false),
             .unknown = unknown(model),
             .continuing_prefix = entry<std::string>(model, "continuing_subword_prefix", where("model"), ""),
             .word_suffix = entry<std::string>(model, "end_of_word_suffix", where("model"), "")});
    read_merges(list_of(model, "merges", where("model")), bpe);
    return bpe;
  }

  std::vector<AddedToken> added_tokens() const {
    std::vector<AddedToken> tokens;
    const Json& list = part("added_tokens");
    if (!list.is_null() && !list.is_array()) refuse("added_tokens", "is not a list");
    for (std::size_t i = 0; i < list.size(); ++i) {
      const std::string path = fmt::format("added_tokens[{}]", i);
      if (!list[i].contains("content")) refuse(path, "is not an object with a content");
      const auto flag = [&](const char* key, bool fallback) {
        return entry(list[i], key, where(path), fallback);
      };
      const bool special = flag("special", false);
      tokens.push_back({.content = entry<std::string>(list[i], "content", where(path), ""),
                        .single_word = flag("single_word", false),
                        .lstrip = flag("lstrip", false),
                        .rstrip = flag("rstrip", false),
                        .normalized = flag("normalized", !special),
                        .special = special});
    }
    return tokens;
  }

  // What stands before and behind a text.
  struct Frame {
    std::vector<std::int32_t> before, behind;
    bool known = false;
  };
  void read_frame(const Json& value, const std::string& path, Frame& frame) const {
    if (value.is_null()) return;
    const std::string type = type_of(value, where(path));
    if (type == "ByteLevel") return;  // of offsets alone
    if (type == "Sequence") {
      const Json::Array& parts = list_of(value, "processors", where(path));
      for (std::size_t i = 0; i < parts.size(); ++i)
        read_frame(parts[i], fmt::format("{}.processors[{}]", path, i), frame);
      return;
    }
    if (frame.known)
      refuse(path + ".type",
             fmt::format("a second one that adds tokens ({}) is not supported", in_quotes(type)));
    frame.known = true;
    if (type == "TemplateProcessing") {
      read_template(value, path, frame);
    } else if (type == "RobertaProcessing" || type == "BertProcessing") {
      frame.before = {token_of(value, "cls", path)};
      frame.behind = {token_of(value, "sep", path)};
    } else {
      refuse(path + ".type", fmt::format("post-processor {} is not supported; TemplateProcessing, "
                                         "RobertaProcessing, BertProcessing, ByteLevel and Sequence are",
                                         in_quotes(type)));
    }
  }

 private:
  TextMap<std::int32_t> vocab(const Json& model) const {
    TextMap<std::int32_t> vocab;
    if (!model["vocab"].is_object()) refuse("model.vocab", "is not an object");
    for (const auto& [text, id] : model["vocab"].object()) {
      if (!is_token(id))
        refuse("model.vocab", fmt::format("{} has {} for a token", in_quotes(text), to_line(id)));
      vocab.emplace(text, static_cast<std::int32_t>(id.integer()));
    }
    return vocab;
  }

  std::optional<std::string> unknown(const Json& model) const {
    if (model["unk_token"].is_null()) return std::nullopt;
    return entry<std::string>(model, "unk_token", where("model"), "");
  }

  void read_merges(const Json::Array& merges, Bpe& bpe) const {
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const std::string path = fmt::format("model.merges[{}]", i);
      const Json& merge = merges[i];
      std::string left, right;
      if (merge.is_string()) {
        const std::string& both = merge.text();
        if (both.starts_with("#version")) continue;
        const std::size_t space = both.find(' ');
        if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
          refuse(path, "is not two tokens with a space between");
        left = both.substr(0, space), right = both.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].text(), right = merge[1].text();
      } else {
        refuse(path, "is neither \"a b\" nor [\"a\", \"b\"]");
      }
      if (!bpe.add_merge(left, right)) refuse(path, "names a token that is not in model.vocab");
    }
  }

  static bool is_token(const Json& id) {
    const auto* number = id.get<std::int64_t>();
    return number != nullptr && *number >= 0 && *number <= kMostTokens;
  }
  std::int32_t checked_token(const Json& id, const std::string& path) const {
    if (!is_token(id)) refuse(path, fmt::format("{} is no token", to_line(id)));
    return static_cast<std::int32_t>(id.integer());
  }

  std::int32_t token_of(const Json& value, const char* key, const std::string& path) const {
    const Json& pair = value[key];
    if (!pair.is_array() || pair.size() != 2) refuse(path + "." + key, "is not [text, token]");
    return checked_token(pair[1], path + "." + key);
  }

  void read_template(const Json& value, const std::string& path, Frame& frame) const {
    const Json& names = value["special_tokens"];
    int texts = 0;
    for (const Json& piece : list_of(value, "single", where(path))) {
      if (piece.contains("Sequence")) {
        if (piece["Sequence"]["id"] != "A" || ++texts > 1)
          refuse(path + ".single", "has another text than A, or it twice");
        continue;
      }
      const Json& name = piece["SpecialToken"]["id"];
      const Json* token = name.is_string() ? names.find(name.text()) : nullptr;
      if (token == nullptr || !token->is_object())
        refuse(path + ".single", fmt::format("{} is not in special_tokens", to_line(name)));
      for (const Json& id : list_of(*token, "ids", where(path + ".special_tokens")))
        (texts > 0 ? frame.behind : frame.before).push_back(checked_token(id, path + ".special_tokens"));
    }
    if (texts == 0) refuse(path + ".single", "leaves the text out");
  }

  std::string origin_;
  Json root_;
};

class HuggingFace final : public Tokenizer {
 public:
  explicit HuggingFace(const Reader& file)
      : bpe_(file.bpe()),
        added_(file.added_tokens(), bpe_, make_normalizer(file.part("normalizer"), file.where("normalizer")),
               file.where("added_tokens")),
        pre_tokenize_(make_pre_tokenizer(file.part("pre_tokenizer"), file.where("pre_tokenizer"))),
        decoding_(file.part("decoder"), file.where("decoder")) {
    file.read_frame(file.part("post_processor"), "post_processor", frame_);
    for (const auto& [text, token] : bpe_.vocab()) set_part(token, text);
    for (const auto& [token, added] : added_.tokens()) set_part(token, added_.text_of(token));
  }

  std::vector<std::int32_t> encode(std::string_view text, bool with_special,
                                   bool special_as_text) const override {
    if (const auto at = first_invalid_byte(text))
      throw_input("the text is not UTF-8 at byte {} (0x{:02X}), and this tokenizer takes nothing else", *at,
                  static_cast<unsigned char>(text[*at]));
    std::vector<std::int32_t> tokens;
    if (with_special) tokens = frame_.before;
    std::vector<Piece> pieces;
    for (Segment& segment : added_.cut(text, special_as_text)) {
      if (segment.token >= 0) {
        tokens.push_back(segment.token);
        continue;
      }
      pieces.clear();
      pieces.push_back(std::move(segment.piece));
      pre_tokenize_(pieces);
      for (const Piece& piece : pieces) bpe_.encode(piece.text, tokens);
    }
    if (with_special) tokens.insert(tokens.end(), frame_.behind.begin(), frame_.behind.end());
    return tokens;
  }

  std::unique_ptr<TextStream> text_stream() const override { return decoding_.stream(parts_V_); }
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(parts_V_.size()); }

  std::optional<std::int32_t> end_of_text() const override {
    // The names that tools/prepare_data.py looks for, in its order.
    for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>",
                             "<|eos|>", "[EOS]", "[SEP]"}) {
      if (const auto found = added_.by_content().find(name); found != added_.by_content().end())
        return found->second;
      if (const auto found = bpe_.vocab().find(name); found != bpe_.vocab().end()) return found->second;
    }
    return std::nullopt;
  }

  Description describe() const {
    Description about{};
    about.vocab_size = vocab_size();
    about.model_tokens = static_cast<std::int64_t>(bpe_.vocab().size());
    about.merges = static_cast<std::int64_t>(bpe_.merges());
    about.added_tokens = static_cast<std::int64_t>(added_.tokens().size());
    about.special_tokens = std::count_if(added_.tokens().begin(), added_.tokens().end(),
                                         [](const auto& each) { return each.second.special; });
    about.begin = frame_.before;
    about.end = frame_.behind;
    about.end_of_text = end_of_text();
    return about;
  }

 private:
  void set_part(std::int32_t token, const std::string& text) {
    const auto at = static_cast<std::size_t>(token);
    if (parts_V_.size() <= at) parts_V_.resize(at + 1);
    parts_V_[at].reset();
    if (!added_.is_special(text)) parts_V_[at] = decoding_.part_of(text);
  }

  Bpe bpe_;
  AddedTokens added_;
  PreTokenizer pre_tokenize_;
  Decoding decoding_;
  Reader::Frame frame_;
  std::vector<std::optional<Decoding::Part>> parts_V_;
};

// The types of a part and of the parts in it.
std::string outline(const Json& part) {
  if (!part.is_object()) return "none";
  std::string inner;
  for (const auto& [key, member] : part.object())
    if (const auto* list = member.get<Json::Array>())
      for (const Json& each : *list)
        if (each.contains("type")) inner += (inner.empty() ? "" : ", ") + outline(each);
  const std::string type = part["type"].is_string() ? part["type"].text() : "none";
  return inner.empty() ? type : fmt::format("{}({})", type, inner);
}

}  // namespace

std::unique_ptr<Tokenizer> parse_hugging_face(const std::string& text, const std::string& origin) {
  return std::make_unique<HuggingFace>(Reader(text, origin));
}

std::unique_ptr<Tokenizer> load_hugging_face(const std::filesystem::path& path) {
  return parse_hugging_face(read_text_file(path), path.string());
}

bool looks_like_hugging_face(const std::string& text) {
  const std::optional<Json> root = try_parse_json(text);
  return root && std::as_const(*root)["model"].contains("vocab");
}

Description describe_hugging_face(const std::string& text, const std::string& origin) {
  const Reader file(text, origin);
  Description about = HuggingFace(file).describe();
  about.normalizer = outline(file.part("normalizer"));
  about.pre_tokenizer = outline(file.part("pre_tokenizer"));
  about.post_processor = outline(file.part("post_processor"));
  about.decoder = outline(file.part("decoder"));
  return about;
}

}  // namespace switchyard::tokenizer
