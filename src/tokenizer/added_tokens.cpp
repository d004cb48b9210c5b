#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <map>

#include "core/error.h"
#include "core/json.h"
#include "tokenizer/unicode.h"

namespace switchyard::tokenizer {

bool Trie::add(const std::string& text, std::int32_t value) {
  begins_[static_cast<unsigned char>(text[0])] = true;
  std::uint32_t node = 0;
  for (const char c : text) {
    const auto [edge, fresh] =
        next_.try_emplace(std::uint64_t{node} << 8 | static_cast<unsigned char>(c), nodes_);
    nodes_ += fresh;
    node = edge->second;
  }
  return value_.try_emplace(node, value).second;
}

std::int32_t Trie::longest(std::string_view text, std::size_t at, std::size_t& end) const {
  if (!begins_[static_cast<unsigned char>(text[at])]) return -1;
  std::int32_t found = -1;
  std::uint32_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto edge = next_.find(std::uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (edge == next_.end()) break;
    node = edge->second;
    if (const auto value = value_.find(node); value != value_.end()) found = value->second, end = i + 1;
  }
  return found;
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens, const Bpe& model, Normalizer normalize,
                         const std::string& where)
    : normalize_(std::move(normalize)) {
  auto next = static_cast<std::int32_t>(model.vocab().size());
  for (const AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    const auto added = by_content_.find(token.content);
    const auto known = model.vocab().find(token.content);
    const std::int32_t id = added != by_content_.end()     ? added->second
                            : known != model.vocab().end() ? known->second
                                                           : next++;
    by_content_.insert_or_assign(token.content, id);
    by_token_.insert_or_assign(id, token);
    if (token.special) special_.insert(token.content);
  }
  for (const auto& [id, token] : std::map(by_token_.begin(), by_token_.end())) {
    Piece content = whole_text(token.content);
    if (token.normalized) normalize_(content);
    text_[id] = content.text;
    if (content.text.empty())
      throw_input("{}: {} is nothing once it is normalised; set normalized to false or remove it", where,
                  in_quotes(token.content));
    if (!(token.normalized ? normalized_ : raw_).add(content.text, id))
      throw_input(
          "{}: {} and another token with normalized: true are both {} once they are normalised, and "
          "Hugging "
          "Face's library takes any of the two; remove one",
          where, in_quotes(token.content), in_quotes(content.text));
  }
}

std::vector<Segment> AddedTokens::cut(std::string_view text, bool special_as_text) const {
  std::vector<Segment> raw, out;
  cut_at(raw_, whole_text(text), special_as_text, raw);
  for (Segment& segment : raw) {
    if (segment.token >= 0) {
      out.push_back(std::move(segment));
    } else {
      normalize_(segment.piece);
      cut_at(normalized_, std::move(segment.piece), special_as_text, out);
    }
  }
  return out;
}

namespace {

// The character that ends at `end`, which is not 0.
char32_t code_before(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return code_of(text.substr(at, end - at));
}
char32_t code_behind(std::string_view text, std::size_t at) {
  return code_of(text.substr(at, character_size(text, at)));
}

std::size_t before_spaces(std::string_view text, std::size_t at) {
  while (at > 0 && is_space(code_before(text, at))) {
    do --at;
    while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  }
  return at;
}
std::size_t behind_spaces(std::string_view text, std::size_t at) {
  while (at < text.size() && is_space(code_behind(text, at))) at += character_size(text, at);
  return at;
}

}  // namespace

// The leftmost token first, the longest of those that begin there. One whose white space or neighbours do not
// suit it is passed over whole.
void AddedTokens::cut_at(const Trie& trie, Piece piece, bool special_as_text, std::vector<Segment>& out) const {
  const std::string_view text = piece.text;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = 0;
    const std::int32_t id = trie.longest(text, at, end);
    if (id < 0) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    at = end;
    const AddedToken& token = by_token_.at(id);
    if (special_as_text && special_.contains(token.content)) continue;
    if (token.single_word && ((begin > 0 && is_word(code_before(text, begin))) ||
                              (end < text.size() && is_word(code_behind(text, end)))))
      continue;
    if (token.lstrip) begin = std::max(done, before_spaces(text, begin));
    if (token.rstrip) end = behind_spaces(text, end);
    if (begin > end)
      throw_input(
          "byte {} of the text: two added tokens take the same white space, on which Hugging Face's library "
          "fails",
          end);
    if (done < begin) out.push_back({slice(piece, done, begin)});
    if (begin < end) out.push_back({{}, id});
    // White space that it took may hold another token: that is found all the same, and what is behind it is cut
    // once more.
    done = end;
  }
  if (done < text.size()) out.push_back({slice(piece, done, text.size())});
}

}  // namespace switchyard::tokenizer
