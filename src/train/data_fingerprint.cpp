#include "train/data_fingerprint.h"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/manifest.h"
#include "checkpoint/tokenizer_record.h"
#include "core/json.h"

namespace switchyard::train {

namespace {

Json shards_of(const std::vector<Domain>& domains) {
  Json::Array list;
  for (const Domain& domain : domains) {
    for (std::size_t i = 0; i < domain.stream.shards().size(); ++i) {
      const data::Shard& shard = domain.stream.shards()[i];
      list.push_back(Json(Json::Object{{"domain", domain.name},
                                       {"name", shard.path().filename().string()},
                                       {"tokens", shard.size()},
                                       {"token_bytes", shard.token_bytes()},
                                       {"crc32", checkpoint::crc_text(domain.crc_of_shard[i])}}));
    }
  }
  return Json(std::move(list));
}

std::string name_of(const Json& shard) {
  const auto text = [&](const char* key) { return shard[key].is_string() ? shard[key].text() : "?"; };
  return fmt::format("{} (domain {})", text("name"), text("domain"));
}

bool same_place(const Json& a, const Json& b) { return a["name"] == b["name"] && a["domain"] == b["domain"]; }

bool holds(const Json::Array& shards, const Json& shard) {
  return std::any_of(shards.begin(), shards.end(), [&](const Json& other) { return same_place(other, shard); });
}

std::string first_difference(const Json::Array& before, const Json::Array& now) {
  for (std::size_t i = 0; i < std::max(before.size(), now.size()); ++i) {
    if (i >= before.size()) return name_of(now[i]) + " is new";
    if (i >= now.size()) return name_of(before[i]) + " is gone";
    const Json &a = before[i], &b = now[i];
    if (!same_place(a, b)) {
      if (!holds(before, b)) return name_of(b) + " is new";
      if (!holds(now, a)) return name_of(a) + " is gone";
      return fmt::format("{} comes where {} came", name_of(b), name_of(a));
    }
    for (const char* key : {"tokens", "token_bytes", "crc32"})
      if (a[key] != b[key])
        return fmt::format("{} has other tokens: {} was {}, is {}", name_of(b), key, to_line(a[key]),
                           to_line(b[key]));
  }
  return "";
}

// Where one side has no such record, shards were given without their meta.json: that alone changes no sample.
std::string tokenizer_difference(const Json& before, const Json& now) {
  if (!before.is_object() || !now.is_object()) return "";
  for (const auto& [key, value] : before.object())
    if (now.contains(key) && now[key] != value && key != "tokenizer")
      return fmt::format("meta.json beside the shards has another {}: was {}, is {}", key, to_line(value),
                         to_line(now[key]));
  return "";
}

}  // namespace

std::string data_fingerprint(const std::vector<Domain>& train, const std::vector<Domain>& validation,
                             const config::Data& data) {
  Json fingerprint;
  fingerprint["train"] = shards_of(train);
  fingerprint["validation"] = shards_of(validation);
  fingerprint["tokenizer"] = Json();
  for (const auto& [name, text] : checkpoint::tokenizer_files(data))
    if (name == checkpoint::kTokenizerMeta) fingerprint["tokenizer"] = parse_stored_json(text, name);
  return to_line(fingerprint);
}

std::string first_difference_of_data(const std::string& before_text, const std::string& now_text) {
  const Json before = parse_stored_json(before_text, "the checkpoint's data"),
             now = parse_stored_json(now_text, "the run's data");
  const auto shards = [](const Json& data, const char* split) {
    return data[split].is_array() ? data[split].array() : Json::Array();
  };
  for (const char* split : {"train", "validation"}) {
    const std::string difference = first_difference(shards(before, split), shards(now, split));
    if (!difference.empty()) return fmt::format("data.{}: {}", split, difference);
  }
  const std::string tokenizer = tokenizer_difference(before["tokenizer"], now["tokenizer"]);
  return tokenizer.empty() ? "" : "data.train: " + tokenizer;
}

}  // namespace switchyard::train
