// The ready configurations in configs/ and the keys in docs/configuration.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "config/fields.h"
#include "config/keys.h"
#include "config/layouts.h"
#include "config/names.h"
#include "config_samples.h"
#include "core/file.h"
#include "option_values.h"

namespace switchyard::config {
namespace {

TEST(ConfigFiles, EveryReadyConfigurationIsValidAndResolves) {
  int files = 0;
  for (const auto& file : std::filesystem::recursive_directory_iterator(source_dir() / "configs")) {
    const std::string folder = file.path().parent_path().filename();
    if (file.path().extension() != ".json" || folder == "hf" || folder == "sweeps") continue;
    ++files;
    const config::Run run = load_run(file.path().string(), {}, router::router_schemas());
    EXPECT_EQ(parse_run(run.resolved_json, "resolved", {}, router::router_schemas()), run) << file.path();
  }
  EXPECT_GE(files, 18);
}

// Counted from the layouts' definition, apart from the code that builds models. Multi-token prediction layers
// are not counted, the embedding is active.
struct Count {
  std::int64_t total = 0, active = 0;
};
Count count_of(const Model& m) {
  const std::int64_t d = m.hidden_size, h = m.num_attention_heads, n = m.head_dim;
  const std::int64_t moe = count_moe_layers(m);
  std::int64_t attention = 2 * d * n * (h + m.num_key_value_heads) + (m.qk_norm == QkNorm::head ? 2 * n : 0) +
                           (m.qk_norm == QkNorm::projection ? (h + m.num_key_value_heads) * n : 0);
  if (m.mla) {
    const auto& [q, kv, p, r, v] = *m.mla;
    attention = d * q + q + q * h * (p + r) + d * (kv + r) + kv + kv * h * (p + v) + h * v * d;
  }
  const std::int64_t expert = 3 * d * m.moe_intermediate_size;
  const std::int64_t gate = m.num_experts * (d + (m.layout == &kDeepseekV3 ? 1 : 0));  // and the bias
  const std::int64_t rest = 2 * m.vocab_size * d + d + m.num_hidden_layers * (attention + 2 * d) +
                            (m.num_hidden_layers - moe) * 3 * d * m.intermediate_size +
                            moe * (gate + m.n_shared_experts * expert);
  return {rest + moe * m.num_experts * expert, rest + moe * m.num_experts_per_tok * expert};
}

TEST(ConfigFiles, TheBenchmarkHasItsShape) {
  const config::Run run =
      load_run((source_dir() / "configs/bench_cpu_86m.json").string(), {}, router::router_schemas());
  EXPECT_EQ(count_of(run.model).total, 85791744);
  EXPECT_EQ(run.train.seq_len, 256);
  EXPECT_EQ(run.train.micro_batch_size, 4);
  EXPECT_FALSE(run.model.tie_word_embeddings);
}

TEST(ConfigFiles, ThePublishedModelsHaveTheirSizes) {
  struct Case {
    const char* name;
    Count expected;  // 46.7B and 12.9B, 30.5B and 3.3B, 671B and 37B (36.6B where the embedding is not
                     // active), 6.9B and 1.3B
  };
  const Case cases[] = {{"mixtral_8x7b.json", {46702792704, 12879925248}},
                        {"qwen3_30b_a3b.json", {30532122624, 3353032704}},
                        {"deepseek_v3.json", {671026419200, 37552297472}},
                        {"olmoe_1b_7b.json", {6919161856, 1282017280}}};
  for (const Case& c : cases) {
    const std::filesystem::path path = source_dir() / "configs/hf" / c.name;
    const Model model = parse_model(read_text_file(path), path.string());
    EXPECT_EQ(count_of(model).total, c.expected.total) << c.name;
    EXPECT_EQ(count_of(model).active, c.expected.active) << c.name;
    EXPECT_EQ(parse_model(model_to_hf_json(model), "back"), model) << c.name;
  }
}

TEST(ConfigFiles, TheBaselinesToReproduceAreOfOneSizeAndOneRecipe) {
  const config::Run first =
      load_run((source_dir() / "configs/mixtral_0.6b.json").string(), {}, router::router_schemas());
  EXPECT_EQ(first.train.global_batch_size, 270);
  EXPECT_EQ(first.train.steps * first.train.global_batch_size * first.train.seq_len, 1105920000);  // 1B tokens
  for (const char* name : {"mixtral_0.6b.json", "qwen3_moe_0.6b.json", "deepseek_v3_0.6b.json"}) {
    const config::Run run = load_run((source_dir() / "configs" / name).string(), {}, router::router_schemas());
    EXPECT_EQ(run.train, first.train) << name;
    EXPECT_EQ(run.data, first.data) << name;
    const std::int64_t total = count_of(run.model).total;
    EXPECT_TRUE(total > 600'000'000 && total < 650'000'000) << name << " has " << total;
    const bool deepseek = run.model.layout == &kDeepseekV3;
    EXPECT_EQ(run.router.balance_coef, deepseek ? 0 : 1e-3) << name;
    if (deepseek) {
      EXPECT_EQ(run.router.own.number("bias_update_speed"), 0) << name;
    }
  }
}

// What transformers 5 writes for each layout and option; tools/make_golden.py made them.
TEST(ConfigFiles, EveryGoldenModelIsReadAndWrittenBack) {
  const std::filesystem::path golden = source_dir() / "tests/golden";
  if (!std::filesystem::exists(golden)) GTEST_SKIP() << golden << " does not exist";
  std::map<const Layout*, int> models;
  for (const auto& directory : std::filesystem::directory_iterator(golden)) {
    const std::filesystem::path path = directory.path() / "config.json";
    if (!std::filesystem::exists(path)) continue;
    const Model model = parse_model(read_text_file(path), path.string());
    ++models[model.layout];
    EXPECT_EQ(parse_model(model_to_hf_json(model), "back"), model) << path;
    const Json text = parsed(read_text_file(path));
    EXPECT_EQ(model.rope.theta, text["rope_parameters"]["rope_theta"].number()) << path;
    EXPECT_EQ(name_of(model.rope.type), text["rope_parameters"]["rope_type"].text()) << path;
    EXPECT_EQ(model.attention_bias, text["attention_bias"] == true) << path;
  }
  for (const Layout* layout : kLayouts) EXPECT_GE(models[layout], 1) << layout->name;
}

TEST(ConfigFiles, TheDenseBaselineHasNoMoeLayer) {
  const config::Run run =
      load_run((source_dir() / "configs/dense_cpu_small.json").string(), {}, router::router_schemas());
  EXPECT_EQ(count_moe_layers(run.model), 0);
}

// Of each "## section" of the page, the rows of its tables, by key. A key of several layouts has several.
struct Row {
  std::string type, fallback, range, meaning;
};
std::map<std::string, std::multimap<std::string, Row>> documented() {
  std::map<std::string, std::multimap<std::string, Row>> sections;
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
    sections[section].emplace(cells[0].substr(1, cells[0].size() - 2),
                              Row{cells[1], cells[2], cells[3], cells[4]});
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
  for (const RouterSchema& router : router::router_schemas())
    for (const RouterOption& option : router.options) known["router"][std::string(option.key)] = true;
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

TEST(ConfigFiles, ThePagesRowsAreTheTextsOfTheKeys) {
  const std::string page = read_text_file(source_dir() / "docs/configuration.md");
  int compared = 0;
  for (const SectionKeys& section : all_sections()) {
    if (section.name == "data.validation.N") continue;  // shares a table
    for (const FieldText& field : field_texts(section.name)) {
      const std::string row =
          fmt::format("| `{}` | {} | {} |{}{} | {} |\n", field.key, field.type, field.fallback,
                      field.range.empty() ? "" : " ", field.range, field.meaning);
      EXPECT_NE(page.find(row), std::string::npos) << "docs/configuration.md, section " << section.name
                                                   << ": write the row that src/config/fields.h says\n"
                                                   << row;
      ++compared;
    }
  }
  EXPECT_GT(compared, 40);
}

TEST(ConfigFiles, HelpExplainsSectionsAndKeys) {
  const auto help = [](const char* name) { return help_on(name, router::router_schemas()); };
  EXPECT_EQ(help("train.lr"), "train.lr\n  number; default 0.001; (0, 1000]\n    the highest learning rate\n");
  EXPECT_EQ(help("lr"), help("train.lr"));
  EXPECT_CONTAINS(help("every"), "log.every\n  integer; default 1; at least 1\n");
  EXPECT_CONTAINS(help("checkpoint"), "checkpoint.keep_best\n  boolean; default true\n");
  EXPECT_EQ(help("latent_dim"),
            "router.latent_dim\n  integer; default 16; [1, 4096]\n    lpr: width of the latent space\n");
  EXPECT_EQ(help("model.hidden_size"),
            "model.hidden_size\n  integer; required; at least 1\n    width of the residual stream\n");
  EXPECT_CONTAINS(help("intermediate_size"),
                  "\n  of mixtral: integer; required; at least 1\n    width of one expert\n"
                  "  of qwen3_moe: integer; required with dense layers; at least 1\n");
  EXPECT_CONTAINS(help("router_aux_loss_coef"), "\n  of mixtral, qwen3_moe and olmoe: number; default none; ");
  EXPECT_CONTAINS(help("beta_fast"), "model.rope_parameters.beta_fast\n  number or null; default 32; ");
  // Every key has a text.
  for (const SectionKeys& section : all_sections())
    for (const std::string_view key : section.keys) {
      if (section.name.empty() || section.name == "model.rope_scaling") continue;
      const std::string path = fmt::format("{}.{}", section.name, key), text = help(path.c_str());
      EXPECT_GT(text.size(), path.size() + 10) << text;
      EXPECT_CONTAINS(text, "\n    ");
    }
  EXPECT_CONTAINS(help(""), "\ntrain: seed steps ");
  EXPECT_EQ(test::message_of<InputError>([&] { help("train.lrr"); }),
            "help config train.lrr: no section or key of that name; did you mean \"train.lr\"?");
}

// The words in backticks up to a semicolon: what stands behind it is about some of them.
std::set<std::string> words_in(const std::string& cell) {
  std::set<std::string> words;
  std::istringstream parts(cell.substr(0, cell.find(';')));
  for (std::string text; std::getline(parts, text, '`') && std::getline(parts, text, '`');) words.insert(text);
  return words;
}

// Words are learnt from what the reader refuses, so that a new one cannot be without a row of the page.
TEST(ConfigFiles, ThePageHasEveryWordOfEveryOption) {
  const auto page = documented();
  std::map<std::string, std::set<std::string>> known;  // of every layout and router together
  std::set<std::string> switches;
  for (const Json& model : {minimal_qwen(), minimal_mixtral(), minimal_deepseek(), minimal_olmoe()})
    for (const RouterSchema& router : router::router_schemas()) {
      const Json base = with(minimal_run(model), "/router", fmt::format(R"({{"type": "{}"}})", router.type));
      for (const std::string& section : test::sections())
        for (const test::Option& option : test::options_of(base, section)) {
          if (option.kind == test::Option::Kind::words)
            known[option.path()].insert(option.values.begin(), option.values.end());
          if (option.kind == test::Option::Kind::boolean) switches.insert(option.path());
        }
      known["router.type"].emplace(router.type);
    }
  const auto row_of = [&](const std::string& path) {
    std::string section = path.substr(0, path.rfind('.'));
    if (section == "model.rope_scaling") section = "model.rope_parameters";
    const auto& rows = page.at(section);
    const auto row = rows.find(path.substr(path.rfind('.') + 1));
    return row == rows.end() ? Row{} : row->second;
  };
  for (const auto& [path, words] : known) {
    const Row row = row_of(path);
    EXPECT_TRUE(row.type == "string" || row.type == "number or string" || row.type == "integer or string")
        << path << ": " << row.type;
    EXPECT_TRUE(row.range == "as rope_type" || words_in(row.range) == words) << path << ": " << row.range;
    EXPECT_NE(row.meaning, "") << path;
  }
  for (const std::string& path : switches) EXPECT_EQ(row_of(path).type, "boolean") << path;

  // What config/names.h names is among them.
  const auto expect_all = [](const auto& values, const std::set<std::string>& in) {
    for (const auto value : values) EXPECT_TRUE(in.contains(std::string(name_of(value)))) << name_of(value);
  };
  for (const Layout* layout : kLayouts)
    EXPECT_TRUE(words_in(row_of("model.model_type").range).contains(std::string(layout->name))) << layout->name;
  expect_all(kRopeTypes, known["model.rope_scaling.rope_type"]);
  expect_all(kBalanceScopes, known["router.balance_scope"]);
  expect_all(kSchedules, known["train.schedule"]);
  expect_all(kRecomputes, known["train.recompute"]);
  expect_all(kComputeTypes, known["train.dtype"]);
  expect_all(kAttentionBackends, known["train.attention"]);
  expect_all(kTokenExchanges, known["parallel.token_exchange"]);
  expect_all(kSums, known["parallel.sums"]);
  expect_all(kWriters, known["checkpoint.writers"]);
}

// The value in a cell "`a`" or "`a`; `name`: `b`": b where the run is one of `names`, else a. Empty where the
// cell is in words.
std::string default_in(const std::string& cell, const std::vector<std::string>& names) {
  if (!cell.starts_with('`')) return "";
  for (const std::string& name : names) {
    const std::string head = "; `" + name + "`: ";
    if (const auto at = cell.find(head); at != std::string::npos)
      return cell.substr(at + head.size(), cell.find(';', at + 1) - at - head.size());
  }
  return cell.substr(0, cell.find(';'));
}

TEST(ConfigFiles, ThePagesDefaultsAreTheCodes) {
  const auto page = documented();
  std::vector<Json> runs{minimal_run(minimal_qwen()), minimal_run(minimal_deepseek())};
  for (const RouterSchema& router : router::router_schemas())
    runs.push_back(with(minimal_run(), "/router/type", fmt::format("\"{}\"", router.type)));
  for (const Json& run : runs) {
    const Json resolved = parsed(run_of(run).resolved_json);
    const std::vector<std::string> names{run["model"]["model_type"].text(), resolved["router"]["type"].text()};
    int compared = 0;
    for (const char* section : {"router", "data", "train", "parallel", "checkpoint", "eval", "log"}) {
      for (const auto& [key, value] : resolved[section].object()) {
        const std::string documented_default = default_in(page.at(section).find(key)->second.fallback, names);
        if (documented_default.empty() || (key == "type" && run.contains("router"))) continue;
        const std::string text = value.is_string() ? value.text() : to_line(value);
        EXPECT_EQ(documented_default, fmt::format("`{}`", text)) << section << "." << key;
        ++compared;
      }
    }
    EXPECT_GE(compared, 20);
  }
}

}  // namespace
}  // namespace switchyard::config
