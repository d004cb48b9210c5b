// The ready configurations in configs/ and the keys in docs/configuration.md.
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "config/keys.h"
#include "config_samples.h"
#include "core/file.h"

namespace switchyard::config {
namespace {

TEST(ConfigFiles, EveryReadyConfigurationIsValidAndResolves) {
  int files = 0;
  for (const auto& file : std::filesystem::directory_iterator(source_dir() / "configs")) {
    if (file.path().extension() != ".json") continue;
    ++files;
    const config::Run run = load_run(file.path().string(), {});
    EXPECT_EQ(parse_run(run.resolved_json, "resolved", {}), run) << file.path();
  }
  EXPECT_GE(files, 5);
}

TEST(ConfigFiles, TheBenchmarkHasItsShape) {
  const config::Run run = load_run((source_dir() / "configs/bench_cpu_86m.json").string(), {});
  const Model& m = run.model;
  const std::int64_t attention =
      2 * m.hidden_size * m.head_dim * (m.num_attention_heads + m.num_key_value_heads);
  const std::int64_t experts = m.num_experts * m.hidden_size * (3 * m.moe_intermediate_size + 1);
  const std::int64_t norms = 2 * m.hidden_size + 2 * m.head_dim;
  const std::int64_t total =
      2 * m.vocab_size * m.hidden_size + m.num_hidden_layers * (attention + experts + norms) + m.hidden_size;
  EXPECT_EQ(total, 85791744);
  EXPECT_EQ(run.train.seq_len, 256);
  EXPECT_EQ(run.train.micro_batch_size, 4);
  EXPECT_FALSE(m.tie_word_embeddings);
}

TEST(ConfigFiles, TheDenseBaselineHasNoMoeLayer) {
  const config::Run run = load_run((source_dir() / "configs/dense_cpu_small.json").string(), {});
  for (const bool moe : run.model.is_moe_layer) EXPECT_FALSE(moe);
}

// Of each "## section" of the page, the rows of its tables: key -> cell of the default.
std::map<std::string, std::map<std::string, std::string>> documented() {
  std::map<std::string, std::map<std::string, std::string>> sections;
  std::istringstream page(read_text_file(source_dir() / "docs/configuration.md"));
  std::string line, section;
  while (std::getline(page, line)) {
    if (line.starts_with("## ")) section = line.substr(3);
    if (!line.starts_with("| `")) continue;
    std::vector<std::string> cells;
    std::istringstream row(line.substr(2));
    for (std::string cell; std::getline(row, cell, '|');) {
      const auto first = cell.find_first_not_of(' ');
      cells.push_back(first == std::string::npos ? ""
                                                 : cell.substr(first, cell.find_last_not_of(' ') + 1 - first));
    }
    EXPECT_EQ(cells.size(), 5u) << line;
    cells.resize(5);
    sections[section][cells[0].substr(1, cells[0].size() - 2)] = cells[2];
  }
  return sections;
}

TEST(ConfigFiles, ThePageHasEveryKeyAndNoOther) {
  std::map<std::string, std::map<std::string, bool>> known;
  for (const SectionKeys& section : all_sections()) {
    // The top level has the sections themselves; two pairs of sections share a table.
    std::string name(section.name);
    if (name.empty() || name == "data.validation.N") continue;
    if (name == "model.rope_scaling") name = "model.rope_parameters";
    for (const std::string_view key : section.keys) known[name][std::string(key)] = true;
  }
  const auto page = documented();
  for (const auto& [section, keys] : known) {
    for (const auto& [key, _] : keys) {
      EXPECT_TRUE(page.contains(section) && page.at(section).contains(key))
          << "not in the page: " << section << "." << key;
    }
  }
  for (const auto& [section, rows] : page) {
    for (const auto& [key, _] : rows)
      EXPECT_TRUE(known[section].contains(key)) << "no such key: " << section << "." << key;
  }
  const std::string text = read_text_file(source_dir() / "docs/configuration.md");
  for (const std::string_view key : ignored_model_keys()) EXPECT_CONTAINS(text, fmt::format("`{}`", key));
}

TEST(ConfigFiles, ThePagesDefaultsAreTheCodes) {
  const auto page = documented();
  const json resolved = json::parse(run_of(minimal_run()).resolved_json);
  int compared = 0;
  for (const char* section : {"router", "data", "train", "parallel", "checkpoint", "log"}) {
    for (const auto& [key, value] : resolved[section].items()) {
      const std::string cell = page.at(section).at(key);
      if (!cell.starts_with('`')) continue;  // required, or in words
      const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
      EXPECT_EQ(cell, fmt::format("`{}`", text)) << section << "." << key;
      ++compared;
    }
  }
  EXPECT_GE(compared, 20);
}

}  // namespace
}  // namespace switchyard::config
