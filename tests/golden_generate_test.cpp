// Token by token through the caches: the logits of `transformers` at every position, and its greedy text.
#include <algorithm>
#include <cmath>

#include "generate/generator.h"
#include "golden_support.h"

namespace switchyard::golden {
namespace {

class GoldenGenerate : public ::testing::TestWithParam<const char*> {
 protected:
  GoldenGenerate()
      : golden_(GetParam()),
        model_(golden_.model(), config::default_router(*golden_.model().layout, router::router_schemas()),
               DType::f32, false) {
    model_.allocate();
    ParameterStore& store = model_.parameters();
    for (std::size_t i = 0; i < store.rows().size(); ++i)
      golden_.weights().read(*golden_.weights().find(store.rows()[i].name), store.value(i));
    ctx_.scratch.set_poison(true);
  }

  GoldenCase golden_;
  model::Transformer model_;
  Context ctx_;
};

TEST_P(GoldenGenerate, LogitsBehindEveryPieceAreThoseOfTheWholePass) {
  const Expected tokens = golden_.expected("tokens"), logits = golden_.expected("logits");
  const auto S = static_cast<std::size_t>(tokens.shape[1]), V = static_cast<std::size_t>(logits.shape[2]);
  double largest = 0;
  for (const double value : logits.values) largest = std::max(largest, std::abs(value));
  for (const std::size_t piece : {std::size_t{1}, std::size_t{3}, std::size_t{9}, S}) {
    for (std::size_t b = 0; b < static_cast<std::size_t>(tokens.shape[0]); ++b) {
      generate::Generator generator(model_, static_cast<std::int64_t>(S), ctx_);
      model_.poison_activations(ctx_);
      for (std::size_t first = 0; first < S; first += piece) {
        std::vector<std::int32_t> part;
        for (std::size_t s = first; s < std::min(S, first + piece); ++s)
          part.push_back(static_cast<std::int32_t>(tokens.values[b * S + s]));
        const std::span<const float> got = generator.append(part);
        const std::size_t row = b * S + first + part.size() - 1;
        // As in the whole pass: float32 sums of a few dozen terms in another order.
        for (std::size_t v = 0; v < V; ++v)
          ASSERT_NEAR(got[v], logits.values[row * V + v], 1e-5 * largest)
              << "pieces of " << piece << ", row " << row << ", token " << v;
      }
    }
  }
}

TEST_P(GoldenGenerate, GreedyTextIsEqual) {
  const Json record =
      test::parsed_file(std::filesystem::path(SWITCHYARD_GOLDEN_DIR) / GetParam() / "greedy.json");
  const auto prompt = test::numbers<std::int32_t>(record["prompt"]),
             expected = test::numbers<std::int32_t>(record["tokens"]);
  generate::Generator generator(model_, static_cast<std::int64_t>(prompt.size() + expected.size()), ctx_);
  generate::Sampler greedy({.temperature = 0});
  std::vector<std::int32_t> tokens;
  std::span<const float> logits = generator.append(prompt);
  while (tokens.size() < expected.size()) {
    tokens.push_back(greedy.choose(logits, 0));
    logits = generator.append(std::span(tokens).last(1));
  }
  EXPECT_EQ(tokens, expected);
}

std::vector<const char*> all_cases() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(SWITCHYARD_GOLDEN_DIR))
      if (std::filesystem::exists(entry.path() / "greedy.json"))
        found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }();
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());
  return pointers;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenGenerate, ::testing::ValuesIn(all_cases()), case_name);

TEST(GoldenGenerateCases, EveryCaseHasAText) { EXPECT_GE(all_cases().size(), 20u); }

}  // namespace
}  // namespace switchyard::golden
