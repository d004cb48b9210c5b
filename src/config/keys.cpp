#include "config/keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "config/fields.h"
#include "config/layouts.h"
#include "config/spelling.h"
#include "core/error.h"

namespace switchyard::config {
namespace {

using Key = std::string_view;

constexpr Key kTop[] = {"model", "router", "data", "train", "parallel", "checkpoint", "eval", "log", "extends"};

constexpr Key kRope[] = {
    "rope_type",     "type",      "rope_theta", "factor",           "original_max_position_embeddings",
    "beta_fast",     "beta_slow", "truncate",   "attention_factor", "mscale",
    "mscale_all_dim"};

constexpr Key kIgnoredModel[] = {"architectures",
                                 "transformers_version",
                                 "torch_dtype",
                                 "dtype",
                                 "use_cache",
                                 "bos_token_id",
                                 "eos_token_id",
                                 "pad_token_id",
                                 "sep_token_id",
                                 "output_router_logits",
                                 "output_attentions",
                                 "output_hidden_states",
                                 "return_dict",
                                 "_name_or_path",
                                 "name_or_path",
                                 "attn_implementation",
                                 "_attn_implementation",
                                 "_attn_implementation_autoset",
                                 "auto_map",
                                 "is_decoder",
                                 "is_encoder_decoder",
                                 "add_cross_attention",
                                 "cross_attention_hidden_size",
                                 "chunk_size_feed_forward",
                                 "id2label",
                                 "label2id",
                                 "problem_type",
                                 "tokenizer_class",
                                 "torchscript",
                                 "model_name",
                                 "base_model_tp_plan",
                                 "base_model_pp_plan",
                                 "keys_to_ignore_at_inference",
                                 "_commit_hash",
                                 "experts_implementation",
                                 "_experts_implementation",
                                 "trust_remote_code",
                                 "use_bfloat16",
                                 "tf_legacy_loss",
                                 "unsloth_version",
                                 "unsloth_fixed",
                                 "transformers.js_config",
                                 "unk_token_id",
                                 "cls_token_id",
                                 "mask_token_id",
                                 "decoder_start_token_id",
                                 "forced_bos_token_id",
                                 "forced_eos_token_id",
                                 "max_length",
                                 "min_length",
                                 "max_new_tokens",
                                 "do_sample",
                                 "early_stopping",
                                 "num_beams",
                                 "num_beam_groups",
                                 "diversity_penalty",
                                 "temperature",
                                 "top_p",
                                 "typical_p",
                                 "repetition_penalty",
                                 "length_penalty",
                                 "no_repeat_ngram_size",
                                 "encoder_no_repeat_ngram_size",
                                 "bad_words_ids",
                                 "num_return_sequences",
                                 "output_scores",
                                 "return_dict_in_generate",
                                 "remove_invalid_values",
                                 "exponential_decay_length_penalty",
                                 "suppress_tokens",
                                 "begin_suppress_tokens",
                                 "prefix",
                                 "task_specific_params",
                                 "finetuning_task"};

std::string in_ticks(std::string_view text) { return fmt::format("`{}`", text); }

// 1e6 in place of 1e+06.
std::string short_number(double value) {
  std::string text = fmt::format("{:g}", value);
  const std::size_t exponent = text.find("e+");
  if (exponent != std::string::npos) text.erase(exponent + 1, text[exponent + 2] == '0' ? 2 : 1);
  return text;
}

std::string words_of(const Interval& range) {
  return fmt::format("{}{}, {}{}", range.low_open ? '(' : '[', short_number(range.low),
                     short_number(range.high), range.high_open ? ')' : ']');
}

std::string words_of(std::int64_t low, std::int64_t high) {
  return high == kMaxSize ? fmt::format("at least {}", low) : fmt::format("[{}, {}]", low, high);
}

// Collects what each key is.
class FieldLister {
 public:
  template <class Section, class... Options>
  static std::vector<FieldText> list(Options... options) {
    Section value;
    FieldLister lister;
    describe(lister, value, options...);
    return std::move(lister.texts_);
  }

  void seed(const Field& f, std::uint64_t value) {
    put(f, "integer", in_ticks(std::to_string(value)), fmt::format("[0, {}]", UINT64_MAX));
  }
  void required_integer(const Field& f, std::int64_t, std::int64_t low) {
    put(f, "integer", "required", words_of(low, kMaxSize));
  }
  void integer(const Field& f, std::int64_t value, std::int64_t low, std::int64_t high = kMaxSize) {
    put(f, "integer", in_ticks(std::to_string(value)), words_of(low, high));
  }
  void nullable_integer(const Field& f, const std::optional<std::int64_t>&, std::int64_t low) {
    put(f, "integer or null", "`null`", words_of(low, kMaxSize));
  }
  void number(const Field& f, double value, const Interval& range) {
    put(f, "number", in_ticks(to_line(value)), words_of(range));
  }
  void nullable_number(const Field& f, const std::optional<double>&, const Interval& range) {
    put(f, "number or null", "`null`", words_of(range));
  }
  void optional_number(const Field& f, const std::optional<double>&, const Interval& range) {
    put(f, "number", "none", words_of(range));
  }
  void boolean(const Field& f, bool value) { put(f, "boolean", value ? "`true`" : "`false`", ""); }
  void required_text(const Field& f, const std::string&) { put(f, "string", "required", "not empty"); }
  void text(const Field& f, const std::string& value) { put(f, "string", in_ticks(value), "not empty"); }
  template <class Enum, std::size_t N, class... FullName>
  void choice(const Field& f, Enum value, const Enum (&all)[N], FullName...) {
    std::string words;
    for (const Enum each : all) words += (words.empty() ? "" : ", ") + in_ticks(name_of(each));
    put(f, "string", in_ticks(name_of(value)), words);
  }
  void texts(const Field& f, const std::vector<std::string>&) { put(f, "array", "`[]`", ""); }
  void bytes(const Field& f, std::int64_t value) {
    put(f, "integer or string", in_ticks(std::to_string(value)), "at least 1");
  }
  void micro_batch(const Field& f, std::int64_t) { put(f, "integer or string", "required", ""); }
  void room(const Field& f, double) { put(f, "number or string", "`auto`", ""); }
  void spike(const Field& f, const Spike&) { put(f, "object or boolean", "", ""); }
  void entries(const Field& f, const std::vector<DataEntry>&, bool) { put(f, "array", "", ""); }

 private:
  void put(const Field& f, const char* type, const std::string& fallback, const std::string& range) {
    texts_.push_back({f.key, type, f.fallback.empty() ? fallback : std::string(f.fallback),
                      f.range.empty() ? range : std::string(f.range), f.meaning});
  }
  std::vector<FieldText> texts_;
};

const std::map<std::string_view, std::vector<FieldText>>& all_texts() {
  static const std::map<std::string_view, std::vector<FieldText>> texts = {
      {"router", FieldLister::list<Router>()},
      {"data", FieldLister::list<Data>()},
      {"data.train.N", FieldLister::list<DataEntry>(true)},
      {"data.validation.N", FieldLister::list<DataEntry>(false)},
      {"train", FieldLister::list<Train>()},
      {"train.spike", FieldLister::list<Spike>()},
      {"parallel", FieldLister::list<Parallel>()},
      {"checkpoint", FieldLister::list<Checkpoint>()},
      {"eval", FieldLister::list<Eval>()},
      {"log", FieldLister::list<Log>()}};
  return texts;
}

// The keys of a section that is described; `first` are those that are not.
std::span<const Key> keys_of(std::string_view section, std::initializer_list<Key> first = {}) {
  static std::map<std::string_view, std::vector<Key>> keys;
  std::vector<Key>& list = keys[section];
  list = first;
  for (const FieldText& text : all_texts().at(section)) list.push_back(text.key);
  return list;
}

}  // namespace

const std::vector<FieldText>& field_texts(std::string_view section) {
  static const std::vector<FieldText> none;
  const auto found = all_texts().find(section);
  return found == all_texts().end() ? none : found->second;
}

std::span<const SectionKeys> all_sections() {
  static const std::vector<SectionKeys> sections = [] {
    std::vector<SectionKeys> list = {
        {"", "", kTop},
        {"model.rope_parameters", "", kRope},
        {"model.rope_scaling", "", kRope},
        {"router", "", keys_of("router", {"type", "balance_coef"})},  // each type has its own (router_schema.h)
        {"data", "", keys_of("data")},
        {"data.train.N", "", keys_of("data.train.N")},
        {"data.validation.N", "", keys_of("data.validation.N")},
        {"train", "", keys_of("train")},
        {"train.spike", "", keys_of("train.spike")},
        {"parallel", "", keys_of("parallel")},
        {"checkpoint", "", keys_of("checkpoint")},
        {"eval", "", keys_of("eval")},
        {"log", "", keys_of("log")}};
    static std::vector<Key> keys[std::size(kLayouts)];
    for (std::size_t i = 0; i < std::size(kLayouts); ++i) {
      const auto every = keys_of_every_layout();
      keys[i].assign(every.begin(), every.end());
      keys[i].insert(keys[i].end(), kLayouts[i]->keys.begin(), kLayouts[i]->keys.end());
      list.insert(list.begin() + 1 + static_cast<std::ptrdiff_t>(i), {"model", kLayouts[i]->name, keys[i]});
    }
    return list;
  }();
  return sections;
}

const SectionKeys& section_keys(std::string_view name, std::string_view layout) {
  for (const SectionKeys& section : all_sections()) {
    if (section.name == name && section.layout == layout) return section;
  }
  SY_CHECK(false, "no section {} {}", name, layout);
  return all_sections()[0];
}

std::span<const std::string_view> ignored_model_keys() { return kIgnoredModel; }

namespace {

struct HelpEntry {
  std::string section, key, text;
};

std::string without_ticks(std::string text) {
  std::erase(text, '`');
  return text;
}

std::string text_of(const FieldText& field) {
  std::string text = field.type;
  if (!field.fallback.empty())
    text += (field.fallback.starts_with("required") ? "; " : "; default ") + field.fallback;
  if (!field.range.empty()) text += "; " + field.range;
  return without_ticks(text + "\n    " + std::string(field.meaning));
}

// docs/configuration.md, compiled in.
constexpr std::string_view kPage =
#include "configuration_page.inc"
    ;

// "a" of "  a ".
std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(' ');
  return first == std::string_view::npos ? "" : text.substr(first, text.find_last_not_of(' ') + 1 - first);
}

// The texts of the keys that fields.h does not describe: those of a Hugging Face config.json and of single
// routers. A row of the page is  | `key` | type | default | range | meaning |.
std::vector<HelpEntry> page_entries() {
  std::vector<HelpEntry> entries;
  std::string_view section, layouts;  // whose keys the table at hand has; empty: of all
  for (std::string_view rest = kPage; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.starts_with("## ")) {
      section = line.substr(3);
      layouts = "";
    } else if (line == "All layouts:") {
      layouts = "";
    } else if (section == "model" && line.ends_with(':') &&
               (line.starts_with("Only `") || line.starts_with('`'))) {
      layouts = line.substr(line.find('`'), line.size() - 1 - line.find('`'));
    } else if (line.starts_with("| `")) {
      std::string_view cells[5];
      std::string_view row = line.substr(2);
      for (std::string_view& cell : cells) {
        cell = trimmed(row.substr(0, row.find('|')));
        row.remove_prefix(std::min(row.size(), row.find('|') + 1));
      }
      const FieldText field{cells[0], std::string(cells[1]), std::string(cells[2]), std::string(cells[3]),
                            cells[4]};
      entries.push_back(
          {std::string(section), without_ticks(std::string(field.key)),
           without_ticks(layouts.empty() ? "" : fmt::format("of {}: ", layouts)) + text_of(field)});
    }
  }
  return entries;
}

std::vector<HelpEntry> help_entries(std::span<const RouterSchema> routers) {
  const std::vector<HelpEntry> page = page_entries();
  std::vector<HelpEntry> entries;
  const auto add = [&](std::string_view section, std::string_view key) {
    for (const HelpEntry& entry : entries)
      if (entry.section == section && entry.key == key) return;
    entries.push_back({std::string(section), std::string(key), ""});
    std::string& text = entries.back().text;
    for (const FieldText& field : field_texts(section))
      if (field.key == key) text = text_of(field);
    if (!text.empty()) return;
    for (const HelpEntry& row : page)
      if (row.section == section && row.key == key) text += (text.empty() ? "" : "\n  ") + row.text;
  };
  for (const SectionKeys& section : all_sections()) {
    if (section.name.empty() || section.name == "model.rope_scaling") continue;
    for (const std::string_view key : section.keys) add(section.name, key);
    if (section.name != "router") continue;
    for (const RouterSchema& router : routers)
      for (const RouterOption& option : router.options) add("router", option.key);
  }
  return entries;
}

}  // namespace

std::string help_on(std::string_view name, std::span<const RouterSchema> routers) {
  std::string out;
  std::vector<std::string> names;
  std::string section;
  for (const HelpEntry& entry : help_entries(routers)) {
    const std::string path = entry.section + "." + entry.key;
    if (name.empty()) {
      if (entry.section != section) out += (out.empty() ? "" : "\n") + entry.section + ":";
      out += " " + entry.key;
    } else if (name == entry.section || name == path || name == entry.key) {
      out += fmt::format("{}\n  {}\n", path, entry.text);
    }
    if (entry.section != section) names.push_back(entry.section);
    names.push_back(path);
    names.push_back(entry.key);
    section = entry.section;
  }
  if (name.empty()) return out + "\n";
  if (!out.empty()) return out;
  const std::vector<std::string_view> views(names.begin(), names.end());
  const std::string_view near = nearest(std::string(name), views);
  throw_input(
      "help config {}: no section or key of that name{}", printable(name),
      near.empty() ? "; 'switchyard help config' lists them" : fmt::format("; did you mean \"{}\"?", near));
}

}  // namespace switchyard::config
