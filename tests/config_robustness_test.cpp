// Random damage to a valid configuration: the parser accepts it or throws InputError of one line, nothing else.
#include <gtest/gtest.h>

#include <random>

#include "config_samples.h"
#include "core/file.h"

namespace switchyard::config {
namespace {

// One to four edits of bytes: replaced, removed, doubled ranges, or a word that is likely to matter put in.
std::string damage(std::string text, std::mt19937_64& random) {
  static const std::string kWords[] = {"-1",   "0",    "1e999", "1e308", "-0.0", "9223372036854775808",
                                       "null", "true", "{}",    "[]",    "\"\"", "\\u0000",
                                       "\xff", "\n",   ",",     ":",     "}",    "]",
                                       "\"",   "NaN"};
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const std::size_t edits = 1 + below(4);
  for (std::size_t i = 0; i < edits && !text.empty(); ++i) {
    const std::size_t at = below(text.size());
    const std::size_t length = std::min(text.size() - at, 1 + below(12));
    switch (below(5)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, text.substr(below(text.size()), length));
        break;
      case 3:
        text.insert(at, kWords[below(std::size(kWords))]);
        break;
      case 4: {  // a number becomes another value
        const std::size_t digit = text.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        const std::size_t end = text.find_first_not_of("0123456789.e-+", digit);
        text.replace(digit, end == std::string::npos ? end : end - digit, kWords[below(std::size(kWords))]);
        break;
      }
    }
  }
  return text;
}

TEST(ConfigRobustness, DamagedTextIsReadOrRefused) {
  std::mt19937_64 random(7);
  const std::string path = (source_dir() / "configs/deepseek_v3_cpu_small.json").string();
  Json deepseek = parsed(load_run(path, {}, router::router_schemas()).resolved_json);
  deepseek["model"]["rope_scaling"] = parsed(R"({"type": "yarn", "factor": 4.5, "beta_fast": 32, "beta_slow": 1,
      "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": true})");
  const std::string texts[] = {read_text_file(source_dir() / "configs/qwen3_moe_cpu_small.json"),
                               to_text(deepseek)};
  for (const std::string& text : texts) {
    int accepted = 0;
    int refused_by_value = 0;
    for (int i = 0; i < 2000; ++i) {
      const std::string damaged = damage(text, random);
      try {
        const config::Run run = parse_run(damaged, "run.json", {}, router::router_schemas());
        ++accepted;
        EXPECT_EQ(parse_run(run.resolved_json, "resolved", {}, router::router_schemas()), run);
      } catch (const InputError& error) {
        const std::string what = error.what();
        EXPECT_EQ(what.find('\n'), std::string::npos) << what;
        EXPECT_TRUE(what.starts_with("run.json: ")) << what;
        if (what.find("not JSON") == std::string::npos) ++refused_by_value;
      }
    }
    // The damage must reach all three: readers of syntax, checks of values, and configurations that stay valid.
    EXPECT_GT(accepted, 20);
    EXPECT_GT(refused_by_value, 100);
    EXPECT_LT(accepted + refused_by_value, 1900);
  }
}

TEST(ConfigRobustness, DamagedOverridesAreReadOrRefused) {
  std::mt19937_64 random(8);
  const std::string text = to_line(minimal_run());
  const std::string overrides[] = {"train.lr=0.01", "data.train.0=b.bin", "router.balance_scope=layer",
                                   "data.train=[{\"path\": \"c.bin\", \"weight\": 2}]",
                                   "model.mlp_only_layers=[]"};
  int accepted = 0;
  for (int i = 0; i < 2000; ++i) {
    const std::string damaged = damage(overrides[random() % std::size(overrides)], random);
    try {
      parse_run(text, "run.json", {damaged}, router::router_schemas());
      ++accepted;
    } catch (const InputError& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
  }
  EXPECT_GT(accepted, 20);
  EXPECT_LT(accepted, 1900);
}

}  // namespace
}  // namespace switchyard::config
