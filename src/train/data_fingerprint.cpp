#include "train/data_fingerprint.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/manifest.h"
#include "checkpoint/tokenizer_record.h"

namespace switchyard::train {

namespace {

using nlohmann::ordered_json;

ordered_json shards_of(const std::vector<Domain>& domains) {
  ordered_json list = ordered_json::array();
  for (const Domain& domain : domains) {
    for (std::size_t i = 0; i < domain.stream.shards().size(); ++i) {
      const data::Shard& shard = domain.stream.shards()[i];
      list.push_back({{"domain", domain.name},
                      {"name", shard.path().filename().string()},
                      {"tokens", shard.size()},
                      {"token_bytes", shard.token_bytes()},
                      {"crc32", checkpoint::crc_text(domain.crc_of_shard[i])}});
    }
  }
  return list;
}

std::string name_of(const ordered_json& shard) {
  return fmt::format("{} (domain {})", shard.value("name", "?"), shard.value("domain", "?"));
}

bool same_place(const ordered_json& a, const ordered_json& b) {
  return a.value("name", "") == b.value("name", "") && a.value("domain", "") == b.value("domain", "");
}

bool holds(const ordered_json& shards, const ordered_json& shard) {
  return std::any_of(shards.begin(), shards.end(), [&](const auto& other) { return same_place(other, shard); });
}

std::string first_difference(const ordered_json& before, const ordered_json& now) {
  for (std::size_t i = 0; i < std::max(before.size(), now.size()); ++i) {
    if (i >= before.size()) return name_of(now[i]) + " is new";
    if (i >= now.size()) return name_of(before[i]) + " is gone";
    const ordered_json &a = before[i], &b = now[i];
    if (!same_place(a, b)) {
      if (!holds(before, b)) return name_of(b) + " is new";
      if (!holds(now, a)) return name_of(a) + " is gone";
      return fmt::format("{} comes where {} came", name_of(b), name_of(a));
    }
    for (const char* key : {"tokens", "token_bytes", "crc32"})
      if (a.value(key, ordered_json()) != b.value(key, ordered_json()))
        return fmt::format("{} has other tokens: {} was {}, is {}", name_of(b), key,
                           a.value(key, ordered_json()).dump(), b.value(key, ordered_json()).dump());
  }
  return "";
}

// Where one side has no such record, shards were given without their meta.json: that alone changes no sample.
std::string tokenizer_difference(const ordered_json& before, const ordered_json& now) {
  if (!before.is_object() || !now.is_object()) return "";
  for (const auto& [key, value] : before.items())
    if (now.contains(key) && now[key] != value && key != "tokenizer")
      return fmt::format("meta.json beside the shards has another {}: was {}, is {}", key, value.dump(),
                         now[key].dump());
  return "";
}

}  // namespace

std::string data_fingerprint(const std::vector<Domain>& train, const std::vector<Domain>& validation,
                             const config::Data& data) {
  ordered_json fingerprint;
  fingerprint["train"] = shards_of(train);
  fingerprint["validation"] = shards_of(validation);
  fingerprint["tokenizer"] = nullptr;
  for (const auto& [name, text] : checkpoint::tokenizer_files(data))
    if (name == checkpoint::kTokenizerMeta) fingerprint["tokenizer"] = ordered_json::parse(text);
  return fingerprint.dump();
}

std::string first_difference_of_data(const std::string& before_text, const std::string& now_text) {
  const auto before = ordered_json::parse(before_text), now = ordered_json::parse(now_text);
  for (const char* split : {"train", "validation"}) {
    const auto none = ordered_json::array();
    const std::string difference = first_difference(before.value(split, none), now.value(split, none));
    if (!difference.empty()) return fmt::format("data.{}: {}", split, difference);
  }
  const auto tokenizer =
      tokenizer_difference(before.value("tokenizer", ordered_json()), now.value("tokenizer", ordered_json()));
  return tokenizer.empty() ? "" : "data.train: " + tokenizer;
}

}  // namespace switchyard::train
