// Text grown token by token equals full passes over it, whatever the router; and growing it takes no memory.
#include "config/layouts.h"
#include "generate/generator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <ostream>
#include <string>
#include <vector>

#include "model_test_support.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}

// Counted, for the whole test program. Inlined, GCC would take malloc and delete for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size > 0 ? size : 1)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace switchyard::generate {
namespace {

struct Case {
  std::string name;
  const config::Layout* layout;
  std::string router;  // "": the layout's own
  config::RouterOptions own{};
  std::int64_t window = 0;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  const config::Layout *const qwen3_moe = &config::kQwen3Moe, *const deepseek_v3 = &config::kDeepseekV3,
                              *const mixtral = &config::kMixtral;
  const std::int64_t three = 3;
  const config::RouterOptions attention{{"estimator", "attention_entropy"}, {"max_experts", three}};
  return {{"Qwen3", qwen3_moe, ""},
          {"DeepSeekV3", deepseek_v3, ""},
          {"MixtralWindow", mixtral, "", {}, 5},
          {"DynamicKAttention", qwen3_moe, "dynamic_k", attention},
          {"DynamicKAttentionLatent", deepseek_v3, "dynamic_k", attention},
          {"DynamicKAttentionWindow", mixtral, "dynamic_k", attention, 5},
          {"DynamicKNorm", qwen3_moe, "dynamic_k", {{"max_experts", three}}},
          {"Lpr", qwen3_moe, "lpr", {{"latent_dim", three}}},
          {"LprLatent", deepseek_v3, "lpr", {{"latent_dim", three}, {"similarity", "hellinger"}}},
          {"ExpertThreshold", qwen3_moe, "expert_threshold", {{"max_experts", three}}},
          {"Quantile", qwen3_moe, "quantile"},
          {"TopP", qwen3_moe, "top_p", {{"max_experts", three}}},
          {"KMeans", qwen3_moe, "kmeans"}};
}

config::Model model_of(const Case& c) {
  config::Model model = model::tiny_model(*c.layout);
  model.sliding_window = c.window;
  return model;
}

config::Router router_of(const Case& c, const config::Model& model) {
  if (c.router.empty()) return config::default_router(*c.layout, router::router_schemas());
  config::Router router = config::default_of(config::schema_of(c.router, router::router_schemas()), model);
  for (const auto& [key, value] : c.own.all()) router.own.set(key, value);
  return router;
}

class Growing : public ::testing::TestWithParam<Case> {
 protected:
  Growing()
      : config_(model_of(GetParam())), model_(config_, router_of(GetParam(), config_), DType::f32, false) {
    model_.allocate();
    model::fill_weights(model_.parameters());
    // Router state: thresholds, means and variances are not negative.
    ParameterStore& store = model_.parameters();
    for (std::size_t i = 0; i < store.rows().size(); ++i)
      if (!store.rows()[i].trained)
        for (std::int64_t j = 0; j < store.value(i).numel(); ++j)
          test::set(store.value(i), j, std::abs(test::get(store.value(i), j)));
    ctx_.scratch.set_poison(true);
  }

  // The logits behind the last token, of one pass over all of them.
  std::vector<double> full_pass(const std::vector<std::int32_t>& tokens) {
    const auto T = static_cast<std::int64_t>(tokens.size());
    const test::OwnedTensor token_T({T}, DType::i32), target_T({T}, DType::i32), kv_begin_T({T}, DType::i32);
    for (std::int64_t t = 0; t < T; ++t) {
      test::set(token_T, t, tokens[static_cast<std::size_t>(t)]);
      test::set(target_T, t, -1);
      test::set(kv_begin_T, t,
                config_.sliding_window > 0
                    ? static_cast<double>(std::max<std::int64_t>(0, t + 1 - config_.sliding_window))
                    : 0);
    }
    model_.plan(1, T, ctx_);
    model_.poison_activations(ctx_);
    model_.forward({token_T, target_T, kv_begin_T, 1, T}, ctx_);
    const test::OwnedTensor logits_TV({T, config_.vocab_size}, DType::f32);
    model_.logits(logits_TV, ctx_);
    return test::values(logits_TV.view().slice(T - 1, 1));
  }

  config::Model config_;
  model::Transformer model_;
  Context ctx_;
};

TEST_P(Growing, GreedyTextIsTheArgmaxOfFullPasses) {
  const std::vector<std::int32_t> prompt = {3, 1, 4, 1, 5, 9, 2, 6, 5};
  constexpr std::size_t kTokens = 20;
  std::vector<std::int32_t> expected = prompt;
  std::vector<std::vector<double>> logits;
  for (std::size_t i = 0; i < kTokens; ++i) {
    logits.push_back(full_pass(expected));
    expected.push_back(static_cast<std::int32_t>(std::max_element(logits.back().begin(), logits.back().end()) -
                                                 logits.back().begin()));
  }

  Generator generator(model_, static_cast<std::int64_t>(prompt.size() + kTokens), ctx_);
  model_.poison_activations(ctx_);
  Sampler greedy({.temperature = 0});
  std::vector<std::int32_t> tokens = prompt;
  std::span<const float> last = generator.append(prompt);
  for (std::size_t i = 0; i < kTokens; ++i) {
    // Logits of order one: float32 sums of a few dozen terms in another order, through two layers.
    ASSERT_TRUE(test::all_near({last.begin(), last.end()}, logits[i], 2e-5, 2e-5)) << "token " << i;
    tokens.push_back(greedy.choose(last, 0));
    last = generator.append(std::span(tokens).last(1));
  }
  EXPECT_EQ(tokens, expected);
}

TEST_P(Growing, SequencesOfABatchAreThoseAlone) {
  constexpr std::int64_t kSequences = 3, kPrompt = 7, kTokens = 6;
  const auto token = [&](std::int64_t b, std::int64_t t) {
    return static_cast<std::int32_t>((5 * b + 3 * t + t * t) % config_.vocab_size);
  };
  std::vector<std::vector<std::vector<double>>> alone;  // logits by sequence and call
  for (std::int64_t b = 0; b < kSequences; ++b) {
    Generator generator(model_, kPrompt + kTokens, ctx_);
    std::vector<std::int32_t> prompt;
    for (std::int64_t t = 0; t < kPrompt; ++t) prompt.push_back(token(b, t));
    std::span<const float> last = generator.append(prompt);
    alone.push_back({{last.begin(), last.end()}});
    for (std::int64_t t = kPrompt; t < kPrompt + kTokens; ++t) {
      const std::int32_t next = token(b, t);
      last = generator.append(std::span(&next, 1));
      alone.back().push_back({last.begin(), last.end()});
    }
  }
  Generator generator(model_, kPrompt + kTokens, ctx_, kSequences);
  for (int time = 0; time < 2; ++time) {  // the second time over what the first one left in the caches
    generator.restart();
    for (std::int64_t call = 0; call <= kTokens; ++call) {
      const std::int64_t first = call == 0 ? 0 : kPrompt + call - 1, n = call == 0 ? kPrompt : 1;
      std::vector<std::int32_t> token_Bn;
      for (std::int64_t b = 0; b < kSequences; ++b)
        for (std::int64_t t = first; t < first + n; ++t) token_Bn.push_back(token(b, t));
      const std::span<const float> logits_BV = generator.append(token_Bn);
      const auto V = static_cast<std::size_t>(config_.vocab_size);
      for (std::size_t b = 0; b < kSequences; ++b) {
        const auto own = logits_BV.subspan(b * V, V);
        // As above: products of more rows add up in another order.
        EXPECT_TRUE(
            test::all_near({own.begin(), own.end()}, alone[b][static_cast<std::size_t>(call)], 2e-5, 2e-5))
            << "sequence " << b << ", call " << call;
      }
    }
  }
}

TEST_P(Growing, TakesNoMemoryAfterTheFirstSteps) {
  constexpr std::int64_t kTokens = 50;
  Generator generator(model_, 3 + kTokens, ctx_);
  Sampler greedy({.temperature = 0});
  std::span<const float> last = generator.append(std::vector<std::int32_t>{3, 1, 4});
  std::int64_t before = 0, scratch_before = 0;
  for (std::int64_t i = 0; i < kTokens; ++i) {
    if (i == 2) before = allocations, scratch_before = ctx_.scratch.reserved();
    const std::int32_t token = greedy.choose(last, 0);
    last = generator.append(std::span(&token, 1));
  }
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(ctx_.scratch.reserved(), scratch_before);
  EXPECT_GT(scratch_before, 0);
}

TEST_P(Growing, APromptIsContinuedUntilSomethingStopsIt) {
  constexpr std::int64_t kTokens = 6;
  const std::vector<std::int32_t> prompt = {3, 1, 4};
  std::vector<std::int32_t> taken;
  const auto go_on = [&](std::span<const std::int32_t> end_tokens, std::size_t at_most) {
    Generator generator(model_, 3 + kTokens - 1, ctx_);
    Sampler greedy({.temperature = 0});
    taken.clear();
    return continue_prompt(generator, greedy, prompt, kTokens, end_tokens, [&](std::int32_t token) {
      taken.push_back(token);
      return taken.size() < at_most;
    });
  };
  const Continuation whole = go_on({}, kTokens + 1);
  EXPECT_EQ(whole.stop, Stop::full);
  EXPECT_EQ(whole.tokens.size(), std::size_t{kTokens});
  EXPECT_EQ(taken, whole.tokens);

  const auto first = whole.tokens.begin(), end = std::find(first, whole.tokens.end(), whole.tokens[3]);
  const Continuation ended = go_on(std::span(whole.tokens).subspan(3, 1), kTokens + 1);
  EXPECT_EQ(ended.stop, Stop::end_of_text);
  EXPECT_EQ(ended.tokens, std::vector<std::int32_t>(first, end + 1));
  EXPECT_EQ(taken, std::vector<std::int32_t>(first, end));

  const Continuation interrupted = go_on({}, 2);
  EXPECT_EQ(interrupted.stop, Stop::interrupted);
  EXPECT_EQ(interrupted.tokens, std::vector<std::int32_t>(first, first + 2));
}

// Prompts of other lengths in one batch: each goes on as it does alone, whether the others are still shown
// their prompts or have ended.
TEST_P(Growing, PromptsOfABatchAreContinuedAsAlone) {
  constexpr std::int64_t kTokens = 6;
  const std::vector<std::vector<std::int32_t>> prompts = {{3, 1, 4}, {1, 5, 2, 6, 5, 3, 5, 7}, {2}};
  // The second ends at its second token; of the third no more than three are taken.
  Sampler greedy({.temperature = 0});
  std::vector<Continuation> alone;
  std::vector<std::int32_t> end_tokens;
  const auto takes = [](std::size_t b, std::size_t taken) { return b != 2 || taken < 3; };
  for (int pass = 0; pass < 2; ++pass) {
    alone.clear();
    for (std::size_t b = 0; b < prompts.size(); ++b) {
      Generator generator(model_, std::ssize(prompts[b]) + kTokens - 1, ctx_);
      std::size_t taken = 0;
      alone.push_back(continue_prompt(generator, greedy, prompts[b], kTokens, end_tokens,
                                      [&](std::int32_t) { return takes(b, ++taken); }));
    }
    end_tokens = {alone[1].tokens[std::min<std::size_t>(1, alone[1].tokens.size() - 1)]};
  }
  Generator generator(model_, 8 + kTokens - 1, ctx_, 3);
  std::vector<std::size_t> taken_B(3);
  const auto together = continue_prompts(generator, greedy, prompts, kTokens, end_tokens,
                                         [&](std::size_t b, std::int32_t) { return takes(b, ++taken_B[b]); });
  for (std::size_t b = 0; b < prompts.size(); ++b) {
    EXPECT_EQ(together[b].tokens, alone[b].tokens) << "sequence " << b;
    EXPECT_EQ(together[b].stop, alone[b].stop) << "sequence " << b;
  }
}

INSTANTIATE_TEST_SUITE_P(Routers, Growing, ::testing::ValuesIn(cases()),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace switchyard::generate
