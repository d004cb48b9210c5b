// Keys of published files and of other programs: what passes, what is refused, and what is suggested.
#include <gtest/gtest.h>

#include <algorithm>

#include "config/keys.h"
#include "config/layouts.h"
#include "config/names.h"
#include "config/published.h"
#include "config/spelling.h"
#include "config_samples.h"

namespace switchyard::config {
namespace {

Json sample(const Layout& layout) {
  if (layout == kMixtral) return minimal_mixtral();
  if (layout == kQwen3Moe) return minimal_qwen();
  if (layout == kDeepseekV3) return minimal_deepseek();
  if (layout == kOlmoe) return minimal_olmoe();
  ADD_FAILURE() << "no sample of " << layout.name;
  return {};
}

struct Key {
  const char* name;
  const char* value;
};

TEST(ConfigPublished, WhatSaysOffPasses) {
  const Key keys[] = {{"qkv_bias", "false"},
                      {"shared_expert_width", "0"},
                      {"num_attention_sinks", "0"},
                      {"final_logit_softcapping", "null"},
                      {"attn_logit_softcapping", "0.0"},
                      {"hidden_dropout_prob", "0.0"},
                      {"resid_pdrop", "0"},
                      {"mlp_bias", "false"},
                      {"no_bias", "true"},
                      {"logits_scaling", "1.0"},
                      {"residual_multiplier", "1"},
                      {"partial_rotary_factor", "1.0"},
                      {"vision_config", "{}"},
                      {"lora_modules", "[]"},
                      {"rope_scaling_type", "\"none\""},
                      {"mlp_activation", "\"silu\""},
                      {"is_causal", "true"},
                      {"use_rope", "true"},
                      {"norm_type", "\"rmsnorm\""}};
  for (const Layout* layout : kLayouts)
    for (const Key& key : keys) {
      const Json text = with(sample(*layout), std::string("/") + key.name, key.value);
      EXPECT_EQ(model_of(text), model_of(sample(*layout))) << key.name;
      EXPECT_NO_THROW(run_of(minimal_run(text))) << key.name;
    }
}

TEST(ConfigPublished, WhatSaysOnIsRefusedShortly) {
  const Key keys[] = {{"qkv_bias", "true"},
                      {"shared_expert_width", "64"},
                      {"residual_multiplier", "2"},
                      {"partial_rotary_factor", "0.5"},
                      {"vision_config", "{\"a\": 1}"},
                      {"no_bias", "false"},
                      {"hidden_dropout_prob", "0.1"},
                      {"rope_scaling_type", "\"dynamic\""},
                      {"hidden_activation", "\"gelu\""},
                      {"dense_layers", "[0]"}};
  for (const Layout* layout : kLayouts)
    for (const Key& key : keys) {
      const std::string error = model_error(with(sample(*layout), std::string("/") + key.name, key.value));
      EXPECT_CONTAINS(error, fmt::format("config.json: {}: ", key.name));
      EXPECT_LT(error.size(), 200u) << error;
    }
}

// Values that look as if something were off, and would make another model.
TEST(ConfigPublished, WhatLooksOffAndIsNotIsRefused) {
  const Key of_all[] = {{"use_rope", "false"},          {"disable_rope", "true"},
                        {"use_rms_norm", "false"},      {"is_causal", "false"},
                        {"gated_mlp", "false"},         {"use_moe", "false"},
                        {"moe_layers", "[]"},           {"partial_rotary_factor", "0"},
                        {"residual_multiplier", "0.0"}, {"attention_multiplier", "1.0"},
                        {"softmax_scale", "1"},         {"num_routed_experts", "0"},
                        {"moe_layer_frequency", "0"},   {"activation", "\"none\""}};
  for (const Layout* layout : kLayouts)
    for (const Key& key : of_all)
      EXPECT_CONTAINS(model_error(with(sample(*layout), std::string("/") + key.name, key.value)),
                      fmt::format("config.json: {}: ", key.name));
  EXPECT_CONTAINS(model_error(with(minimal_qwen(), "/use_qk_norm", "false")), "always has it");
  EXPECT_CONTAINS(model_error(with(minimal_mixtral(), "/use_qk_norm", "true")),
                  "use_qk_norm: is true: unknown");
  EXPECT_CONTAINS(
      model_error(with(minimal_mixtral(), "/norm_topk_prob", "false")),
      "config.json: norm_topk_prob: is false, mixtral always has it; remove it, or set it in a run's model");
  for (const Json& model : {minimal_mixtral(), minimal_qwen()})
    EXPECT_CONTAINS(model_error(with(model, "/routed_scaling_factor", "2.5")),
                    "config.json: routed_scaling_factor: is 2.5, ");
  EXPECT_CONTAINS(model_error(with(minimal_deepseek(), "/shared_expert_intermediate_size", "0")),
                  "always has it");
  EXPECT_CONTAINS(model_error(with(minimal_qwen(), "/scoring_func", "\"sigmoid\"")), "scoring_func: ");
  EXPECT_CONTAINS(
      model_error(with(with(minimal_mixtral(), "/sliding_window", "8"), "/use_sliding_window", "false")),
      "use_sliding_window: is false, but sliding_window is 8");
  EXPECT_CONTAINS(model_error(with(minimal_qwen(), "/hidden_act", "null")), "hidden_act: is null");
}

TEST(ConfigPublished, WhatTheLayoutDoesMayBeSaid) {
  EXPECT_NO_THROW(model_of(with(minimal_qwen(), "/use_qk_norm", "true")));
  EXPECT_NO_THROW(model_of(with(minimal_mixtral(), "/norm_topk_prob", "true")));
  EXPECT_NO_THROW(model_of(with(minimal_mixtral(), "/use_qk_norm", "false")));
  EXPECT_NO_THROW(model_of(with(minimal_qwen(), "/scoring_func", "\"softmax\"")));
  EXPECT_NO_THROW(model_of(with(minimal_deepseek(), "/use_mla", "true")));
  EXPECT_NO_THROW(model_of(with(minimal_qwen(), "/routed_scaling_factor", "1.0")));
  EXPECT_NO_THROW(model_of(with(minimal_qwen(), "/n_group", "1")));
  EXPECT_NO_THROW(model_of(with(minimal_qwen(), "/moe_layer_freq", "1")));
  EXPECT_NO_THROW(model_of(with(minimal_qwen(), "/top_k", "50")));  // of sampling, by transformers 4
}

TEST(ConfigPublished, ListsOfLayersAgreeWithTheOtherKeys) {
  const char* full = R"(["full_attention", "full_attention", "full_attention", "full_attention"])";
  const char* sliding =
      R"(["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention"])";
  for (const Layout* layout : kLayouts) {
    EXPECT_NO_THROW(model_of(with(sample(*layout), "/layer_types", full)));
    EXPECT_CONTAINS(model_error(with(sample(*layout), "/layer_types", sliding)),
                    "layer_types.0: is \"sliding_attention\", but by the other keys this layer is");
  }
  EXPECT_NO_THROW(model_of(with(with(minimal_mixtral(), "/sliding_window", "8"), "/layer_types", sliding)));
  EXPECT_CONTAINS(model_error(with(minimal_qwen(), "/layer_types", R"(["full_attention"])")),
                  "layer_types: has 1 entries, but num_hidden_layers is 4");
  const Json mixed = with(minimal_deepseek(), "/mlp_layer_types", R"(["dense", "dense", "dense", "sparse"])");
  EXPECT_NO_THROW(model_of(mixed));
  EXPECT_CONTAINS(model_error(with(mixed, "/first_k_dense_replace", "1")), "mlp_layer_types.1: is \"dense\"");
}

// Whatever the value: such a key is not one that nobody knows.
TEST(ConfigPublished, AnotherSpellingOfAKeyIsAnError) {
  const struct {
    const char *key, *value, *meant;
  } cases[] = {{"tie_word_embedings", "false", "tie_word_embeddings"},
               {"num_expert", "0", "num_experts"},
               {"num_experts_per_token", "2", "num_experts_per_tok"},
               {"n_experts", "0", "num_experts"},
               {"d_model", "0", "hidden_size"},
               {"n_layers", "4", "num_hidden_layers"},
               {"num_kv_heads", "0", "num_key_value_heads"},
               {"hiden_size", "64", "hidden_size"},
               {"slidingwindow", "null", "sliding_window"},
               {"normalize_topk_prob", "false", "norm_topk_prob"},
               {"layer_norm_eps", "0", "rms_norm_eps"}};
  for (const auto& c : cases)
    EXPECT_EQ(model_error(with(minimal_qwen(), std::string("/") + c.key, c.value)),
              fmt::format("config.json: {}: unknown key; did you mean \"{}\"?", c.key, c.meant));
}

// 50 is what transformers 4 wrote of its sampling.
TEST(ConfigPublished, AnotherNameIsSuggestedWhereTheValueIsNotOfItsOwnMeaning) {
  for (const Json& model : {minimal_qwen(), minimal_mixtral(), minimal_deepseek()}) {
    EXPECT_EQ(model_error(with(model, "/top_k", "2")),
              "config.json: top_k: is 2: unknown key; did you mean \"num_experts_per_tok\"?");
    EXPECT_NO_THROW(model_of(with(model, "/top_k", "50")));
  }
}

TEST(ConfigPublished, AKeyOfAnotherMeaningIsNotSuggested) {
  for (const char* key : {"shared_expert_intermediate_size", "v_head_dim", "o_lora_rank",
                          "dense_intermediate_size", "qkv_bias", "index_head_dim", "embedding_multiplier"}) {
    const std::string error = model_error(with(minimal_qwen(), std::string("/") + key, "7"));
    EXPECT_EQ(error.find("did you mean"), std::string::npos) << error;
  }
}

TEST(ConfigPublished, KeysOfARunAreSuggestedByMeaning) {
  const struct {
    const char *override_, *meant;
  } cases[] = {{"train.learning_rate=1", "lr"},
               {"train.max_lr=1", "lr"},
               {"train.batch_size=1", "global_batch_size"},
               {"train.max_steps=1", "steps"},
               {"train.betas=[0.9,0.95]", "beta1"},
               {"train.warmup_steps=10", "warmup_ratio"},
               {"train.grad_clip=1", "clip_norm"},
               {"train.sequence_length=1", "seq_len"},
               {"router.top_k=2", "model.num_experts_per_tok"},
               {"router.n_experts=2", "model.num_experts"},
               {"router.aux_loss_coef=2", "balance_coef"},
               {"train.save_every=2", "checkpoint.every"},
               {"learning_rate=2", "train.lr"},
               {"steps=2", "train.steps"},
               {"data.val=[]", "validation"},
               {"model.lr=0.1", "train.lr"}};
  for (const auto& c : cases)
    EXPECT_CONTAINS(run_error(minimal_run(), {c.override_}), fmt::format("did you mean \"{}\"?", c.meant));
  EXPECT_CONTAINS(run_error(minimal_run(minimal_mixtral()), {"router.n_experts=2"}),
                  "\"model.num_local_experts\"");
  EXPECT_EQ(
      run_error(minimal_run(), {"train.bananas=0"}),
      "--set train.bananas=0: train.bananas: unknown key; docs/configuration.md lists those of \"train\"");
}

TEST(ConfigPublished, EveryOtherNameIsOfAKeyThatIsThere) {
  const auto exists = [](std::string_view path) {
    return std::any_of(all_sections().begin(), all_sections().end(), [&](const SectionKeys& section) {
      return std::any_of(section.keys.begin(), section.keys.end(),
                         [&](std::string_view key) { return fmt::format("{}.{}", section.name, key) == path; });
    });
  };
  for (const char* key : {"learning_rate", "max_steps", "top_k", "n_experts", "batch_size"})
    EXPECT_FALSE(meant_by("train", key, exists).empty()) << key;
  EXPECT_TRUE(meant_by("train", "bananas", exists).empty());
}

TEST(ConfigPublished, WholeNumbersAndShortTypes) {
  EXPECT_EQ(run_of(minimal_run(), {"train.steps=1e3"}).train.steps, 1000);
  EXPECT_EQ(run_of(minimal_run(), {"train.steps=1000.0", "train.seed=5.0"}).train.seed, 5u);
  EXPECT_CONTAINS(run_error(minimal_run(), {"train.steps=1000.5"}), "expected an integer");
  EXPECT_EQ(run_of(minimal_run(), {"train.dtype=bf16"}).train.dtype, ComputeType::bfloat16);
  EXPECT_CONTAINS(run_of(minimal_run(), {"train.dtype=bf16"}).resolved_json, "\"dtype\": \"bfloat16\"");
  EXPECT_EQ(run_of(minimal_run(), {"train.dtype=fp32"}).train.dtype, ComputeType::float32);
  EXPECT_EQ(run_of(minimal_run(), {"train.dtype=fp8"}).train.dtype, ComputeType::fp8);
  EXPECT_CONTAINS(run_error(minimal_run(), {"train.dtype=fp16"}), "\"float16\", expected one of");
}

TEST(ConfigPublished, AnOverrideMayTakeTheValidationAway) {
  Json text = minimal_run();
  text["data"]["validation"] = Json::Array{"v.bin"};
  text["train"]["eval_every"] = 5;
  EXPECT_EQ(run_of(text, {"data.validation=[]"}).train.eval_every, 0);
  EXPECT_CONTAINS(run_error(text, {"data.validation=[]", "train.eval_every=3"}), "data.validation is empty");
}

}  // namespace
}  // namespace switchyard::config
